"""One L2-regularised logistic regression by Newton's method, in float32 until the last digits.

Each step solves the Newton system by preconditioned conjugate gradients (Nocedal & Wright,
*Numerical Optimization*, 7.1), just as exactly as pays. The Hessian is

    H(V) = V + Zᵀ (cost · (diag p - p pᵀ) (Z V)),    summed over the samples' rows of Z,

and the preconditioner takes a sample's curvature for uncorrelated with its features: then H is
1 + μ ⊗ λ, with the eigenvalues μ of Σ cost · (diag p - p pᵀ) between classes and λ of ZᵀZ / n
between features. Gradients are float32 until that is what limits the result, then float64, with
the steps still in float32 (iterative refinement).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.logistic_rows import Axes, Rows

_LOOSEST = 0.3
"""Largest relative residual at which conjugate gradients stop."""
_HALVINGS = 30
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

    def solve(
        self, cost: NDArray[np.float64], start: Fit, *, tolerance: float, max_iter: int
    ) -> Fit:
        """Go from ``start`` to a relative gap of ``tolerance``, or do ``max_iter`` steps.

        Parameters
        ----------
        cost : ndarray of float64, shape (n,)
            C times the weight of each sample; 0 leaves it out.
        """
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
        logits = start.logits
        if logits.dtype != self.dtype:
            logits = self.rows.logits(v) + start.intercepts[:, None].astype(self.dtype)
        self.fit = Fit(v, start.intercepts.astype(np.float64), logits)
        self._arrive(*self._value(self.fit))

    def _value(self, fit: Fit) -> tuple[float, np.ndarray]:
        """Objective and probabilities (k, n)."""
        loss, p = loss_and_probabilities(fit.logits, self.solver.y)
        logits = fit.logits - fit.intercepts[:, None].astype(self.dtype)
        square = self.rows.inner(fit.coefficients, fit.coefficients, logits)
        return float(self.cost @ loss) + 0.5 * square, p

    def _arrive(self, objective: float, p: np.ndarray) -> None:
        """Compute all that is needed at a new iterate."""
        self.fit.objective, self.p = objective, p
        residual = _minus_targets(p, self.solver.y)
        residual *= self.cost
        residual = residual.astype(self.dtype, copy=False)
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
        if (self.intercept_gradient[curvature <= 0] != 0).any():
            return np.inf
        decrease = (self.intercept_gradient**2 / np.maximum(curvature, 1e-300)).sum()
        return float(0.5 * (square + decrease) / max(self.fit.objective, 1e-300))

    def step(self, tolerance: float, most: int) -> tuple[int, bool]:
        """One Newton step; return its steps of conjugate gradients, and whether it descended."""
        pays = 0.7 * np.sqrt(tolerance / self.gap) if np.isfinite(self.gap) else 0.0
        residual = float(np.clip(max(min(self.gap, 1.0) ** 0.25, pays), 1e-3, _LOOSEST))
        direction, steps = self._newton_direction(residual, most)
        v, b, logits = direction
        start = self.fit
        value, tried = start.objective, 1.0
        slope = self.slope
        for _ in range(_HALVINGS):
            t = self.dtype.type(tried)
            fit = Fit(
                start.coefficients + t * v, start.intercepts + tried * b, start.logits + t * logits
            )
            objective, p = self._value(fit)
            noise = 1e-6 if self.dtype == np.float32 else 1e-13
            if objective <= value + 1e-4 * tried * slope + noise * abs(value):
                self.fit = fit
                self._arrive(objective, p)
                return steps, True
            tried /= 2
        return steps, False

    def _newton_direction(
        self, tolerance: float, most: int
    ) -> tuple[tuple[np.ndarray, NDArray[np.float64], np.ndarray], int]:
        """Solve H x = -gradient to a relative residual; x, its intercepts and its logits."""
        rows, precondition = self.rows, _Preconditioner(self)
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
            z_logits = rows.logits(z)
            rz = rows.inner(r, z, z_logits) + float(rb @ zb)
            first = first or rz
            if rz <= tolerance**2 * first or rz <= 0:
                break
            z_logits += zb[:, None]
            beta = np.float32(rz / previous)
            p, pb, p_logits = z + beta * p, zb + beta * pb, z_logits + beta * p_logits
            h, hb = self._times_hessian(curvature, p, p_logits)
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
        self, curvature: np.ndarray, v: np.ndarray, logits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """H times coefficients (k, size) whose logits, intercepts included, are given."""
        bent = curvature * logits
        if len(v) == 1:
            bent -= curvature * bent
        else:
            bent -= curvature * bent.sum(axis=0)
        bent *= self.cost32
        gradient = self.rows.gradients(bent)
        gradient += v
        return gradient, bent.sum(axis=1)


class _Preconditioner:
    """Approximate inverse of the Hessian; see the head of this file."""

    def __init__(self, problem: _Problem) -> None:
        axes: Axes = problem.solver.axes
        p, cost = problem.p.astype(np.float32, copy=False), problem.cost32
        weighted = p * cost
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
        values = np.maximum(values, 1e-12 * float(problem.cost.sum()))
        rest = 1 / (1 + values * axes.rest)
        self.rest = rest.astype(np.float32)[:, None]
        inside = 1 / (1 + values[:, None] * axes.values) - rest[:, None]
        self.inside, self.vectors = inside.astype(np.float32), axes.vectors
        self.intercepts = np.where(flat, 0, 1 / values).astype(np.float32)

    def __call__(self, r: np.ndarray, rb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        turned = self.turn.T @ r
        along = turned @ self.vectors
        along *= self.inside
        turned *= self.rest
        turned += along @ self.vectors.T
        return self.turn @ turned, self.turn @ ((self.turn.T @ rb) * self.intercepts)


def loss_and_probabilities(
    logits: np.ndarray, y: NDArray[np.int64]
) -> tuple[NDArray[np.float64], np.ndarray]:
    """Logits (k, n) → loss of each sample (n,) float64 and probabilities (k, n) of their dtype."""
    if len(logits) == 1:
        z = logits[0]
        small = np.exp(-np.abs(z))
        loss = np.log1p(small) + np.maximum(z, 0) - y * z
        return loss.astype(np.float64), (np.where(z >= 0, 1, small) / (1 + small))[None]
    top = logits.max(axis=0)
    p = logits - top
    chosen = p[y, np.arange(len(y))].astype(np.float64)
    np.exp(p, out=p)
    total = p.sum(axis=0)
    p /= total
    return np.log(total).astype(np.float64) - chosen, p


def _minus_targets(p: np.ndarray, y: NDArray[np.int64]) -> np.ndarray:
    residual = p.copy()
    if len(p) == 1:
        residual[0] -= y.astype(p.dtype)
    else:
        residual[y, np.arange(len(y))] -= 1
    return residual
