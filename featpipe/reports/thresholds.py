"""What a head would be worth if it answered only where it is sure: counts by threshold."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

STEPS = 100
"""Thresholds are 0, 0.01, …, 1."""


class ThresholdCounts(TypedDict):
    """Pictures by the probability of one answer.

    Bin i of ``given`` counts the pictures for which the answer's probability p is at least i / 100
    and less than (i + 1) / 100 (the last: 1); ``right`` those of them for which it is right. The
    sum from i on is what a threshold of i / 100 lets through. ``of`` is the number of pictures
    for which the answer would be right.
    """

    of: int
    given: list[int]
    right: list[int]


def threshold_counts(
    y: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> list[ThresholdCounts]:
    """Counts that give precision, recall and coverage at every threshold.

    Their size depends on the number of classes alone, not on that of pictures.

    Parameters
    ----------
    y : ndarray of int64, shape (n,)
        True class indices.
    probabilities : ndarray of float64, shape (n, classes)

    Returns
    -------
    list of ThresholdCounts
        First for the likeliest class of every picture, then for every class against the rest.
    """
    likeliest = probabilities.argmax(axis=1)
    chosen = probabilities[np.arange(len(y)), likeliest]
    first = _counts(chosen, likeliest == y)
    every = [_counts(probabilities[:, i], y == i) for i in range(probabilities.shape[1])]
    return [{**first, "of": len(y)}, *every]


def _counts(p: NDArray[np.float64], is_right: NDArray[np.bool_]) -> ThresholdCounts:
    edges = np.arange(STEPS + 1) / STEPS
    # Rounding may leave a probability a little outside of 0 to 1.
    bins = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, STEPS)
    return {
        "of": int(is_right.sum()),
        "given": np.bincount(bins, minlength=STEPS + 1).tolist(),
        "right": np.bincount(bins[is_right], minlength=STEPS + 1).tolist(),
    }
