"""One L2-regularised logistic regression by Newton's method, in float32 until the last digits.

Each step solves the Newton system by preconditioned conjugate gradients (Nocedal & Wright,
*Numerical Optimization*, 7.1), only as exactly as pays. The Hessian times V (k, size) is

    H(V) = V + Zᵀ (cost · (diag p - p pᵀ) (Z V))

with each sample's own probabilities p; ``featpipe.heads.logistic_preconditioner`` approximates its
inverse. Gradients are float32 until that is what limits the result, then float64; the steps stay
float32 (iterative refinement).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from featpipe.heads.logistic_preconditioner import (
    ClassByClass,
    CommonAxes,
    DecisiveSamples,
    Preconditioner,
)
from featpipe.heads.logistic_problem import losses_and_residuals
from featpipe.heads.logistic_rows import FeatureRows, Rows

_LOOSEST = 0.3
"""Largest relative residual at which conjugate gradients stop, until less is enough to end."""
_HALVINGS = 30
_LINE_STEPS = 4
_FURTHEST = 4.0
"""Largest step beyond the last solution, in its distance from the one before."""
_STALLED = 0.5
"""A step that leaves more than this of the gap, in float32, calls for float64."""


@dataclass
class Fit:
    """One solution, for two classes with one row (k = 1), otherwise with as many as classes.

    Attributes
    ----------
    coefficients : ndarray, shape (k, size)
        See :class:`Rows`; float64 if the last gradient was.
    intercepts : ndarray of float64, shape (k,)
    logits : ndarray, shape (k, n)
        Those of the samples, intercepts included.
    objective : float
        Σ cost · loss + ½ ‖weights‖².
    gap : float
        Upper bound on (objective - optimum) / objective.
    iterations : int
        Steps of conjugate gradients.
    """

    coefficients: np.ndarray
    intercepts: NDArray[np.float64]
    logits: np.ndarray
    objective: float = np.inf
    gap: float = np.inf
    iterations: int = 0


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _column(intercepts: NDArray[np.float64]) -> NDArray[np.float32]:
    return intercepts[:, None].astype(np.float32)


class NewtonSolver:
    """Solves problems that differ in the cost of each sample.

    Parameters
    ----------
    rows : Rows
    y : ndarray of int64, shape (n,)
    classes : int
        At least 2.
    """

    def __init__(self, rows: Rows, y: NDArray[np.int64], classes: int) -> None:
        self.rows, self.y = rows, y
        self.k = 1 if classes == 2 else classes
        self.axes = rows.axes()

    def start(self) -> Fit:
        """Where all weights are zero."""
        zeros = np.zeros((self.k, self.rows.size), np.float32)
        return Fit(zeros, np.zeros(self.k), np.zeros((self.k, self.rows.n), np.float32))

    def between(self, cost: NDArray[np.float64], older: Fit, last: Fit) -> Fit:
        """Where the objective is lowest on the line through two solutions, about.

        Along the path of C, solutions lie nearly on a line; their logits are known, so that it
        takes no product with the samples.
        """
        v = last.coefficients - older.coefficients
        b = last.intercepts - older.intercepts
        logits = last.logits - older.logits
        bare = logits - _column(b)
        linear = self.rows.inner(last.coefficients, v, bare)
        square = self.rows.inner(v, v, bare)
        cost32, t = cost.astype(np.float32), 1.0
        for _ in range(_LINE_STEPS):
            _, p, residual = losses_and_residuals(last.logits + np.float32(t) * logits, self.y)
            slope = float((residual * logits).sum(axis=0) @ cost32) + linear + t * square
            bent = p * logits
            curvature = (bent * logits).sum(axis=0) - bent.sum(axis=0) ** 2
            t -= slope / max(float(curvature @ cost32) + square, 1e-30)
            t = float(np.clip(t, 0, _FURTHEST))
        step = np.float32(t)
        return Fit(
            last.coefficients + step * v, last.intercepts + t * b, last.logits + step * logits
        )

    def solve(
        self, cost: NDArray[np.float64], start: Fit, *, tolerance: float, max_iter: int
    ) -> Fit:
        """Go from ``start`` to a relative gap of ``tolerance``, or do ``max_iter`` steps.

        Parameters
        ----------
        cost : ndarray of float64, shape (n,)
            C times the weight of each sample; 0 leaves it out.
        """
        # Threads that wait for each other after each of many small products lose more than they
        # gain: twice to six times the time on a machine that has other work.
        in_parts = len(list(self.rows.parts(self.k))) > 1
        with _blas().limit(limits=1 if in_parts else None, user_api="blas"):
            return self._solve(cost, start, tolerance, max_iter)

    def _solve(self, cost: NDArray[np.float64], start: Fit, tolerance: float, max_iter: int) -> Fit:
        exact = tolerance < 1e-7 or start.coefficients.dtype == np.float64
        problem = _Problem(self, cost, start, exact)
        iterations = stalls = 0
        while not problem.gap <= tolerance and iterations < max_iter:
            before = problem.gap
            steps, moved = problem.step(tolerance, max_iter - iterations)
            iterations += steps
            if not moved or problem.gap > _STALLED * before:
                # A Newton step far from the optimum may well raise the norm of the gradient.
                stalls += 1
                if not moved or stalls > 4:
                    if exact:
                        break
                    exact, stalls = True, 0
                    problem = _Problem(self, cost, problem.fit, exact)
        fit = problem.fit
        fit.iterations, fit.gap = iterations, problem.gap
        if self.k > 1:
            # The same shift of all intercepts changes no probability, so they are centred.
            shift = fit.intercepts.mean()
            fit.intercepts, fit.logits = (
                fit.intercepts - shift,
                fit.logits - fit.logits.dtype.type(shift),
            )
        return fit


class _Problem:
    """An iterate, its gradient and the preconditioner there."""

    def __init__(
        self, solver: NewtonSolver, cost: NDArray[np.float64], start: Fit, exact: bool
    ) -> None:
        self.solver, self.rows, self.cost = solver, solver.rows, cost
        self.dtype = np.dtype(np.float64 if exact else np.float32)
        self.cost32 = cost.astype(np.float32)
        v = start.coefficients.astype(self.dtype)
        # Computed anew: what each step adds to them comes with rounding errors.
        logits = self.rows.logits(v) + start.intercepts[:, None].astype(self.dtype)
        self.fit = Fit(v, start.intercepts.astype(np.float64), logits)
        self._arrive(*self._value(self.fit))

    def _value(self, fit: Fit) -> tuple[float, np.ndarray, np.ndarray]:
        """Objective, probabilities (k, n) and residuals (k, n)."""
        loss, p, residual = losses_and_residuals(fit.logits, self.solver.y)
        logits = fit.logits - fit.intercepts[:, None].astype(self.dtype)
        square = self.rows.inner(fit.coefficients, fit.coefficients, logits)
        return float(self.cost @ loss) + 0.5 * square, p, residual

    def _arrive(self, objective: float, p: np.ndarray, residual: np.ndarray) -> None:
        """Compute all that is needed at a new iterate."""
        self.fit.objective, self.p = objective, p
        residual = residual * self.cost.astype(self.dtype)
        self.gradient = self.rows.gradients(residual)
        self.gradient += self.fit.coefficients
        self.intercept_gradient = residual.sum(axis=1, dtype=np.float64)
        self.gap = self._gap()

    def _gap(self) -> float:
        """Bound on the relative gap to the optimum.

        Minimised over the intercepts, the objective is 1-strongly convex in the weights, so it
        exceeds its minimum by at most ½ ‖gradient‖². The decrease that a Newton step predicts
        for each intercept is added.
        """
        # Of a float32 gradient, float32 is enough to know the norm.
        square = self.rows.square(self.gradient.astype(np.float32))
        curvature = np.einsum("kn,n->k", self.p * (1 - self.p), self.cost)
        self.intercept_curvature = np.maximum(curvature, 1e-300)
        if (self.intercept_gradient[curvature <= 0] != 0).any():
            return np.inf
        decrease = (self.intercept_gradient**2 / self.intercept_curvature).sum()
        return float(0.5 * (square + decrease) / max(self.fit.objective, 1e-300))

    def _preconditioner(self) -> Preconditioner:
        p = self.p.astype(np.float32, copy=False)
        axes = self.solver.axes
        if isinstance(self.rows, FeatureRows):
            if axes.vectors is None:
                return ClassByClass(p, self.cost, axes, self.rows.Z)
            if len(p) == 1:
                return DecisiveSamples(p, self.cost, axes, self.rows.Z, self.rows.squares)
        return CommonAxes(p, self.cost, axes)

    def step(self, tolerance: float, most: int) -> tuple[int, bool]:
        """One Newton step; return its steps of conjugate gradients, and whether it descended."""
        pays = 0.7 * np.sqrt(tolerance / self.gap) if np.isfinite(self.gap) else 0.0
        relative = float(np.clip(max(min(self.gap**0.25, _LOOSEST), pays), 1e-3, 0.9))
        direction, steps = self._newton_direction(relative, most)
        v, b, logits = direction
        start = self.fit
        value, tried = start.objective, 1.0
        slope = self.slope
        for _ in range(_HALVINGS):
            t = self.dtype.type(tried)
            fit = Fit(
                start.coefficients + t * v, start.intercepts + tried * b, start.logits + t * logits
            )
            objective, p, residual = self._value(fit)
            noise = 1e-6 if self.dtype == np.float32 else 1e-13
            if objective <= value + 1e-4 * tried * slope + noise * abs(value):
                self.fit = fit
                self._arrive(objective, p, residual)
                return steps, True
            tried /= 2
        return steps, False

    def _newton_direction(
        self, tolerance: float, most: int
    ) -> tuple[tuple[np.ndarray, NDArray[np.float64], np.ndarray], int]:
        """Solve H x = -gradient to a relative residual; x, its intercepts and its logits."""
        rows, precondition = self.rows, self._preconditioner()
        # Scaled, so that float32 does not underflow.
        scale = float(max(np.abs(self.gradient).max(), np.abs(self.intercept_gradient).max()))
        r = (self.gradient / -scale).astype(np.float32)
        rb = (self.intercept_gradient / -scale).astype(np.float32)
        curvature = self.p.astype(np.float32, copy=False)
        x, xb = np.zeros_like(r), np.zeros_like(rb)
        x_logits = np.zeros((len(r), rows.n), np.float32)
        p, pb, p_logits = np.zeros_like(r), np.zeros_like(rb), np.zeros_like(x_logits)
        previous, first, steps = np.inf, 0.0, 0
        while steps < most:
            z, zb = precondition(r, rb)
            z_logits = rows.logits(z) if rows.through_logits else z
            rz = rows.inner(r, z, z_logits) + float(rb @ zb)
            # What is left of the gradient, by the norm that bounds the gap where it costs nothing.
            left = rz
            if not rows.through_logits:
                left = rows.square(r) + float((rb**2 / self.intercept_curvature).sum())
            first = first or left
            if left <= tolerance**2 * first or rz <= 0:
                break
            beta = np.float32(rz / previous)
            p, pb = z + beta * p, zb + beta * pb
            if rows.through_logits:
                p_logits = z_logits + zb[:, None] + beta * p_logits
            h, hb = self._times_hessian(curvature, p, pb, p_logits)
            bend = rows.inner(h, p, p_logits - pb[:, None]) + float(hb @ pb)
            steps += 1
            if bend <= 0:
                break
            alpha = np.float32(rz / bend)
            x += alpha * p
            xb += alpha * pb
            x_logits += alpha * p_logits
            r -= alpha * h
            rb -= alpha * hb
            previous = rz
        move = scale * x.astype(self.dtype)
        intercepts = scale * xb.astype(np.float64)
        if self.dtype == np.float64:
            logits = rows.logits(move) + intercepts[:, None]
        else:
            logits = np.float32(scale) * x_logits
        inner = rows.inner(self.gradient, move, logits - intercepts[:, None].astype(self.dtype))
        self.slope = inner + float(self.intercept_gradient @ intercepts)
        return (move, intercepts, logits), steps

    def _times_hessian(
        self, p: np.ndarray, v: np.ndarray, b: np.ndarray, logits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """H times coefficients (k, size) and intercepts (k,), at probabilities p (k, n).

        ``logits`` (k, n), intercepts included, are given or computed, see ``through_logits``.
        """
        gradient, intercepts = v.copy(), np.zeros_like(b)
        for part in self.rows.parts(len(v)):
            if not self.rows.through_logits:
                logits[:, part] = self.rows.logits(v, part) + b[:, None]
            bent = p[:, part] * logits[:, part]
            if len(v) == 1:
                bent -= p[:, part] * bent
            else:
                bent -= p[:, part] * bent.sum(axis=0)
            bent *= self.cost32[part]
            gradient += self.rows.gradients(bent, part)
            intercepts += bent.sum(axis=1)
        return gradient, intercepts
