"""``logistic``: exact L2-regularised logistic regression, every C and fold at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from featpipe.base.errors import UsageError
from featpipe.heads.base import History, HistoryRow, MatrixHead, Tick, blocks_of, softmax
from featpipe.heads.solver import DenseMatrix, Matrix, Solution, losses, solve
from featpipe.specs.heads import LogisticParams

log = logging.getLogger("featpipe")

C_GRID = tuple(float(c) for c in np.logspace(-6, 0, 13))
"""Values tried, by validation loss, where no C is given."""
_MAX_ROTATED = 5000
"""Samples or features up to which the rotation's eigenvectors are cheaper than what they save."""
_MAX_DENSE_BYTES = 2 * 2**30
"""Samples that would take more as float64 are read again in every iteration."""
_ENOUGH = 1e-7
"""Gap to the optimum, relative to the objective, that nobody need be warned of."""
_COLUMNS = 2**12

Back = Callable[[np.ndarray], np.ndarray]


class LogisticHead(LogisticParams, MatrixHead):
    """Logistic regression with scikit-learn's objective (intercept not penalised).

    With L2 the solution lies in the span of the samples. The samples are therefore first rotated
    to their principal axes, as many as there are samples or features, whichever is less: the
    objective's value is the same for every C, the problem is smaller, and its Hessian nearly
    diagonal. Then all C and folds are solved together. Where both samples and features outnumber
    ``_MAX_ROTATED`` there is no rotation, and more iterations.

    Either way of choosing C, the head is trained on all of train. Parameters as in
    ``LogisticParams``.
    """

    kind = "logistic"
    solves_path = True

    def fit(
        self,
        X: Any,
        y: np.ndarray,
        X_val: Any,
        y_val: np.ndarray,
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`; a row for each C.

        Raises
        ------
        UsageError
            More folds than pictures to hold out.
        """
        # Fold 0 holds nothing out: it is what the head becomes.
        held_out = np.zeros((1, len(y)), bool)
        if self.folds is not None:
            fold = stratified_folds(y, self.folds, seed)
            held_out = np.concatenate([held_out, fold == np.arange(self.folds)[:, None]])
        self._learn_scale(X)
        grid = np.array(C_GRID if self.C is None else [self.C])
        matrix, back = self._reduced(X)
        solution = solve(
            matrix,
            y,
            len(self.classes_),
            np.tile(grid, len(held_out)),
            np.repeat(~held_out, len(grid), axis=0),
            max_iter=self.max_iter,
        )
        self._warn(grid, solution.gap.reshape(len(held_out), -1).max(axis=0))
        weight, bias = _per_class(
            back(solution.weights[: len(grid)]), solution.intercepts[: len(grid)]
        )
        train_scores = self._scores(X, y, weight, bias)
        val_scores = self._scores(X_val, y_val, weight, bias)
        cv_losses: list[float] | list[None] = [None] * len(grid)
        if self.folds is not None:
            cv_losses = _held_out_loss(matrix, y, solution, held_out)
        rows = [
            HistoryRow(C, *train, *val, cv_loss)
            for C, train, val, cv_loss in zip(
                grid.tolist(), train_scores, val_scores, cv_losses, strict=True
            )
        ]
        for row in rows:
            tick(row)
        best = int(np.argmin([row.choosing_loss for row in rows]))
        self.weight_, self.bias_ = weight[best], bias[best]
        return History("C", rows, best)

    def _reduced(self, X: Any) -> tuple[Matrix, Back]:
        """Standardised samples (n, r), and a map of coefficients (…, r) → (…, d)."""
        n, d = len(X), int(np.prod(X.shape[1:]))
        if n < d and n <= _MAX_ROTATED:
            return self._reduced_to_samples(X, n, d)
        if d <= _MAX_ROTATED:
            gram = np.zeros((d, d))
            for block in blocks_of(X):
                Z = self.standardise(block).astype(np.float64)
                gram += Z.T @ Z
            power, axes = _principal(gram)
            rows = _MappedMatrix(self, X, power, axes)
        else:
            power = np.zeros(d)
            for block in blocks_of(X):
                Z = self.standardise(block)
                power += np.einsum("ij,ij->j", Z, Z, dtype=np.float64)
            rows = _MappedMatrix(self, X, power)
        if 8 * n * len(power) > _MAX_DENSE_BYTES:
            return rows, rows.back
        Z, start = np.empty(rows.shape), 0
        for block in rows.blocks():
            Z[start : start + len(block)] = block
            start += len(block)
        return DenseMatrix(Z), rows.back

    def _reduced_to_samples(self, X: Any, n: int, d: int) -> tuple[Matrix, Back]:
        Z = np.empty((n, d), np.float32)
        start = 0
        for block in blocks_of(X):
            Z[start : start + len(block)] = self.standardise(block)
            start += len(block)
        # Z Zᵀ = U Λ Uᵀ, so Z = (U √Λ) Vᵀ with V = Zᵀ U / √Λ, and ‖V w‖ = ‖w‖.
        gram = np.zeros((n, n))
        parts = [slice(start, start + _COLUMNS) for start in range(0, d, _COLUMNS)]
        for part in parts:
            columns = Z[:, part].astype(np.float64)
            gram += columns @ columns.T
        values, vectors = _principal(gram)
        root = np.sqrt(values)

        def back(coefficients: np.ndarray) -> np.ndarray:
            shares = (coefficients / root) @ vectors.T
            wide = [shares @ Z[:, part].astype(np.float64) for part in parts]
            return np.concatenate(wide, axis=-1)

        return DenseMatrix(vectors * root), back

    def _warn(self, grid: np.ndarray, gap: np.ndarray) -> None:
        for C, found in zip(grid, gap, strict=True):
            if not found <= _ENOUGH:
                log.warning(
                    "C = %g stopped short of its best (by up to %.1g of the objective), "
                    "at most --max-iter %d steps on",
                    C,
                    found,
                    self.max_iter,
                )

    def _scores(
        self, X: Any, y: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> list[tuple[float, float]]:
        """Loss and accuracy of several heads, (p, k, d) and (p, k), in one pass over the rows."""
        p, k = bias.shape
        loss, right, start = np.zeros(p), np.zeros(p), 0
        for block in blocks_of(X):
            truth = y[start : start + len(block)]
            start += len(block)
            logits = self.standardise(block) @ weight.reshape(p * k, -1).T + bias.reshape(-1)
            chances = softmax(logits.reshape(-1, k)).reshape(-1, p, k)
            chosen = np.take_along_axis(chances, truth[:, None, None], axis=2)[..., 0]
            loss -= np.log(np.clip(chosen, 1e-15, 1.0)).sum(axis=0)
            right += (chances.argmax(axis=2) == truth[:, None]).sum(axis=0)
        return list(zip((loss / len(y)).tolist(), (right / len(y)).tolist(), strict=True))


class _MappedMatrix:
    """Standardised rows that are read again for every product, turned to ``axes`` (d, r)."""

    def __init__(
        self, head: LogisticHead, X: Any, power: np.ndarray, axes: np.ndarray | None = None
    ) -> None:
        self._head, self._X, self._axes = head, X, axes
        self.shape, self.power = (len(X), len(power)), power

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive rows, (b, r) float64."""
        for block in blocks_of(self._X):
            Z = self._head.standardise(block).astype(np.float64)
            yield Z if self._axes is None else Z @ self._axes

    def back(self, coefficients: np.ndarray) -> np.ndarray:
        """(…, r) → (…, d)."""
        return coefficients if self._axes is None else coefficients @ self._axes.T

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """See :class:`featpipe.heads.solver.Matrix`."""
        return np.concatenate([weights @ Z.T for Z in self.blocks()], axis=1)

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """See :class:`featpipe.heads.solver.Matrix`."""
        total, start = np.zeros((len(residuals), self.shape[1])), 0
        for Z in self.blocks():
            total += residuals[:, start : start + len(Z)] @ Z
            start += len(Z)
        return total


def stratified_folds(y: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (n,) that holds each sample out, -1 for none.

    Each class, shuffled, is dealt out in turn, on from where the one before ended: folds differ
    by at most one sample, in all and of each class. The only sample of a class is never held out:
    without it there would be no such class to learn.

    Raises
    ------
    UsageError
        A fold would be empty.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(y)
    order = [rng.permutation(np.flatnonzero(y == label)) for label in np.flatnonzero(counts > 1)]
    dealt = np.concatenate([np.empty(0, np.int64), *order])
    if len(dealt) < folds:
        raise UsageError(
            f"expected --folds up to {len(dealt)}, the pictures in classes of several, "
            f"found {folds}"
        )
    fold = np.full(len(y), -1)
    fold[dealt] = np.arange(len(dealt)) % folds
    return fold


def _held_out_loss(
    matrix: Matrix, y: np.ndarray, solution: Solution, held_out: np.ndarray
) -> list[float]:
    """Mean loss, for each C, over all samples that some fold held out."""
    p, k, _ = solution.weights.shape
    grid = p // len(held_out)
    total = np.zeros(grid)
    for part, rows in enumerate(held_out):
        some = slice(part * grid, (part + 1) * grid)
        weights = solution.weights[some].reshape(grid * k, -1)
        logits = matrix.logits(weights)[:, rows].reshape(grid, k, -1)
        logits += solution.intercepts[some, :, None]
        total += losses(logits, y[rows]).sum(axis=1)
    return (total / held_out.sum()).tolist()


def _principal(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a matrix of inner products, those that are not noise."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 0) * len(gram) * np.finfo(np.float64).eps
    return values[kept], vectors[:, kept]


def _per_class(weights: np.ndarray, intercepts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row per class, float32: (p, k, d) and (p, k); two classes were solved as one row."""
    if weights.shape[1] == 1:
        # softmax(0, z) is the logistic function of z.
        weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts], axis=1)
    return weights.astype(np.float32), intercepts.astype(np.float32)
