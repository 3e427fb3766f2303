"""Standardised samples in as few dimensions as they span: rotated to their principal axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import blocks_of
from featpipe.heads.logistic_problem import DenseMatrix, Matrix

MAX_ROTATED = 5000
"""Samples or features up to which rotating saves more time than its eigenvectors cost."""
MAX_DENSE_BYTES = 2 * 2**30
"""Samples that need more memory are read again in every iteration."""
_COLUMNS = 2**12
"""Feature columns that are converted to float64 at a time."""
_CACHED = 2**17
"""Numbers that are standardised at a time."""

Standardise = Callable[[np.ndarray], NDArray[np.float32]]
"""Rows (n, …) → centred and scaled (n, d)."""
Back = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps the solver's coefficients (…, r) back to coefficients of the features (…, d)."""


def reduced(standardise: Standardise, X: Any) -> tuple[Matrix, Back]:
    """Standardised samples (n, r), rotated if that is cheaper, and the map back."""
    n, d = len(X), int(np.prod(X.shape[1:]))
    if n < d and n <= MAX_ROTATED:
        return _reduced_to_samples(held(standardise, X), n, d)
    if d <= MAX_ROTATED:
        gram = np.zeros((d, d))
        for block in blocks_of(X):
            Z = standardise(block).astype(np.float64)
            gram += Z.T @ Z
        power, axes = _principal(gram)
        rows = _MappedMatrix(standardise, X, power, axes)
    else:
        power = np.zeros(d)
        for block in blocks_of(X):
            standardised = standardise(block)
            power += np.einsum("ij,ij->j", standardised, standardised, dtype=np.float64)
        rows = _MappedMatrix(standardise, X, power)
    if 8 * n * len(power) > MAX_DENSE_BYTES:
        return rows, rows.back
    Z, start = np.empty(rows.shape), 0
    for block in rows.blocks():
        Z[start : start + len(block)] = block
        start += len(block)
    return DenseMatrix(Z), rows.back


def held(standardise: Standardise, X: Any) -> NDArray[np.float32]:
    """All standardised samples, (n, d)."""
    Z = np.empty((len(X), int(np.prod(X.shape[1:]))), np.float32)
    start, step = 0, max(1, _CACHED // max(Z.shape[1], 1))
    for block in blocks_of(X):
        # Several passes go over the numbers: a few rows at a time stay in the processor's cache.
        for few in range(0, len(block), step):
            rows = block[few : few + step]
            Z[start : start + len(rows)] = standardise(rows)
            start += len(rows)
    return Z


def _reduced_to_samples(Z: NDArray[np.float32], n: int, d: int) -> tuple[Matrix, Back]:
    """:func:`reduced` for fewer samples than features, from the samples' Gram matrix."""
    # Z Zᵀ = U Λ Uᵀ, so Z = (U √Λ) Vᵀ with V = Zᵀ U / √Λ, and ‖V w‖ = ‖w‖.
    gram = np.zeros((n, n))
    parts = [slice(start, start + _COLUMNS) for start in range(0, d, _COLUMNS)]
    for part in parts:
        columns = Z[:, part].astype(np.float64)
        gram += columns @ columns.T
    values, vectors = _principal(gram)
    root = np.sqrt(values)

    def back(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        dual = (coefficients / root) @ vectors.T
        wide = [dual @ Z[:, part].astype(np.float64) for part in parts]
        return np.concatenate(wide, axis=-1)

    return DenseMatrix(vectors * root), back


class _MappedMatrix:
    """Standardised rows, projected on ``axes`` (d, r) if given; every product reads them again."""

    def __init__(
        self,
        standardise: Standardise,
        X: Any,
        power: NDArray[np.float64],
        axes: NDArray[np.float64] | None = None,
    ) -> None:
        self._standardise, self._X, self._axes = standardise, X, axes
        self.shape, self.power = (len(X), len(power)), power

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """Consecutive blocks of rows, (b, r) float64."""
        for block in blocks_of(self._X):
            Z = self._standardise(block).astype(np.float64)
            yield Z if self._axes is None else Z @ self._axes

    def back(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :data:`Back`."""
        return coefficients if self._axes is None else coefficients @ self._axes.T

    def logits(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`featpipe.heads.logistic_problem.Matrix`."""
        return np.concatenate([weights @ Z.T for Z in self.blocks()], axis=1)

    def gradients(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`featpipe.heads.logistic_problem.Matrix`."""
        total, start = np.zeros((len(residuals), self.shape[1])), 0
        for Z in self.blocks():
            total += residuals[:, start : start + len(Z)] @ Z
            start += len(Z)
        return total


def _principal(
    gram: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of a Gram matrix above the rounding error, and their eigenvectors."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 0) * len(gram) * np.finfo(np.float64).eps
    return values[kept], vectors[:, kept]
