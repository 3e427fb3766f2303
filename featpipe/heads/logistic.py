"""``logistic``: exact L2-regularised logistic regression, all C and folds solved together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.heads.base import History, HistoryRow, MatrixHead, Tick, blocks_of, softmax
from featpipe.heads.logistic_problem import DenseMatrix, Matrix, losses
from featpipe.heads.logistic_solver import Solution, solve
from featpipe.specs.heads import LogisticParams

log = logging.getLogger("featpipe")

C_GRID = tuple(float(c) for c in np.logspace(-6, 0, 13))
"""Values of C that are tried if none is given; the lowest loss wins."""
_MAX_ROTATED = 5000
"""Samples or features up to which rotating saves more time than its eigenvectors cost."""
_MAX_DENSE_BYTES = 2 * 2**30
"""Samples that need more memory as float64 are read again in every iteration."""
_NEGLIGIBLE_GAP = 1e-7
"""Gap to the optimum, relative to the objective, above which a warning is logged."""
_COLUMNS = 2**12
"""Feature columns that are converted to float64 at a time."""

Back = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps the solver's coefficients (…, r) back to coefficients of the features (…, d)."""


class LogisticHead(LogisticParams, MatrixHead):
    """Logistic regression with scikit-learn's objective (intercept not penalised).

    The L2 penalty makes the solution lie in the span of the samples. ``fit`` therefore first
    rotates the samples to their principal axes, at most min(samples, features) of them. This
    changes no objective value, makes the problem smaller and its Hessian nearly diagonal. Then it
    solves all C and folds together. If both samples and features outnumber ``_MAX_ROTATED``, it
    does not rotate and needs more iterations.

    The final head is trained on the whole training split, whether folds or the validation split
    choose C. Parameters: see ``LogisticParams``.
    """

    kind = "logistic"
    solves_path = True

    def fit(
        self,
        X: Any,
        y: NDArray[np.int64],
        X_val: Any,
        y_val: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`; the history has a row for each C.

        Raises
        ------
        UsageError
            There are more folds than pictures to hold out.
        """
        # Row 0 holds nothing out: its solutions are the candidates for the final head.
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
        best = int(np.argmin([row.selection_loss for row in rows]))
        self.weight_, self.bias_ = weight[best], bias[best]
        return History("C", rows, best)

    def _reduced(self, X: Any) -> tuple[Matrix, Back]:
        """Standardised samples (n, r), rotated if that is cheaper, and the map back."""
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
                standardised = self.standardise(block)
                power += np.einsum("ij,ij->j", standardised, standardised, dtype=np.float64)
            rows = _MappedMatrix(self, X, power)
        if 8 * n * len(power) > _MAX_DENSE_BYTES:
            return rows, rows.back
        Z, start = np.empty(rows.shape), 0
        for block in rows.blocks():
            Z[start : start + len(block)] = block
            start += len(block)
        return DenseMatrix(Z), rows.back

    def _reduced_to_samples(self, X: Any, n: int, d: int) -> tuple[Matrix, Back]:
        """:meth:`_reduced` for fewer samples than features, from the samples' Gram matrix."""
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

        def back(coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
            dual = (coefficients / root) @ vectors.T
            wide = [dual @ Z[:, part].astype(np.float64) for part in parts]
            return np.concatenate(wide, axis=-1)

        return DenseMatrix(vectors * root), back

    def _warn(self, grid: NDArray[np.float64], gap: NDArray[np.float64]) -> None:
        for C, relative_gap in zip(grid, gap, strict=True):
            if not relative_gap <= _NEGLIGIBLE_GAP:
                log.warning(
                    "C = %g stopped short of its best (by up to %.1g of the objective), "
                    "at most --max-iter %d steps on",
                    C,
                    relative_gap,
                    self.max_iter,
                )

    def _scores(
        self,
        X: Any,
        y: NDArray[np.int64],
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
    ) -> list[tuple[float, float]]:
        """Loss and accuracy of several heads, (p, k, d) and (p, k), in one pass over the rows."""
        p, k = bias.shape
        loss, correct, start = np.zeros(p), np.zeros(p), 0
        for block in blocks_of(X):
            truth = y[start : start + len(block)]
            start += len(block)
            logits = self.standardise(block) @ weight.reshape(p * k, -1).T + bias.reshape(-1)
            probabilities = softmax(logits.reshape(-1, k)).reshape(-1, p, k)
            chosen = np.take_along_axis(probabilities, truth[:, None, None], axis=2)[..., 0]
            loss -= np.log(np.clip(chosen, 1e-15, 1.0)).sum(axis=0)
            correct += (probabilities.argmax(axis=2) == truth[:, None]).sum(axis=0)
        return list(zip((loss / len(y)).tolist(), (correct / len(y)).tolist(), strict=True))


class _MappedMatrix:
    """Standardised rows, projected on ``axes`` (d, r) if given; every product reads them again."""

    def __init__(
        self,
        head: LogisticHead,
        X: Any,
        power: NDArray[np.float64],
        axes: NDArray[np.float64] | None = None,
    ) -> None:
        self._head, self._X, self._axes = head, X, axes
        self.shape, self.power = (len(X), len(power)), power

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """Consecutive blocks of rows, (b, r) float64."""
        for block in blocks_of(self._X):
            Z = self._head.standardise(block).astype(np.float64)
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


def stratified_folds(y: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (n,) that holds each sample out, -1 for none.

    The samples are shuffled within each class, and all classes in a row are assigned to folds
    0, 1, …, 0, 1, …. So fold sizes differ by at most one, in total and within each class. A
    class's only sample is never held out, because the class could not be learned without it.

    Raises
    ------
    UsageError
        A fold would be empty.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(y)
    order = [rng.permutation(np.flatnonzero(y == label)) for label in np.flatnonzero(counts > 1)]
    assigned = np.concatenate([np.empty(0, np.int64), *order])
    if len(assigned) < folds:
        raise UsageError(
            f"expected --folds up to {len(assigned)}, the pictures in classes of several, "
            f"found {folds}"
        )
    fold = np.full(len(y), -1)
    fold[assigned] = np.arange(len(assigned)) % folds
    return fold


def _held_out_loss(
    matrix: Matrix, y: NDArray[np.int64], solution: Solution, held_out: NDArray[np.bool_]
) -> list[float]:
    """Mean loss for each C over all held-out samples; ``held_out`` is (1 + folds, n)."""
    p, k, _ = solution.weights.shape
    grid = p // len(held_out)
    total = np.zeros(grid)
    for fold, rows in enumerate(held_out):
        problems = slice(fold * grid, (fold + 1) * grid)
        weights = solution.weights[problems].reshape(grid * k, -1)
        logits = matrix.logits(weights)[:, rows].reshape(grid, k, -1)
        logits += solution.intercepts[problems, :, None]
        total += losses(logits, y[rows]).sum(axis=1)
    return (total / held_out.sum()).tolist()


def _principal(
    gram: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues of a Gram matrix above the rounding error, and their eigenvectors."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > max(values[-1], 0) * len(gram) * np.finfo(np.float64).eps
    return values[kept], vectors[:, kept]


def _per_class(
    weights: NDArray[np.float64], intercepts: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One row per class, float32: (p, k, d) and (p, k); the solver has one row for two classes."""
    if weights.shape[1] == 1:
        # softmax(0, z) is the logistic function of z.
        weights = np.concatenate([np.zeros_like(weights), weights], axis=1)
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts], axis=1)
    return weights.astype(np.float32), intercepts.astype(np.float32)
