"""What a reader of an evaluation should keep in mind, as sentences."""

from __future__ import annotations

from featpipe.runs.trained_head import TrainedHead


def no_test_split(dataset: str) -> str:
    """Why another split than test was evaluated although nobody asked for it."""
    return f"'{dataset}' has no labelled test split, so val is evaluated"


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
