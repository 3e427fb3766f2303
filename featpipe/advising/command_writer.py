"""Commands on one data set, written with the fewest options that mean what is planned."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.pixels import PIXELS
from featpipe.base.cache import default_cache
from featpipe.base.space import FeatureSpace
from featpipe.base.text import escape
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.source_command import UNKNOWN_SOURCE, extract_words
from featpipe.datasets.spaces import extract_options, space_options, spaces_of
from featpipe.datasets.views import ADVISED_POLICY, ADVISED_VIEWS, Views, find_views
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
        if self._views_of(planned):
            return []
        views = ["--views", str(ADVISED_VIEWS), "--augment", ADVISED_POLICY, "--views-of", "train"]
        return [self.extract(planned, *views)]

    def on_views(self, planned: Planned) -> list[str]:
        """Options that train on the views which there are, or which :meth:`extract_views` makes."""
        found = self._views_of(planned)
        drawn = [views.augmentation for views in found]
        policies = [one.policy for one in drawn]
        is_advised = not drawn or ADVISED_POLICY in policies
        policy = ADVISED_POLICY if is_advised else policies[0]
        words = ["--augment", policy]
        if policies.count(policy) > 1:
            words += ["--augment-seed", str(drawn[policies.index(policy)].seed)]
        return words

    def off_views(self, planned: Planned) -> list[str]:
        """Options that train without views, where there are some."""
        return ["--no-views"] if self._views_of(planned) else []

    def more_pictures(self) -> str:
        """A comment: where to put pictures before they are extracted."""
        source = self.dataset.source
        where = escape(source.spec) or UNKNOWN_SOURCE
        return f"# put more pictures into {where} first"

    def _views_of(self, planned: Planned) -> list[Views]:
        if not planned.is_cached:
            return []
        return find_views(self.dataset, [planned.space], self._train)

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
        return self._line([*extract_words(self.dataset), *more], options)

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
