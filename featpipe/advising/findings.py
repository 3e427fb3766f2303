"""What probes say together: deepest tap against earlier ones, gap, learning curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from featpipe.advising.documents import (
    Amount,
    Content,
    CurvePoint,
    DoublingGain,
    GapFact,
    TapComparison,
    TapFact,
    deciding,
)
from featpipe.advising.linear_probe import Probe, mean_interval
from featpipe.reports.paired import mcnemar

FEWEST_PROVABLE = 6
"""Pictures by which two heads must differ before McNemar's exact test calls it more than chance:
1/2 ** 6, twice, is the first below 5 %."""
MORE_DATA_GAIN = 0.01
"""Accuracy that the second half of train must bring for data to count as little: doubling the
pictures is work, and one point is the least that is worth it."""

KeyT = TypeVar("KeyT")


def compare_taps(deepest: str, earlier: str, a: Probe, b: Probe) -> TapComparison:
    """The deepest tap (``a``) against an earlier one (``b``)."""
    only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    loss = a.loss - b.loss
    return {
        "deepest": deepest,
        "earlier": earlier,
        "accuracy_difference": (only_a - only_b) / len(loss),
        "only_deepest_right": only_a,
        "only_earlier_right": only_b,
        "p_value": mcnemar(only_a, only_b),
        "log_loss_difference": float(loss.mean()),
        "log_loss_difference_ci95": mean_interval(loss),
    }


def content_of(comparisons: Sequence[TapComparison]) -> Content:
    """Whether the deepest tap is the best one beyond chance, or an earlier one is.

    The best of the earlier taps decides, by the paired interval of the log-loss: it sees how sure
    each answer is, so it needs fewer pictures than accuracy does.
    """
    if not comparisons:
        return "unknown"
    low, high = deciding(comparisons)["log_loss_difference_ci95"]
    if high < 0:
        return "similar"
    return "different" if low > 0 else "undecided"


def best_of(facts: Mapping[KeyT, TapFact]) -> KeyT:
    """The key of the rows with the lowest validation loss."""
    return min(facts, key=lambda key: facts[key]["val_log_loss"])


def gap_of(tap: TapFact, found: Probe) -> GapFact:
    """How much better a head does on the pictures that it was trained on."""
    return {
        "tap": tap["tap"],
        "rows": tap["rows"],
        "train_accuracy": tap["train_accuracy"],
        "val_accuracy": tap["val_accuracy"],
        "gap": tap["train_accuracy"] - tap["val_accuracy"],
        "mistakes": int((~found.correct).sum()),
    }


def curve_point(share: float, pictures: int, draws: Sequence[Probe]) -> CurvePoint:
    """One share of train, of which the pictures were chosen several times."""
    accuracies = [float(draw.correct.mean()) for draw in draws]
    return {
        "share": share,
        "pictures": pictures,
        "val_accuracy": float(np.mean(accuracies)),
        "val_log_loss": float(np.mean([draw.loss.mean() for draw in draws])),
        "draws": accuracies,
    }


def gain_of(half: Sequence[Probe], whole: Probe) -> DoublingGain:
    """All of train against half of it, paired by validation picture.

    The interval covers the chance of the validation pictures and not that of the training ones,
    which the mean over the draws of the half reduces.
    """
    accuracy = whole.correct - np.mean([probe.correct for probe in half], axis=0)
    loss = whole.loss - np.mean([probe.loss for probe in half], axis=0)
    return {
        "accuracy": float(accuracy.mean()),
        "accuracy_ci95": mean_interval(accuracy),
        "log_loss": float(loss.mean()),
        "log_loss_ci95": mean_interval(loss),
    }


def amount_of(gain: DoublingGain | None) -> Amount:
    """Whether the learning curve still rises at its end: by a point or more, beyond chance.

    As for the content, the paired interval of the log-loss decides what is chance.
    """
    if gain is None:
        return "unknown"
    if gain["accuracy"] < MORE_DATA_GAIN:
        return "enough"
    return "little" if gain["log_loss_ci95"][1] < 0 else "undecided"
