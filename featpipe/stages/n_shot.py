"""Training on a few pictures per class, several times: what features are worth for little data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe.base.hardware import resolve_device
from featpipe.base.progress import Progress
from featpipe.datasets.shots import shot_ranks
from featpipe.heads import new_head
from featpipe.heads.base import Head, History
from featpipe.heads.spread import spread_of
from featpipe.specs.heads import HeadSpec
from featpipe.store.row_array import RowArray

if TYPE_CHECKING:
    from featpipe.stages.documents import NShotDocument, ShotDocument


@dataclass(frozen=True)
class Try:
    """A head of a few pictures per class.

    Attributes
    ----------
    seed : int
    head : Head
    history : History
    rows : ndarray of int64, shape (n,)
        The training rows it was trained on.
    """

    seed: int
    head: Head
    history: History
    rows: NDArray[np.intp]

    def as_json(self) -> dict[str, float]:
        """Its seed and the kept row of its history."""
        return {"seed": self.seed, **self.history.kept.as_json(self.history.axis)}


@dataclass(frozen=True)
class NShotResult:
    """Scores by number of pictures per class.

    Attributes
    ----------
    table : Path
        File that lists them, too.
    shots : list of ShotDocument
        The smallest number first.
    """

    table: Path
    shots: list[ShotDocument]

    def as_json(self) -> NShotDocument:
        """What the command prints of it."""
        return {"table": str(self.table), "shots": self.shots}


def train_n_shot(
    spec: HeadSpec,
    data: tuple[RowArray, NDArray[np.int64], RowArray, NDArray[np.int64]],
    ids: NDArray[np.uint8],
    classes: list[str],
    progress: Progress,
    *,
    prepare: Callable[[Head], None],
) -> tuple[Try, list[ShotDocument]]:
    """Train ``spec.all_tries`` heads on each of ``spec.n_shot`` pictures per class.

    Parameters
    ----------
    spec : HeadSpec
    data : tuple
        Rows and labels of train, then of validation, which is used whole.
    ids : ndarray of uint8, shape (n, 32)
        Image ids of train. With a try's seed, they decide which pictures it takes.
    classes : list of str
    progress : Progress
    prepare : callable
        Gives a new head what it needs before it is trained.

    Returns
    -------
    Try
        Of the largest number of pictures, the one of the lowest validation loss.
    list of ShotDocument
        The smallest number first.
    """
    y, counts, tries = data[1], spec.n_shot or (), spec.all_tries
    seeds = range(spec.seed, spec.seed + tries)
    ranks = {seed: shot_ranks(ids, y, seed) for seed in seeds}
    # The rank of a copy lies behind all others: each picture counts once.
    available = np.bincount(y[ranks[spec.seed] < len(y)], minlength=len(classes))
    device = resolve_device(spec.device)
    shots: list[ShotDocument] = []
    with progress(f"{spec.head}, n pictures per class", len(counts) * tries) as bar:
        for n in counts:
            best: Try | None = None
            done: list[dict[str, float]] = []
            for seed in seeds:
                rows = np.flatnonzero(ranks[seed] < min(n, len(y)))
                one = _fit(spec, data, rows, seed, classes, device, prepare)
                if best is None or _loss(one) < _loss(best):
                    best = one
                done.append(one.as_json())
                bar.advance(n=n, val_accuracy=f"{one.history.kept.val_accuracy:.2%}")
            shots.append(_shot(n, done, dict(zip(classes, available.tolist(), strict=True))))
    assert best is not None
    return best, shots


def _fit(
    spec: HeadSpec,
    data: tuple[RowArray, NDArray[np.int64], RowArray, NDArray[np.int64]],
    rows: NDArray[np.intp],
    seed: int,
    classes: list[str],
    device: str,
    prepare: Callable[[Head], None],
) -> Try:
    X, y, X_val, y_val = data
    head = new_head(spec.head, spec.params)
    head.classes_ = np.array(classes)
    prepare(head)
    few = (X.select(rows), y[rows])
    history = head.fit(*few, X_val, y_val, seed=seed, device=device, tick=lambda _: None)
    return Try(seed, head, history, rows)


def _loss(one: Try) -> float:
    return one.history.kept.selection_loss


def _shot(n: int, tries: list[dict[str, float]], available: dict[str, int]) -> ShotDocument:
    return {
        "n": n,
        "pictures": sum(min(n, count) for count in available.values()),
        "fewer": {name: count for name, count in available.items() if count < n},
        "val_accuracy": spread_of([one["val_accuracy"] for one in tries]),
        "val_loss": spread_of([one["val_loss"] for one in tries]),
        "tries": tries,
    }
