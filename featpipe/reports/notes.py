"""What a reader of an evaluation should keep in mind, as sentences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.base.ids import sortable
from featpipe.base.text import some_of
from featpipe.reports.documents import Metrics
from featpipe.runs.trained_head import TrainedHead

FEW_PICTURES = 5
"""A class with fewer pictures than this is named: one picture more or less changes its scores."""
_SHOWN_CLASSES = 5


def no_test_split(dataset: str) -> str:
    """Why another split than test was evaluated although nobody asked for it."""
    return f"'{dataset}' has no labelled test split, so val is evaluated"


def without_score_maps(n: int) -> str:
    """That ``n`` of the worst mistakes have no score map although the head has maps."""
    if n == 1:
        return "no score map for 1 of the worst mistakes: its picture is missing or changed"
    return f"no score maps for {n} of the worst mistakes: their pictures are missing or changed"


def on_own_pictures(trained: TrainedHead, split: str, n: int, seen: int) -> str:
    """What the head had to do with the pictures of its own data set.

    Parameters
    ----------
    trained : TrainedHead
    split : str
        The evaluated split: ``train``, ``val`` or ``all``.
    n, seen : int
        How many pictures are evaluated, and how many of them the head was trained on or
        validated with; not zero.
    """
    those = "these pictures" if seen == n else f"{seen} of these {n} pictures"
    if split == "train":
        return f"the head was trained on {those}: the scores say nothing about new pictures"
    if split != "val":
        return f"the head was trained on or validated with {those}: the scores are too high"
    chosen = _chosen_by_validation(trained)
    if not chosen:
        return f"the head was validated with {those}, but they chose nothing of it"
    return f"{those} chose {chosen}: the scores are somewhat too high"


def _chosen_by_validation(trained: TrainedHead) -> str:
    """What the lowest validation loss selected; empty if nothing."""
    history, chosen = trained.history, []
    if history.kept.cv_loss is None:
        if "sweep" in trained.info or "n_shot" in trained.info:
            chosen.append("this head among several")
        if history.axis == "epoch":
            chosen.append("the epoch")
        elif len(history.rows) > 1:
            chosen.append(history.axis)
    if trained.head.temperature_ != 1.0:
        chosen.append("the temperature")
    return ", ".join(chosen[:-1]) + " and " * (len(chosen) > 1) + "".join(chosen[-1:])


def on_pictures(metrics: Metrics, ids: NDArray[np.uint8], *, bounds_error: bool) -> list[str]:
    """What the scored pictures are too few, or too much alike, to say.

    Parameters
    ----------
    metrics : Metrics
    ids : ndarray of uint8, shape (n, 32)
        Image ids of the scored pictures.
    bounds_error : bool
        Whether scores on these pictures say anything of new ones.
    """
    different = len(np.unique(sortable(ids)))
    copies = metrics["n"] - different
    said = [*_few(metrics), *_missing(metrics)]
    if copies:
        are, count = ("is a copy", "counts") if copies == 1 else ("are copies", "count")
        said.append(
            f"{copies} of these {metrics['n']} pictures {are} of others among them and {count} "
            "again"
        )
    if bounds_error and metrics["accuracy"] == 1.0:
        pictures = f"{different} {'different ' if copies else ''}picture{'s' * (different > 1)}"
        # Copies stand or fall together, so they count once here.
        bound = largest_error_rate(different)
        said.append(
            f"no mistake in {pictures}: the error rate may still be up to {100 * bound:.1f} %"
        )
    return said


def largest_error_rate(n: int) -> float:
    """Exact one-sided 95 % bound on the error rate after no mistake in n (Clopper-Pearson 1934)."""
    return float(1 - 0.05 ** (1 / n))


def _few(metrics: Metrics) -> list[str]:
    """Which classes have pictures, but fewer than :data:`FEW_PICTURES`; the fewest first."""
    counts = sorted(
        (row["support"], row["class"])
        for row in metrics["per_class"]
        if 0 < row["support"] < FEW_PICTURES
    )
    if not counts:
        return []
    named = ", ".join(f"{name} {count}" for count, name in counts[:_SHOWN_CLASSES])
    more = ", …" * (len(counts) > _SHOWN_CLASSES)
    have = "1 class has" if len(counts) == 1 else f"{len(counts)} classes have"
    say = "its scores say" if len(counts) == 1 else "their scores say"
    return [f"{have} fewer than {FEW_PICTURES} pictures here ({named}{more}): {say} little"]


def _missing(metrics: Metrics) -> list[str]:
    """Which classes of the head have no picture."""
    missing = [row["class"] for row in metrics["per_class"] if not row["support"]]
    if not missing:
        return []
    return [f"there is no picture of {some_of(missing)} here, and so no ROC-AUC"]
