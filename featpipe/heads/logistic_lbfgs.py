"""Many L2-regularised logistic regressions on one matrix, solved together.

The problems differ in C and in the weight of each sample. They share every product with the
matrix: an iteration computes one product from directions to logits and one from residuals to
gradients, each for all unfinished problems at once. Method: L-BFGS (Nocedal & Wright, *Numerical
Optimization*, 7.2). Its preconditioner ignores coupling between features, so it is close to the
inverse Hessian where the features are the matrix's principal axes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.logistic_problem import Matrix, loss_and_probabilities, one_hot

MEMORY = 5
"""History pairs (step, gradient change) that L-BFGS keeps."""
TOLERANCE = 1e-10
"""A problem is solved when its relative gap to the optimum is at most this."""
MAX_BATCH_BYTES = 2**30
"""Memory of one batch of problems; more problems are solved in several batches."""
_CACHE_BYTES = 2**20
_MAX_TRIALS = 40
_SLOPE_RATIO = 0.3
"""The line search accepts a step where |slope| is at most this times the initial |slope|."""

_Pair = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Step (a, k (r + 1)), gradient change of the same shape, and rho = 1 / (step · change), (a,)."""

Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""A point and a direction for each problem."""


@dataclass
class Solution:
    """Solutions of p problems; two classes have one column (k = 1), otherwise k is their number.

    Attributes
    ----------
    weights : ndarray of float64, shape (p, k, r)
    intercepts : ndarray of float64, shape (p, k)
    objective : ndarray of float64, shape (p,)
        C · Σ weight · loss + ½ ‖weights‖².
    gap : ndarray of float64, shape (p,)
        Upper bound on (objective - optimum) / objective.
    iterations : ndarray of int64, shape (p,)
    """

    weights: NDArray[np.float64]
    intercepts: NDArray[np.float64]
    objective: NDArray[np.float64]
    gap: NDArray[np.float64]
    iterations: NDArray[np.int64]


def solve(
    matrix: Matrix,
    y: NDArray[np.int64],
    classes: int,
    C: NDArray[np.float64],
    sample_weight: np.ndarray,
    *,
    max_iter: int,
    tolerance: float = TOLERANCE,
    line: Line | None = None,
) -> Solution:
    """Solve p problems.

    Parameters
    ----------
    matrix : Matrix
        The n samples.
    y : ndarray of int64, shape (n,)
        Class index of each sample, 0 to classes - 1.
    classes : int
        At least 2. In each problem, every class should have a sample of positive weight.
    C : ndarray of float64, shape (p,)
        Inverse regularisation strength of each problem, above 0.
    sample_weight : ndarray of bool or float64, shape (p, n)
        At least 0; 0 leaves a sample out.
    max_iter : int
        Iterations of each problem; one that reaches the limit may have a gap above the tolerance.
    tolerance : float
        Largest relative gap to the optimum at which a problem counts as solved.
    line : tuple of ndarray of float64, shape (p, k, r + 1) each, or None
        Where to start, and the first direction; intercepts last. None starts from zero.
    """
    n, r = matrix.shape
    k = 1 if classes == 2 else classes
    targets = one_hot(y, k)
    C = np.asarray(C, np.float64)
    solution = Solution(
        np.zeros((len(C), k, r)),
        np.zeros((len(C), k)),
        np.zeros(len(C)),
        np.zeros(len(C)),
        np.zeros(len(C), np.int64),
    )
    for batch in _batches(len(C), 8 * k * ((2 * MEMORY + 8) * (r + 1) + 8 * n)):
        cost = C[batch, None] * sample_weight[batch]
        problems = _Problems(matrix, targets, cost, batch)
        if line is not None:
            problems.start(line[0][batch], line[1][batch])
        _solve(problems, solution, max_iter, tolerance)
    if k > 1:
        # The same shift of all intercepts changes no probability, so they are centred.
        solution.intercepts -= solution.intercepts.mean(axis=1, keepdims=True)
    return solution


def _batches(count: int, bytes_each: int) -> Iterator[NDArray[np.int64]]:
    step = max(1, MAX_BATCH_BYTES // bytes_each)
    for start in range(0, count, step):
        yield np.arange(start, min(start + step, count))


@dataclass
class _Line:
    """What the objective along one direction per problem depends on, besides the step length."""

    logit_step: NDArray[np.float64]
    """Change of the logits per unit of step length, (a, k, n)."""
    norm: NDArray[np.float64]
    """½ ‖weights‖² at step length 0, (a,)."""
    linear: NDArray[np.float64]
    """Inner product of weights and direction, (a,)."""
    square: NDArray[np.float64]
    """‖direction‖² without the intercepts, (a,)."""


class _Problems:
    """The iterates and L-BFGS history pairs of the a problems that are not finished yet.

    ``theta`` has shape (a, k, r + 1), the intercept last. ``index`` (a,) holds each problem's
    position in the :class:`Solution`.
    """

    def __init__(
        self,
        matrix: Matrix,
        targets: NDArray[np.float64],
        cost: NDArray[np.float64],
        index: NDArray[np.int64],
    ) -> None:
        self.matrix, self.targets = matrix, targets
        self.cost, self.index = cost, index
        k, n = targets.shape
        self.theta = np.zeros((len(cost), k, matrix.shape[1] + 1))
        self.logits = np.zeros((len(cost), k, n))
        self.pairs: deque[_Pair] = deque(maxlen=MEMORY)
        self.restarted = np.zeros(len(cost), bool)
        loss, self.p = loss_and_probabilities(self.logits, targets)
        self.objective = self._objective(loss)
        self.gradient = self._gradient()

    def start(self, theta: NDArray[np.float64], direction: NDArray[np.float64]) -> None:
        """Go from ``theta`` along ``direction``, both (a, k, r + 1), to where it is lowest."""
        a, k, n = self.logits.shape
        self.theta = theta.copy()
        self.logits = self.matrix.logits(theta[..., :-1].reshape(a * k, -1)).reshape(a, k, n)
        self.logits += theta[..., -1:]
        loss, self.p = loss_and_probabilities(self.logits, self.targets)
        self.objective = self._objective(loss)
        self.gradient = self._gradient()
        self._step_along(direction)
        self.restarted[:] = False

    def _gradient(self) -> NDArray[np.float64]:
        residual = (self.p - self.targets) * self.cost[:, None]
        a, k, n = residual.shape
        gradient = np.empty_like(self.theta)
        inner = self.matrix.gradients(residual.reshape(a * k, n)).reshape(a, k, -1)
        np.add(inner, self.theta[..., :-1], out=gradient[..., :-1])
        gradient[..., -1] = residual.sum(axis=2)
        return gradient

    def _objective(self, loss: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.vecdot(self.cost, loss) + 0.5 * _square(self.theta[..., :-1])

    def gap(self) -> NDArray[np.float64]:
        """Bound on the relative gap to the optimum, (a,).

        Minimised over the intercepts, the objective is 1-strongly convex in the weights, so it
        exceeds its minimum by at most ½ ‖gradient‖². The decrease that a Newton step predicts
        for each intercept is added.
        """
        weight_gradient = self.gradient[..., :-1].reshape(len(self.cost), -1)
        intercept_gradient = self.gradient[..., -1]
        curvature = self._intercept_curvature()
        decrease = (intercept_gradient**2 / np.maximum(curvature, 1e-300)).sum(axis=1)
        flat = (curvature <= 0).any(axis=1)
        decrease[flat & (intercept_gradient != 0).any(axis=1)] = np.inf
        bound = 0.5 * (np.vecdot(weight_gradient, weight_gradient) + decrease)
        return bound / np.maximum(self.objective, 1e-300)

    def _intercept_curvature(self) -> NDArray[np.float64]:
        """Second derivative of the objective by each intercept, (a, k)."""
        return np.einsum("akn,an->ak", self.p * (1 - self.p), self.cost)

    def direction(self) -> NDArray[np.float64]:
        """The L-BFGS direction by the two-loop recursion, (a, k, r + 1)."""
        a, k, width = self.theta.shape
        values, vectors = self._intercept_hessian()
        # The preconditioner inverts values · mean_square + penalty: the Hessian's eigenvalues, if
        # the samples' curvatures p (1 - p) were uncorrelated with their features.
        mean_square = np.append(self.matrix.power / self.matrix.shape[0], 1.0)
        penalty = np.append(np.ones(width - 1), 0.0)
        least = 1e-12 * self.cost.sum(axis=1)[:, None]
        direction = np.empty_like(self.theta)
        # A few problems at a time, so that their history pairs stay in the processor's cache.
        chunk = max(1, _CACHE_BYTES // (8 * 2 * MEMORY * k * width))
        for start in range(0, a, chunk):
            part = slice(start, start + chunk)
            q = self.gradient[part].reshape(-1, k * width).copy()
            alphas = []
            for step, change, rho in reversed(self.pairs):
                alpha = rho[part] * np.vecdot(step[part], q)
                q -= alpha[:, None] * change[part]
                alphas.append(alpha)
            rotated = vectors[part].mT @ q.reshape(-1, k, width)
            rotated /= np.maximum(values[part], least[part])[..., None] * mean_square + penalty
            q = (vectors[part] @ rotated).reshape(-1, k * width)
            for (step, change, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
                alpha = alpha - rho[part] * np.vecdot(change[part], q)
                q += alpha[:, None] * step[part]
            np.negative(q.reshape(-1, k, width), out=direction[part])
        return direction

    def _intercept_hessian(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues (a, k), eigenvectors (a, k, k) of the Hessian Σ cost · (diag p - p pᵀ)."""
        if self.p.shape[1] == 1:
            return self._intercept_curvature(), np.ones((len(self.cost), 1, 1))
        weighted = self.p * self.cost[:, None]
        hessian = -weighted @ self.p.mT
        diagonal = np.arange(self.p.shape[1])
        hessian[:, diagonal, diagonal] += weighted.sum(axis=2)
        values, vectors = np.linalg.eigh(hessian)
        return values, vectors

    def advance(self) -> NDArray[np.bool_]:
        """Do one iteration of every problem; return which cannot make progress, (a,).

        A problem whose line search fails is tried once more without history pairs, because
        rounding errors may dominate them.
        """
        return self._step_along(self.direction())

    def _step_along(self, direction: NDArray[np.float64]) -> NDArray[np.bool_]:
        a, k, n = self.logits.shape
        weight_direction = direction[..., :-1].reshape(a * k, -1)
        logit_step = self.matrix.logits(weight_direction).reshape(a, k, n)
        logit_step += direction[..., -1:]
        length, objective = self._search(direction, logit_step)
        stuck = length == 0
        step = length[:, None, None] * direction
        old_gradient = self.gradient
        self.theta += step
        self.logits += length[:, None, None] * logit_step
        self.objective = objective
        self.gradient = self._gradient()
        step = step.reshape(a, -1)
        change = (self.gradient - old_gradient).reshape(a, -1)
        step_dot_change = np.vecdot(step, change)
        # rho = 0 disables a history pair.
        rho = np.divide(1, step_dot_change, out=np.zeros(a), where=step_dot_change > 0)
        self.pairs.append((step, change, rho))
        for _, _, pair_rho in self.pairs:
            pair_rho[stuck] = 0
        failed = stuck & self.restarted
        self.restarted = stuck
        return failed

    def _search(
        self, direction: NDArray[np.float64], logit_step: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Line search: step lengths and the objective there, (a,) each.

        Newton's method inside a bracket brings the slope near zero. The logits are linear in the
        step length, so that trials need no product with the matrix. ``self.p`` is updated to the
        accepted steps. A length of 0 means that no step was accepted, for instance because the
        direction does not descend.
        """
        a = len(direction)
        theta = self.theta[..., :-1]
        linear = np.vecdot(theta.reshape(a, -1), direction[..., :-1].reshape(a, -1))
        line = _Line(logit_step, 0.5 * _square(theta), linear, _square(direction[..., :-1]))
        slope = np.vecdot(self.gradient.reshape(a, -1), direction.reshape(a, -1))
        length, low, high = np.ones(a), np.zeros(a), np.full(a, np.inf)
        result, objective = np.zeros(a), self.objective.copy()
        todo = np.flatnonzero(slope < 0)
        for _ in range(_MAX_TRIALS):
            if not len(todo):
                break
            t = length[todo]
            value, slope_here, curvature, p = self._evaluate(line, todo, t)
            allowed = self.objective[todo] * (1 + 1e-14)  # rounding must not reject a step
            good = (np.abs(slope_here) <= _SLOPE_RATIO * -slope[todo]) & (value <= allowed)
            accepted = todo[good]
            result[accepted], objective[accepted], self.p[accepted] = t[good], value[good], p[good]
            low[todo] = np.where(slope_here < 0, t, low[todo])
            high[todo] = np.where(slope_here < 0, high[todo], t)
            newton = t - slope_here / curvature
            lower, upper = low[todo], high[todo]
            middle = np.where(np.isinf(upper), 2 * t, (lower + upper) / 2)
            upper = np.where(np.isinf(upper), 10 * t, upper)
            inside = (newton > lower) & (newton < upper)
            length[todo] = np.where(inside, newton, middle)
            todo = todo[~good]
        return result, objective

    def _evaluate(
        self, line: _Line, which: NDArray[np.int64], t: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], ...]:
        """Objective, slope and curvature (b,) at step lengths t (b,), and p (b, k, n)."""
        cost, logit_step = self.cost[which], line.logit_step[which]
        linear, square = line.linear[which], line.square[which]
        loss, p = loss_and_probabilities(
            self.logits[which] + t[:, None, None] * logit_step, self.targets
        )
        value = np.vecdot(cost, loss) + line.norm[which] + t * linear
        value += 0.5 * t**2 * square
        weighted = p * logit_step
        slope = np.einsum("akn,an->a", weighted - self.targets * logit_step, cost)
        slope += linear + t * square
        curvature = np.einsum("akn,akn,an->a", weighted, logit_step, cost)
        curvature -= np.vecdot(cost, weighted.sum(axis=1) ** 2)
        curvature += square
        return value, slope, curvature, p

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Drop all problems but those where ``which`` (a,) is true."""
        for name in (
            "cost", "index", "theta", "logits", "restarted", "p", "objective", "gradient",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[which])
        kept = [(step[which], change[which], rho[which]) for step, change, rho in self.pairs]
        self.pairs = deque(kept, maxlen=MEMORY)


def _solve(problems: _Problems, solution: Solution, max_iter: int, tolerance: float) -> None:
    """Iterate until every problem is solved, cannot make progress or reaches ``max_iter``."""
    failed = np.zeros(len(problems.cost), bool)
    for iteration in range(max_iter + 1):
        gap = problems.gap()
        done = failed | (gap <= tolerance) | (iteration == max_iter)
        # Dropping problems copies all arrays: worth it once an eighth of them is done.
        if 8 * done.sum() >= len(done) or done.all():
            index = problems.index[done]
            solution.weights[index] = problems.theta[done, :, :-1]
            solution.intercepts[index] = problems.theta[done, :, -1]
            solution.objective[index] = problems.objective[done]
            solution.gap[index] = gap[done]
            solution.iterations[index] = iteration
            if done.all():
                return
            problems.keep(~done)
        failed = problems.advance()


def _square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("akr,akr->a", values, values)
