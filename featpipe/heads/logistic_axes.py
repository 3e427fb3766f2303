"""Principal axes of the samples, by which solvers approximate the Hessian."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SOME_AXES = 256
"""Principal axes that are computed at most."""
_ROUNDS = 2


@dataclass(frozen=True)
class Axes:
    """Principal axes of the samples.

    Attributes
    ----------
    vectors : ndarray of float32, shape (size, m), or None
        None: the coefficients' own axes.
    values : ndarray of float64, shape (m,)
        Mean square of the samples along each.
    rest : float
        Mean square along any other direction.
    """

    vectors: NDArray[np.float32] | None
    values: NDArray[np.float64]
    rest: float


def some_axes(gram: NDArray[np.float32], trace: float) -> Axes:
    """The first principal axes of a matrix of inner products, by randomised subspace iteration.

    Halko, Martinsson & Tropp, *Finding structure with randomness* (2011), algorithms 4.4 and 5.3.
    """
    size, many = len(gram), min(_SOME_AXES, len(gram) - 1)
    block = np.random.default_rng(0).standard_normal((size, many), np.float32)
    for _ in range(_ROUNDS):
        block, _ = np.linalg.qr(gram @ block)
    small = (block.T @ (gram @ block)).astype(np.float64)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    values = np.maximum(values, 0)
    rest = max(trace - float(values.sum()), 0.0) / (size - many)
    return Axes(block @ vectors.astype(np.float32), values, rest)
