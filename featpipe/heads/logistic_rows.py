"""Samples in memory as float32, for the solver that goes through them for each C anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.logistic_axes import Axes, some_axes

_ALL_AXES = 1024
"""Dimensions up to which all principal axes are computed."""
_SOME_ROWS = 2048
"""Samples from which they are computed."""
_COLUMNS = 1024
"""Columns whose inner products are summed in float32."""
_FEW = 4
"""Rows of coefficients up to which a product takes less time than reading the samples."""
_CACHED = 2**20
"""Numbers of samples that stay in the processor's cache."""
_BLOCK = 2**22
"""Numbers that are converted to float64 at a time."""


ALL = slice(None)


class Rows(Protocol):
    """n samples and a space of coefficients that map to logits; each coefficient has ``size``.

    Products keep the dtype of what they are given: float64 is exact, float32 takes half as long.
    """

    n: int
    size: int
    through_logits: bool
    """Whether inner products need the logits of coefficients, and gradients no product."""

    def logits(self, coefficients: np.ndarray, part: slice = ALL) -> np.ndarray:
        """(k, size) → (k, n), or of some samples."""

    def gradients(self, residuals: np.ndarray, part: slice = ALL) -> np.ndarray:
        """(k, n) → (k, size), or the share of some samples, from their residuals."""

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """Inner product of a gradient with coefficients of which the logits are known."""

    def square(self, gradient: np.ndarray) -> float:
        """Squared norm of a float32 gradient."""

    def parts(self, k: int) -> Iterator[slice]:
        """Samples whose logits and gradients are computed together, for k rows of coefficients."""

    def axes(self) -> Axes:
        """The principal axes, in coordinates of the coefficients."""

    def features(self, coefficients: np.ndarray) -> NDArray[np.float64]:
        """Coefficients (k, size) → coefficients of the d features, (k, d)."""


class FeatureRows:
    """Samples whose coefficients are those of the features, rotated where they are few.

    Parameters
    ----------
    Z : ndarray of float32, shape (n, d)
        Centred samples.
    """

    through_logits = False

    def __init__(self, Z: NDArray[np.float32]) -> None:
        self.Z, self.turn = Z, None
        self.n, self.size = Z.shape
        if self.size <= _ALL_AXES:
            gram = np.zeros((self.size, self.size))
            for _, wide in self._wide():
                gram += wide.T @ wide
            self.turn = np.linalg.eigh(gram)[1].astype(np.float32)
            self.Z = Z @ self.turn
        self.squares = np.einsum("ij,ij->i", self.Z, self.Z)

    def logits(self, coefficients: np.ndarray, part: slice = ALL) -> np.ndarray:
        """See :class:`Rows`."""
        if coefficients.dtype == np.float32:
            return coefficients @ self.Z[part].T
        return np.concatenate([coefficients @ wide.T for _, wide in self._wide()], axis=1)

    def gradients(self, residuals: np.ndarray, part: slice = ALL) -> np.ndarray:
        """See :class:`Rows`."""
        if residuals.dtype == np.float32:
            return residuals @ self.Z[part]
        total = np.zeros((len(residuals), self.size))
        for block, wide in self._wide():
            total += residuals[:, block] @ wide
        return total

    def parts(self, k: int) -> Iterator[slice]:
        """See :class:`Rows`."""
        if k > _FEW:
            yield ALL
            return
        # Reading the samples takes longest: what is in the processor's cache is used twice.
        step = max(1, _CACHED // max(self.size, 1))
        for start in range(0, self.n, step):
            yield slice(start, start + step)

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, step)

    def square(self, gradient: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, gradient)

    def axes(self) -> Axes:
        """See :class:`Rows`."""
        if self.turn is not None:
            power = np.zeros(self.size)
            for _, wide in self._wide():
                power += np.einsum("ij,ij->j", wide, wide)
            return Axes(None, power / self.n, 0.0)
        total = float(self.squares.sum(dtype=np.float64)) / self.n
        # Of evenly spaced rows Y: Y Yᵀ / m = V Λ Vᵀ, and the axes are Yᵀ V / √(m Λ).
        some = self.Z[np.linspace(0, self.n - 1, min(self.n, _SOME_ROWS)).astype(np.int64)]
        found = some_axes(some @ some.T / np.float32(len(some)), total)
        assert found.vectors is not None
        root = np.sqrt(len(some) * np.maximum(found.values, 1e-9 * total))
        vectors = some.T @ (found.vectors / root.astype(np.float32))
        rest = max(total - float(found.values.sum()), 0.0)
        return Axes(vectors, found.values, rest / (self.size - len(found.values)))

    def features(self, coefficients: np.ndarray) -> NDArray[np.float64]:
        """See :class:`Rows`."""
        wide = coefficients.astype(np.float64)
        return wide if self.turn is None else wide @ self.turn.T

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

    through_logits = True

    def __init__(self, Z: NDArray[np.float32]) -> None:
        self.Z = Z
        self.n = self.size = len(Z)
        # Sums over all columns in float32 would lose a digit.
        gram = np.zeros((self.n, self.n))
        for start in range(0, Z.shape[1], _COLUMNS):
            part = Z[:, start : start + _COLUMNS]
            gram += part @ part.T
        self.gram = gram.astype(np.float32)

    def logits(self, coefficients: np.ndarray, part: slice = ALL) -> np.ndarray:
        """See :class:`Rows`."""
        if coefficients.dtype == np.float32:
            return coefficients @ self.gram[:, part]
        # Inner products rounded to float32 would be those of other samples.
        weights = self.features(coefficients)
        return np.concatenate([weights @ wide.T for _, wide in _wide_blocks(self.Z)], axis=1)

    def gradients(self, residuals: np.ndarray, part: slice = ALL) -> np.ndarray:
        """See :class:`Rows`."""
        return residuals.copy()

    def parts(self, k: int) -> Iterator[slice]:
        """See :class:`Rows`."""
        yield ALL

    def inner(self, gradient: np.ndarray, step: np.ndarray, logit_step: np.ndarray) -> float:
        """See :class:`Rows`."""
        return _dot(gradient, logit_step)

    def square(self, gradient: np.ndarray) -> float:
        """See :class:`Rows`."""
        return max(_dot(gradient, self.logits(gradient)), 0.0)

    def axes(self) -> Axes:
        """See :class:`Rows`."""
        if self.n <= _ALL_AXES:
            values, vectors = np.linalg.eigh(self.gram.astype(np.float64) / self.n)
            return Axes(vectors.astype(np.float32), np.maximum(values, 0), 0.0)
        gram = self.gram / np.float32(self.n)
        return some_axes(gram, float(np.trace(gram, dtype=np.float64)))

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
