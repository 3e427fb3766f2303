"""The ways to solve a path of C: all together, one after the other, or by scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.heads import logistic_reduced
from featpipe.heads.logistic_lbfgs import TOLERANCE, Line, Solution, solve
from featpipe.heads.logistic_newton import Fit, NewtonSolver
from featpipe.heads.logistic_path import Candidate, PathProblem, PathSolver, per_class
from featpipe.heads.logistic_problem import losses, losses_and_residuals
from featpipe.heads.logistic_reduced import held, reduced
from featpipe.heads.logistic_rows import FeatureRows, GramRows, Rows
from featpipe.heads.logistic_sklearn import SklearnSolver

TOGETHER_NUMBERS = 2**22
"""Numbers of rotated samples of two classes up to which all C are solved together."""
PATH_TOLERANCE = 2.5e-7
"""Bound on the relative gap to the optimum of a head that may not be kept, for a gap of 1e-6: the
bound leaves out that intercepts and weights move together, and was found 2.3 times too small."""


def path_solver(problem: PathProblem, solver: str) -> PathSolver:
    """The way to solve a problem.

    Raises
    ------
    UsageError
        scikit-learn is asked for, and the samples do not fit into memory.
    """
    if solver == "sklearn":
        return SklearnSolver(problem)
    n, d = len(problem.X), int(np.prod(problem.X.shape[1:]))
    if problem.classes == 2 and n * min(n, d) <= TOGETHER_NUMBERS:
        return TogetherSolver(problem)
    most = logistic_reduced.MAX_DENSE_BYTES
    fits = 4 * n * d <= most
    if n < d and 12 * n * n <= most and (fits or n <= logistic_reduced.MAX_ROTATED):
        return OneByOneSolver(problem, GramRows(held(problem.standardise, problem.X)))
    if fits:
        return OneByOneSolver(problem, FeatureRows(held(problem.standardise, problem.X)))
    return TogetherSolver(problem)


class TogetherSolver:
    """All C and folds by one call of L-BFGS: for two classes, and for samples that are read again.

    A product with few columns takes as long as with one, or the reading does.
    """

    together = True

    def __init__(self, problem: PathProblem) -> None:
        self._problem = problem
        self._matrix, self._back = reduced(problem.standardise, problem.X)
        self._largest = 0.0
        self._last: list[NDArray[np.float64]] = []
        """Solutions of the two largest C, for every fold: (1 + folds, k, r + 1)."""

    def solve(self, Cs: Sequence[float]) -> Iterator[list[Candidate]]:
        """See :class:`PathSolver`."""
        problem, grid = self._problem, len(Cs)
        kept = np.where(problem.held_out, 0, problem.weight)
        solution = solve(
            self._matrix,
            problem.y,
            problem.classes,
            np.tile(np.array(Cs), len(kept)),
            np.repeat(kept, grid, axis=0),
            max_iter=problem.max_iter,
            line=self._line(Cs),
        )
        self._keep_last(Cs, solution)
        gap = solution.gap.reshape(len(kept), grid).max(axis=0)
        weight = self._back(solution.weights[:grid])
        cv = self._held_out_loss(solution) if problem.has_folds else [None] * grid
        yield [
            Candidate(C, *per_class(weight[i], solution.intercepts[i]), float(gap[i]), cv[i])
            for i, C in enumerate(Cs)
        ]

    def _line(self, Cs: Sequence[float]) -> Line | None:
        """A larger C starts on the line through the last two solutions."""
        if len(self._last) < 2 or len(Cs) > 1 or Cs[0] < self._largest:
            return None
        older, last = self._last
        return last, last - older

    def _keep_last(self, Cs: Sequence[float], solution: Solution) -> None:
        theta = np.concatenate([solution.weights, solution.intercepts[..., None]], axis=2)
        theta = theta.reshape(-1, len(Cs), *theta.shape[1:])
        for at, C in list(enumerate(Cs))[-2:]:
            if self._largest < C:
                self._largest = C
                self._last = [*self._last[-1:], theta[:, at].copy()]

    def _held_out_loss(self, solution: Solution) -> list[float]:
        """Mean loss for each C over all held-out samples."""
        problem = self._problem
        p, k, _ = solution.weights.shape
        grid = p // len(problem.held_out)
        total = np.zeros(grid)
        for fold, rows in enumerate(problem.held_out):
            part = slice(fold * grid, (fold + 1) * grid)
            weights = solution.weights[part].reshape(grid * k, -1)
            logits = self._matrix.logits(weights)[:, rows].reshape(grid, k, -1)
            logits += solution.intercepts[part, :, None]
            total += losses(logits, problem.y[rows]) @ problem.weight[rows]
        return (total / (problem.held_out @ problem.weight).sum()).tolist()

    def finish(self, candidate: Candidate) -> Candidate:
        """See :class:`PathSolver`; all are finished."""
        return candidate


class OneByOneSolver:
    """Each C by Newton's method from the solution of the one before, in float32.

    A fold starts from the solution of all samples.
    """

    together = False

    def __init__(self, problem: PathProblem, rows: Rows) -> None:
        self._problem = problem
        self._newton = NewtonSolver(rows, problem.y, problem.classes)
        self._done: list[tuple[float, Fit]] = []

    def solve(self, Cs: Sequence[float]) -> Iterator[list[Candidate]]:
        """See :class:`PathSolver`."""
        problem = self._problem
        for C in Cs:
            fit = self._fit(C * problem.weight, self._start(C), PATH_TOLERANCE)
            self._done = [*self._done[-1:], (C, fit)]
            gap, total = fit.gap, 0.0
            for rows in problem.held_out[1:]:
                fold = self._fit(C * np.where(rows, 0, problem.weight), fit, PATH_TOLERANCE)
                gap = max(gap, fold.gap)
                loss, _, _ = losses_and_residuals(fold.logits, problem.y)
                total += float(loss[rows] @ problem.weight[rows])
            cv_loss = None
            if problem.has_folds:
                cv_loss = total / float((problem.held_out @ problem.weight).sum())
            yield [self._candidate(C, fit, gap, cv_loss)]

    def finish(self, candidate: Candidate) -> Candidate:
        """See :class:`PathSolver`."""
        C = candidate.C
        fit = self._fit(C * self._problem.weight, candidate.state, TOLERANCE)
        return self._candidate(C, fit, fit.gap, candidate.cv_loss)

    def _start(self, C: float) -> Fit:
        """On the line through the last two solutions, if these are of smaller C."""
        below = [fit for smaller, fit in self._done if smaller < C]
        if len(below) == 2:
            return self._newton.between(C * self._problem.weight, *below)
        return below[0] if below else self._newton.start()

    def _fit(self, cost: NDArray[np.float64], start: Fit, tolerance: float) -> Fit:
        return self._newton.solve(cost, start, tolerance=tolerance, max_iter=self._problem.max_iter)

    def _candidate(self, C: float, fit: Fit, gap: float, cv_loss: float | None) -> Candidate:
        weight = self._newton.rows.features(fit.coefficients)
        heads = per_class(weight, fit.intercepts)
        return Candidate(C, *heads, gap, cv_loss, fit.logits, fit)
