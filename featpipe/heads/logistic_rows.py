"""Samples in memory as float32, for the solver that goes through them for each C anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_ALL_AXES = 1024
"""Dimensions up to which all principal axes are computed."""
_SOME_AXES = 512
"""Principal axes that are computed beyond that."""
_ROUNDS = 2
_COLUMNS = 1024
"""Columns whose inner products are summed in float32."""
_BLOCK = 2**22
"""Numbers that are converted to float64 at a time."""


@dataclass(frozen=True)
class Axes:
    """Principal axes of the samples.

    Attributes
    ----------
    vectors : ndarray of float32, shape (dimensions, m)
    values : ndarray of float64, shape (m,)
        Mean square of the samples along each.
    rest : float
        Mean square along any other direction.
    """

    vectors: NDArray[np.float32]
    values: NDArray[np.float64]
    rest: float


class Rows(Protocol):
    """n samples and a space of coefficients that map to logits; each coefficient has ``size``.

    Products keep the dtype of what they are given: float64 is exact, float32 takes half as long.
    """

    n: int
    size: int

    def logits(self, coefficients: np.ndarray) -> np.ndarray:
        """(k, size) → (k, n)."""

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """(k, n) → (k, size)."""

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """Inner product of a gradient with coefficients of which the logits are known."""

    def square(self, gradient: np.ndarray) -> float:
        """Squared norm of a float32 gradient."""

    def axes(self) -> Axes:
        """The principal axes, in coordinates of the coefficients."""

    def features(self, coefficients: np.ndarray) -> NDArray[np.float64]:
        """Coefficients (k, size) → coefficients of the d features, (k, d)."""


class FeatureRows:
    """Samples whose coefficients are those of the features.

    Parameters
    ----------
    Z : ndarray of float32, shape (n, d)
        Centred samples.
    """

    def __init__(self, Z: NDArray[np.float32]) -> None:
        self.Z = Z
        self.n, self.size = Z.shape

    def logits(self, coefficients: np.ndarray) -> np.ndarray:
        """See :class:`Rows`."""
        if coefficients.dtype == np.float32:
            return coefficients @ self.Z.T
        return np.concatenate([coefficients @ wide.T for _, wide in self._wide()], axis=1)

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """See :class:`Rows`."""
        if residuals.dtype == np.float32:
            return residuals @ self.Z
        total = np.zeros((len(residuals), self.size))
        for part, wide in self._wide():
            total += residuals[:, part] @ wide
        return total

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, step)

    def square(self, gradient: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, gradient)

    def axes(self) -> Axes:
        """See :class:`Rows`."""
        trace = float(np.einsum("ij,ij->", self.Z, self.Z, dtype=np.float64)) / self.n
        if self.size <= _ALL_AXES:
            gram = np.zeros((self.size, self.size))
            for _, wide in self._wide():
                gram += wide.T @ wide
            return _all_axes(gram / self.n)
        return _some_axes(lambda block: self.Z.T @ (self.Z @ block), self.size, self.n, trace)

    def features(self, coefficients: np.ndarray) -> NDArray[np.float64]:
        """See :class:`Rows`."""
        return coefficients.astype(np.float64)

    def _wide(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        return _wide_blocks(self.Z)


class GramRows:
    """Samples whose coefficients are weights of the samples; for fewer samples than features.

    The solution lies in the span of the samples: it is Zᵀ a, its logits are Z Zᵀ a. So n × n inner
    products take the place of the samples, and a gradient with respect to the weights Zᵀ a is held
    as the coefficients r with which it is Zᵀ r. Its own coefficients are the residuals plus a: no
    product is needed for them, hence one product in an iteration instead of two.

    Parameters
    ----------
    Z : ndarray of float32, shape (n, d)
        Centred samples.
    """

    def __init__(self, Z: NDArray[np.float32]) -> None:
        self.Z = Z
        self.n = self.size = len(Z)
        # Sums over all columns in float32 would lose a digit.
        gram = np.zeros((self.n, self.n))
        for start in range(0, Z.shape[1], _COLUMNS):
            part = Z[:, start : start + _COLUMNS]
            gram += part @ part.T
        self.gram = gram.astype(np.float32)

    def logits(self, coefficients: np.ndarray) -> np.ndarray:
        """See :class:`Rows`."""
        if coefficients.dtype == np.float32:
            return coefficients @ self.gram
        parts = [coefficients @ wide.T for _, wide in _wide_blocks(self.gram)]
        return np.concatenate(parts, axis=1)

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """See :class:`Rows`."""
        return residuals.copy()

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, logit_step)

    def square(self, gradient: np.ndarray) -> float:
        """See :class:`Rows`."""
        return max(_dot(gradient, self.logits(gradient)), 0.0)

    def axes(self) -> Axes:
        """See :class:`Rows`."""
        if self.n <= _ALL_AXES:
            return _all_axes(self.gram.astype(np.float64) / self.n)
        trace = float(np.trace(self.gram, dtype=np.float64)) / self.n
        return _some_axes(lambda block: self.gram @ block, self.n, self.n, trace)

    def features(self, coefficients: np.ndarray) -> NDArray[np.float64]:
        """See :class:`Rows`."""
        total = np.zeros((len(coefficients), self.Z.shape[1]))
        wide = coefficients.astype(np.float64)
        for part, rows in _wide_blocks(self.Z):
            total += wide[:, part] @ rows
        return total


def _wide_blocks(matrix: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    step = max(1, _BLOCK // max(matrix.shape[1], 1))
    for start in range(0, len(matrix), step):
        part = slice(start, start + step)
        yield part, matrix[part].astype(np.float64)


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Inner product, summed in float32 only along rows."""
    return float(np.einsum("ij,ij->i", a, b).sum(dtype=np.float64))


def _all_axes(gram: NDArray[np.float64]) -> Axes:
    values, vectors = np.linalg.eigh(gram)
    return Axes(vectors.astype(np.float32), np.maximum(values, 0), 0.0)


def _some_axes(product, size: int, n: int, trace: float) -> Axes:  # type: ignore[no-untyped-def]
    """The first principal axes by randomised subspace iteration.

    Halko, Martinsson & Tropp, *Finding structure with randomness* (2011), algorithms 4.4 and 5.3.
    """
    block = np.random.default_rng(0).standard_normal((size, _SOME_AXES), np.float32)
    for _ in range(_ROUNDS):
        block, _ = np.linalg.qr(product(block) / np.float32(n))
    small = block.T @ (product(block) / np.float32(n))
    values, vectors = np.linalg.eigh((small + small.T).astype(np.float64) / 2)
    values = np.maximum(values, 0)
    rest = max(trace - float(values.sum()), 0.0) / (size - _SOME_AXES)
    return Axes(block @ vectors.astype(np.float32), values, rest)
