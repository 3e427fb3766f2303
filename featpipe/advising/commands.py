"""Commands to copy: how each advice is carried out on this very data set."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.advising.documents import Try
from featpipe.advising.tap_rows import (
    MEAN,
    STORED,
    TapRows,
    can_be_cut,
    opened,
    retrained_tap,
)
from featpipe.backbones.pixels import PIXELS
from featpipe.base.cache import default_cache
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.spaces import extract_options, space_options, spaces_of
from featpipe.datasets.views import ADVISED_POLICY, ADVISED_VIEWS, find_views
from featpipe.specs.extract import DEFAULT_SPLIT
from featpipe.specs.fields import flag
from featpipe.specs.spaces import SpaceQuery

SCRATCH_SIZE = 128
"""Side of the pixels for a small network of its own, pixels."""


@dataclass(frozen=True)
class Planned:
    """Features that an advice trains on.

    Attributes
    ----------
    space : FeatureSpace
        Its shape and digest of weights may be those of another tap.
    weights : str
    is_cached : bool
    """

    space: FeatureSpace
    weights: str
    is_cached: bool


class CommandWriter:
    """Writes commands on one data set.

    Parameters
    ----------
    dataset : Dataset
    cache : Path
        Named in each command unless it is the default.
    train : ndarray of int
        Row numbers of the training pictures, of which views are made.
    """

    def __init__(self, dataset: Dataset, cache: Path, train: NDArray[np.intp]) -> None:
        self.dataset, self._train = dataset, train
        self._cache = [] if cache == default_cache() else ["--cache", str(cache)]
        self._held = [(s, w) for s, w in spaces_of(dataset) if s.view == 0]

    def planned(self, space: FeatureSpace, weights: str, **changes: Any) -> Planned:
        """Features like those of a space; cached where the data set has them."""
        wanted = self._options(dataclasses.replace(space, **changes), weights)
        for held, name in self._held:
            if self._options(held, name) == wanted:
                return Planned(held, name, True)
        return Planned(dataclasses.replace(space, **changes), weights, False)

    def extract(self, planned: Planned, *more: str) -> str:
        """Compute features over the data set's own pictures."""
        return self._extract(extract_options([planned.space], planned.weights), *more)

    def extract_missing(self, planned: Planned) -> list[str]:
        """The same, if they are not cached."""
        return [] if planned.is_cached else [self.extract(planned)]

    def extract_views(self, planned: Planned) -> list[str]:
        """Compute augmented views of the training pictures, unless there are some."""
        if planned.is_cached and find_views(self.dataset, [planned.space], self._train):
            return []
        views = ["--views", str(ADVISED_VIEWS), "--augment", ADVISED_POLICY, "--views-of", "train"]
        return [self.extract(planned, *views)]

    def train(self, head: str, planned: Planned, *more: str) -> str:
        """Train a head on features; the fewest options that choose them among all."""
        words = ["train-head", self.dataset.name, "--head", head, *more]
        return self._line(words, self._choosing(planned, "tap", "pool"))

    def scratch(self) -> list[str]:
        """Cache the pixels, unless they are there, and train a small network on them."""
        held = [(s, w) for s, w in self._held if s.backbone == PIXELS]
        words = ["train-head", self.dataset.name, "--head", "simplecnn"]
        if held:
            return [self._line(words, self._choosing(Planned(*held[0], True), "backbone"))]
        pixels = f"--backbone {PIXELS} --size {SCRATCH_SIZE}"
        return [self._extract(pixels), self._line(words, f"--backbone {PIXELS}")]

    def features(self) -> str:
        """Features of the default network, of two taps."""
        return self._extract("--tap block4_pool --tap block5_pool")

    @property
    def cache(self) -> str:
        """The option that names the cache, after a blank; empty where it is the default."""
        return "".join(f" {shlex.quote(word)}" for word in self._cache)

    def _extract(self, options: str, *more: str) -> str:
        source, shares = self.dataset.source, self.dataset.info.split
        words = ["extract", source.spec, "--name", self.dataset.name]
        if source.kind == "list" and _folder_of(source.spec) != source.root:
            words += ["--root", source.root]
        if not isinstance(shares, str) and tuple(shares) != DEFAULT_SPLIT:
            words += ["--split", ",".join(f"{share:g}" for share in shares)]
        return self._line([*words, *more], options)

    def _line(self, words: Sequence[str], options: str) -> str:
        return " ".join(filter(None, [shlex.join(["featpipe", *words, *self._cache]), options]))

    def _options(self, space: FeatureSpace, weights: str) -> dict[str, Any]:
        return {**space_options(self.dataset, space), "weights": weights}

    def _choosing(self, planned: Planned, *always: str) -> str:
        """The fewest options, ``always`` among them, that no other features of view 0 have.

        Tap and pooling are always named: a command may be run after others that add features.
        """
        wanted = self._options(planned.space, planned.weights)
        others = [self._options(s, w) for s, w in self._held]
        others = [other for other in others if other != wanted]
        names = [n for n in _BY_USE if n not in always]
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                asked = (*always, *chosen)
                if not any(all(o[n] == wanted[n] for n in asked) for o in others):
                    return " ".join(f"{flag(n)} {shlex.quote(str(wanted[n]))}" for n in asked)
        return f"--space {planned.space.id}"


_BY_USE = ("pool", "backbone", "size", "resize", "precision", "weights", *SpaceQuery.option_names())
_BY_USE = tuple(n for n in dict.fromkeys(_BY_USE) if n not in ("view", "space"))
"""Fields that choose a feature space, those that people know best first."""


class Commands:
    """The commands of every advice on one data set; making them asks the network for its taps.

    Parameters
    ----------
    write : CommandWriter
    best : TapRows or None
        The rows whose linear head is best; None where there is no network's features.
    measured : sequence of TapRows
    suffix : bool
        Whether views are for a suffix, which needs maps; else for a linear head.
    """

    def __init__(
        self,
        write: CommandWriter,
        best: TapRows | None,
        measured: Sequence[TapRows],
        *,
        suffix: bool,
    ) -> None:
        self._write, self._best, self._measured = write, best, measured
        self._suffix_views = suffix

    def __call__(self, what: Try) -> list[str]:
        """Commands in the order in which they are to be run."""
        write = self._write
        if self._best is None:
            return [write.features()]
        if what == "scratch":
            return write.scratch()
        if what in ("taps", "suffix"):
            maps = suffix_maps(write, self._best, self._measured)
            if what == "taps":
                return [write.extract(maps), f"featpipe advise {write.dataset.name}{write.cache}"]
            return [*write.extract_missing(maps), self._train_suffix(maps)]
        if what == "views":
            return self._views(self._best)
        rows = self._rows(self._best)
        if what == "pictures":
            return [write.extract(rows)]
        head = "mlp" if what == "mlp" else "logistic"
        return [*write.extract_missing(rows), write.train(head, rows)]

    def _views(self, best: TapRows) -> list[str]:
        write = self._write
        if self._suffix_views:
            base = suffix_maps(write, best, self._measured)
            train = self._train_suffix(base)
        else:
            base = self._rows(best)
            train = write.train("linear", base)
        return [*write.extract_missing(base), *write.extract_views(base), train]

    def _train_suffix(self, maps: Planned) -> str:
        return self._write.train("suffix", maps, "--top", "linear")

    def _rows(self, best: TapRows) -> Planned:
        """The rows of the best linear head, as they would be stored."""
        pooling = "avg" if best.how == MEAN else best.space.pooling
        return self._write.planned(best.space, best.weights, pooling=pooling)


def suffix_maps(write: CommandWriter, best: TapRows, measured: Sequence[TapRows]) -> Planned:
    """The maps that a suffix is trained on: those of the best tap that has layers behind it.

    That is the best tap itself unless it is the deepest; else the latest earlier tap with maps;
    else one that is not cached, with about the last block behind it; where the network cannot be
    asked for its taps, the deepest one, behind which its own classifier lies.
    """
    mine = [rows for rows in measured if rows.network == best.network]
    deepest = max(rows.depth for rows in mine)
    backbone, _ = opened(best.space.backbone)
    size = best.space.preprocessing.size
    earlier = [rows for rows in mine if rows.depth < deepest]
    # The best tap first, then those that have maps, the latest first.
    earlier.sort(key=lambda rows: (rows is not best, rows.how == STORED, -rows.depth))
    for rows in earlier:
        if rows is not best and rows.how == STORED:
            break
        if backbone is None or can_be_cut(backbone, rows.space.tap, size):
            return write.planned(rows.space, rows.weights, pooling="none")
    tap = None if backbone is None else retrained_tap(backbone, best.space.tap, size)
    return write.planned(best.space, best.weights, tap=tap or best.space.tap, pooling="none")


def _folder_of(spec: str) -> str:
    return os.path.dirname(os.path.abspath(spec))
