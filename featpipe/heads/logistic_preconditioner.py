"""Approximate inverses of the Hessian of a logistic regression.

The Hessian is H(V) = V + Zᵀ (cost · (diag p - p pᵀ) (Z V)), and each sample's part of it depends on
the sample's probabilities p: too much to factorise. Three approximations can be inverted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.logistic_axes import Axes

_DECISIVE = 32
"""Samples of each class whose curvature is taken as it is."""
_DECISIVE_OF_TWO = 512
"""The same for two classes and many features."""

Preconditioner = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Gradients (k, size) and of the intercepts (k,) → about H⁻¹ times them, float32."""


class CommonAxes:
    """All samples are taken to curve alike: H is 1 + μ ⊗ λ.

    μ are the eigenvalues of Σ cost · (diag p - p pᵀ) between classes, λ those of ZᵀZ / n between
    features.
    """

    def __init__(self, p: NDArray[np.float32], cost: NDArray[np.float64], axes: Axes) -> None:
        weighted = p * cost.astype(np.float32)
        if len(p) == 1:
            values = np.array([float((weighted * (1 - p)).sum(dtype=np.float64))])
            self.turn = np.ones((1, 1), np.float32)
            flat = np.array([False])
        else:
            hessian = -(weighted @ p.T).astype(np.float64)
            diagonal = np.arange(len(p))
            hessian[diagonal, diagonal] += weighted.sum(axis=1, dtype=np.float64)
            values, turn = np.linalg.eigh((hessian + hessian.T) / 2)
            self.turn = turn.astype(np.float32)
            # The same shift of all intercepts changes nothing: float32 must not blow it up.
            flat = np.abs(turn.sum(axis=0)) > 0.99 * np.sqrt(len(p))
        values = np.maximum(values, 1e-12 * float(cost.sum()))
        inside, rest = 1 / (1 + values[:, None] * axes.values), 1 / (1 + values * axes.rest)
        assert axes.vectors is not None
        self.vectors, self.rest = axes.vectors, rest.astype(np.float32)[:, None]
        self.inside = inside.astype(np.float32) - self.rest
        self.intercepts = np.where(flat, 0, 1 / values).astype(np.float32)

    def __call__(self, r: np.ndarray, rb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :data:`Preconditioner`."""
        turned = self.between_features(self.turn.T @ r)
        return self.turn @ turned, self.turn @ ((self.turn.T @ rb) * self.intercepts)

    def between_features(self, turned: np.ndarray) -> np.ndarray:
        """(1 + μ λ)⁻¹ times gradients (k, size) between whose classes H is diagonal."""
        along = turned @ self.vectors
        along *= self.inside
        return turned * self.rest + along @ self.vectors.T


class DecisiveSamples:
    """For two classes: samples are taken to curve alike, but the decisive ones as they are.

    Decisive are the samples T with the largest w = cost · p (1 - p), at most
    :data:`_DECISIVE_OF_TWO`, whose curvature w ‖z‖² alone is above that of the penalty, which is 1.
    H is B + Z_Tᵀ w_T Z_T, where B is that of :class:`CommonAxes` for the others. With D = B⁻¹,
    H⁻¹ = D - D Z_Tᵀ (w_T⁻¹ + Z_T D Z_Tᵀ)⁻¹ Z_T D.

    Parameters
    ----------
    p : ndarray of float32, shape (1, n)
    cost : ndarray of float64, shape (n,)
    axes : Axes
    Z : ndarray of float32, shape (n, size)
    squares : ndarray of float32, shape (n,)
        ‖z‖² of each sample.
    """

    def __init__(
        self,
        p: NDArray[np.float32],
        cost: NDArray[np.float64],
        axes: Axes,
        Z: NDArray[np.float32],
        squares: NDArray[np.float32],
    ) -> None:
        w = (p[0] * (1 - p[0])).astype(np.float64) * cost
        top = np.argsort(-w, kind="stable")[:_DECISIVE_OF_TWO]
        top = np.sort(top[w[top] * squares[top] > 1])
        others = p.copy()
        others[:, top] = 0
        self.others = CommonAxes(others, cost, axes)
        self.intercept = np.float32(1 / max(w.sum(), 1e-12 * cost.sum(), 1e-300))
        decisive = Z[top]
        self.mapped = self.others.between_features(decisive)
        within = (self.mapped @ decisive.T).astype(np.float64)
        within[np.diag_indices(len(top))] += 1 / w[top]
        self.inverse = np.linalg.inv((within + within.T) / 2).astype(np.float32)

    def __call__(self, r: np.ndarray, rb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :data:`Preconditioner`."""
        z = self.others.between_features(r)
        z -= ((r @ self.mapped.T) @ self.inverse) @ self.mapped
        return z, rb * self.intercept


class ClassByClass:
    """Classes are taken to be independent, the samples that curve most as they are.

    Of class c, H is 1 + Z_Tᵀ w_T Z_T + μ λ: T are the :data:`_DECISIVE` samples with the largest
    w = cost · p (1 - p), μ is the sum of the others' w, and λ is the mean square along each axis.
    Once most samples are classified with confidence, few decide about each class. The inverse is
    Woodbury's: with D = (1 + μ λ)⁻¹, H⁻¹ = D - D Z_Tᵀ (w_T⁻¹ + Z_T D Z_Tᵀ)⁻¹ Z_T D.

    Parameters
    ----------
    p : ndarray of float32, shape (k, n)
    cost : ndarray of float64, shape (n,)
    axes : Axes
        The coefficients' own.
    Z : ndarray of float32, shape (n, size)
        The samples on these axes.
    """

    def __init__(
        self,
        p: NDArray[np.float32],
        cost: NDArray[np.float64],
        axes: Axes,
        Z: NDArray[np.float32],
    ) -> None:
        w = p * (1 - p)
        w *= cost.astype(np.float32)
        many = min(_DECISIVE, w.shape[1])
        top = np.argpartition(w, w.shape[1] - many, axis=1)[:, -many:]
        w_top = np.take_along_axis(w, top, axis=1).astype(np.float64)
        total = w.sum(axis=1, dtype=np.float64)
        rest = np.maximum(total - w_top.sum(axis=1), 0)
        self.D = (1 / (1 + rest[:, None] * axes.values)).astype(np.float32)
        self.Z = Z[top]
        inner = (self.Z * self.D[:, None]) @ self.Z.mT
        least = 1e-12 * max(float(cost.sum()), 1e-300)
        within = inner.astype(np.float64)
        diagonal = np.arange(many)
        within[:, diagonal, diagonal] += 1 / np.maximum(w_top, least)
        self.inverse = np.linalg.inv(within).astype(np.float32)
        self.intercepts = (1 / np.maximum(total, least)).astype(np.float32)

    def __call__(self, r: np.ndarray, rb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See :data:`Preconditioner`."""
        z = self.D * r
        known = self.inverse @ (self.Z @ z[..., None])
        z -= self.D * (known.mT @ self.Z)[:, 0]
        zb = self.intercepts * rb
        if len(z) > 1:
            # The same shift of all classes changes no probability.
            z, zb = z - z.mean(axis=0), zb - zb.mean()
        return z, zb
