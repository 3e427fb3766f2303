"""What a logistic regression is made of: the matrix of samples, and the loss of its logits."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Matrix(Protocol):
    """The samples: n rows of r centred features.

    Products with the matrix dominate the solver's run time.

    Attributes
    ----------
    shape : (n, r)
    power : ndarray of float64, shape (r,)
        Sum of squares of each feature.
    """

    shape: tuple[int, int]
    power: NDArray[np.float64]

    def logits(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(q, r) → (q, n)."""

    def gradients(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """(q, n) → (q, r)."""


class DenseMatrix:
    """A matrix in memory.

    Parameters
    ----------
    Z : ndarray of float64, shape (n, r)
        Centred samples.
    """

    def __init__(self, Z: NDArray[np.float64]) -> None:
        self.Z = Z
        self.shape: tuple[int, int] = Z.shape
        self.power = np.einsum("ij,ij->j", Z, Z)

    def logits(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`Matrix`."""
        return weights @ self.Z.T

    def gradients(self, residuals: NDArray[np.float64]) -> NDArray[np.float64]:
        """See :class:`Matrix`."""
        return residuals @ self.Z


def loss_and_probabilities(
    logits: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (a, k, n) → loss of each sample (a, n) and probabilities (a, k, n)."""
    if logits.shape[1] == 1:
        small = np.exp(-np.abs(logits))
        loss = np.log1p(small) + np.maximum(logits, 0) - targets * logits
        return loss[:, 0], np.where(logits >= 0, 1, small) / (1 + small)
    top = logits.max(axis=1, keepdims=True)
    p = np.exp(logits - top)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    chosen = np.einsum("akn,kn->an", logits, targets)
    return (np.log(total) + top)[:, 0] - chosen, p


def losses(logits: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Loss of each sample in nats, (a, n), from logits (a, k, n); k as in :class:`Solution`."""
    k = logits.shape[1]
    return loss_and_probabilities(logits, one_hot(y, k))[0]


def one_hot(y: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """One-hot targets, (k, n); a single column stands for the second of two classes."""
    labels = np.array([1]) if k == 1 else np.arange(k)
    return (y == labels[:, None]).astype(np.float64)


def losses_and_residuals(
    logits: np.ndarray, y: NDArray[np.int64]
) -> tuple[NDArray[np.float64], np.ndarray, np.ndarray]:
    """Logits (k, n) → losses (n,) float64; probabilities and residuals (k, n) of their dtype.

    The residual is probability - target. Where a sample is classified with confidence, the
    probability's difference from 1 is summed over the other classes: in float32, subtracting
    would leave no digit of it.
    """
    if len(logits) == 1:
        # The logit of the true class against the other.
        z = np.where(y == 1, logits[0], -logits[0])
        small = np.exp(-np.abs(z))
        wrong = np.where(z >= 0, small, 1) / (1 + small)
        loss = np.log1p(small) + np.maximum(-z, 0)
        p = np.where(y == 1, 1 - wrong, wrong)
        return loss.astype(np.float64), p[None], np.where(y == 1, -wrong, wrong)[None]
    at = y, np.arange(len(y))
    p = logits - logits.max(axis=0)
    chosen = p[at]
    np.exp(p, out=p)
    right = p[at]
    p[at] = 0
    others = p.sum(axis=0)
    total = others + right
    p /= total
    residual = p.copy()
    residual[at] = -others / total
    p[at] = right / total
    loss = np.where(chosen == 0, np.log1p(others), np.log(total) - chosen)
    return loss.astype(np.float64), p, residual
