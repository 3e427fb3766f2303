"""Temperature scaling: one number that makes probabilities fit how often a head is right."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import Head, blocks_of, softmax

_MAX_STEPS = 200
_TOLERANCE = 1e-10
"""Relative step of 1 / T at which the search ends."""


def logits_of(head: Head, X: Any) -> NDArray[np.float64]:
    """Logits of feature rows (n, …) before they are divided by a temperature: (n, classes)."""
    blocks = [head.logits(head.standardise(block)).astype(np.float64) for block in blocks_of(X)]
    return np.concatenate(blocks)


def best_temperature(logits: NDArray[np.float64], y: NDArray[np.int64]) -> float | None:
    """The temperature T for which softmax(logits / T) has the lowest log-loss (Guo et al. 2017).

    Parameters
    ----------
    logits : ndarray of float64, shape (n, classes)
    y : ndarray of int64, shape (n,)
        True class indices.

    Returns
    -------
    float or None
        None if no temperature is best: if every row is classified correctly, the loss falls for
        ever as T falls; if the logits say less than equal probabilities, as T grows.
    """
    truth = logits[np.arange(len(y)), y]
    is_never_best = (truth >= logits.max(axis=1)).all() or truth.mean() <= logits.mean()
    if is_never_best:
        return None
    # The log-loss is convex in 1 / T. Newton's method finds the root of its slope, by bisection
    # where a step would leave what is known to hold the root.
    low, high, inverse = 0.0, np.inf, 1.0
    for _ in range(_MAX_STEPS):
        slope, curvature = _derivatives(logits, truth, inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else np.inf
        if not low < following < high:
            following = 2 * inverse if np.isinf(high) else (low + high) / 2
        step, inverse = abs(following - inverse), following
        if step <= _TOLERANCE * inverse:
            break
    return 1 / inverse


def _derivatives(
    logits: NDArray[np.float64], truth: NDArray[np.float64], inverse: float
) -> tuple[float, float]:
    """First and second derivative of the mean log-loss by 1 / T."""
    share = softmax(inverse * logits)
    mean = (share * logits).sum(axis=1)
    variance = (share * (logits - mean[:, None]) ** 2).sum(axis=1)
    return float((mean - truth).mean()), float(variance.mean())
