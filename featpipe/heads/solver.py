"""Many L2-regularised logistic regressions on one matrix, solved together.

Problems differ in C and in the weight of each sample, and share every product with the matrix:
an iteration is one product to get from directions to logits and one to get from residuals to
gradients, each as wide as all unfinished problems together. Method: L-BFGS (Nocedal & Wright,
*Numerical Optimization*, 7.2) from the diagonal of the Hessian, which in coordinates rotated to
the matrix's principal axes is nearly all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

MEMORY = 5
"""Pairs of steps and gradient changes that L-BFGS remembers."""
TOLERANCE = 1e-10
"""Largest gap to the optimum, relative to the objective, of a problem that is solved."""
MAX_BATCH_BYTES = 2**30
"""Problems that would take more are solved in several batches."""
_CACHE_BYTES = 2**20
_MAX_TRIALS = 40
_FLATTER = 0.3
"""A step ends where the slope along it has fallen to this share."""


class Matrix(Protocol):
    """The samples: n rows of r features, centred; going through them is what costs.

    Attributes
    ----------
    shape : (n, r)
    power : ndarray of float64, shape (r,)
        Sum of the squares of each feature.
    """

    shape: tuple[int, int]
    power: np.ndarray

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """(q, r) → (q, n)."""

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """(q, n) → (q, r)."""


class DenseMatrix:
    """A matrix in memory.

    Parameters
    ----------
    Z : ndarray of float64, shape (n, r)
    """

    def __init__(self, Z: np.ndarray) -> None:
        self.Z = Z
        self.shape: tuple[int, int] = Z.shape
        self.power = np.einsum("ij,ij->j", Z, Z)

    def logits(self, weights: np.ndarray) -> np.ndarray:
        """See :class:`Matrix`."""
        return weights @ self.Z.T

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        """See :class:`Matrix`."""
        return residuals @ self.Z


@dataclass
class Solution:
    """What was found for each of p problems; two classes have one column, k have k.

    Attributes
    ----------
    weights : ndarray of float64, shape (p, k, r)
    intercepts : ndarray of float64, shape (p, k)
    objective : ndarray of float64, shape (p,)
        C · Σ weight · loss + ½ ‖weights‖².
    gap : ndarray of float64, shape (p,)
        How far above the optimum the objective may be, relative to it.
    iterations : ndarray of int, shape (p,)
    """

    weights: np.ndarray
    intercepts: np.ndarray
    objective: np.ndarray
    gap: np.ndarray
    iterations: np.ndarray


def solve(
    matrix: Matrix,
    y: np.ndarray,
    classes: int,
    C: np.ndarray,
    sample_weight: np.ndarray,
    *,
    max_iter: int,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Solve p problems.

    Parameters
    ----------
    matrix : Matrix
    y : ndarray of int, shape (n,)
    classes : int
        At least 2; each should have a sample of some weight in each problem.
    C : ndarray, shape (p,)
    sample_weight : ndarray, shape (p, n)
        0 leaves a sample out.
    max_iter : int
        Of each problem; one stopped there has a larger gap than the tolerance.
    tolerance : float
    """
    n, r = matrix.shape
    k = 1 if classes == 2 else classes
    targets = _targets(y, k)
    C = np.asarray(C, np.float64)
    found = Solution(
        np.zeros((len(C), k, r)),
        np.zeros((len(C), k)),
        np.zeros(len(C)),
        np.zeros(len(C)),
        np.zeros(len(C), np.int64),
    )
    for some in _batches(len(C), 8 * k * ((2 * MEMORY + 8) * (r + 1) + 8 * n)):
        cost = C[some, None] * sample_weight[some]
        _solve(_Batch(matrix, targets, cost, some), found, max_iter, tolerance)
    if k > 1:
        # A shift common to all classes changes no probability.
        found.intercepts -= found.intercepts.mean(axis=1, keepdims=True)
    return found


def _batches(count: int, bytes_each: int) -> Iterator[np.ndarray]:
    step = max(1, MAX_BATCH_BYTES // bytes_each)
    for start in range(0, count, step):
        yield np.arange(start, min(start + step, count))


class _Batch:
    """Unfinished problems: where they are, and what L-BFGS remembers of the way.

    Parameters are (a, k, r + 1), the intercept last.
    """

    def __init__(
        self, matrix: Matrix, targets: np.ndarray, cost: np.ndarray, number: np.ndarray
    ) -> None:
        self.matrix, self.targets = matrix, targets
        self.cost, self.number = cost, number
        k, n = targets.shape
        self.theta = np.zeros((len(cost), k, matrix.shape[1] + 1))
        self.logits = np.zeros((len(cost), k, n))
        self.pairs: deque[tuple[np.ndarray, np.ndarray, np.ndarray]] = deque(maxlen=MEMORY)
        self.restarted = np.zeros(len(cost), bool)
        loss, self.p = _loss(self.logits, targets)
        self.objective = np.vecdot(cost, loss)
        self.gradient = self._gradient()

    def _gradient(self) -> np.ndarray:
        residual = (self.p - self.targets) * self.cost[:, None]
        a, k, n = residual.shape
        gradient = np.empty_like(self.theta)
        inner = self.matrix.gradients(residual.reshape(a * k, n)).reshape(a, k, -1)
        np.add(inner, self.theta[..., :-1], out=gradient[..., :-1])
        gradient[..., -1] = residual.sum(axis=2)
        return gradient

    def gap(self) -> np.ndarray:
        """Bound on the relative distance to the optimum, (a,).

        With the intercept at its best the objective curves by at least 1 in every direction, so
        it lies at most ½ ‖gradient‖² above its lowest; the intercept adds a Newton step's worth.
        """
        inner = self.gradient[..., :-1].reshape(len(self.cost), -1)
        outer = self.gradient[..., -1]
        spread = self._spread()
        rest = (outer**2 / np.maximum(spread, 1e-300)).sum(axis=1)
        rest[(spread <= 0).any(axis=1) & (outer != 0).any(axis=1)] = np.inf
        return 0.5 * (np.vecdot(inner, inner) + rest) / np.maximum(self.objective, 1e-300)

    def _spread(self) -> np.ndarray:
        # Curvature of each intercept, (a, k).
        return np.einsum("akn,an->ak", self.p * (1 - self.p), self.cost)

    def direction(self) -> np.ndarray:
        """Where L-BFGS would step to, (a, k, r + 1)."""
        a, k, width = self.theta.shape
        values, vectors = self._coupling()
        # Eigenvalues of the Hessian, were samples' weights p (1 - p) unrelated to their features.
        share = np.append(self.matrix.power / self.matrix.shape[0], 1.0)
        penalty = np.append(np.ones(width - 1), 0.0)
        least = 1e-12 * self.cost.sum(axis=1)[:, None]
        direction = np.empty_like(self.theta)
        # A few problems at a time, so that what they remember stays in the processor's cache.
        few = max(1, _CACHE_BYTES // (8 * 2 * MEMORY * k * width))
        for start in range(0, a, few):
            part = slice(start, start + few)
            q = self.gradient[part].reshape(-1, k * width).copy()
            shares = []
            for step, change, rho in reversed(self.pairs):
                along = rho[part] * np.vecdot(step[part], q)
                q -= along[:, None] * change[part]
                shares.append(along)
            turned = vectors[part].mT @ q.reshape(-1, k, width)
            turned /= np.maximum(values[part], least[part])[..., None] * share + penalty
            q = (vectors[part] @ turned).reshape(-1, k * width)
            for (step, change, rho), along in zip(self.pairs, reversed(shares), strict=True):
                along = along - rho[part] * np.vecdot(change[part], q)
                q += along[:, None] * step[part]
            np.negative(q.reshape(-1, k, width), out=direction[part])
        return direction

    def _coupling(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (a, k) and eigenvectors (a, k, k) of Σ cost · (diag p - p pᵀ)."""
        if self.p.shape[1] == 1:
            return self._spread(), np.ones((len(self.cost), 1, 1))
        weighted = self.p * self.cost[:, None]
        matrix = -weighted @ self.p.mT
        index = np.arange(self.p.shape[1])
        matrix[:, index, index] += weighted.sum(axis=2)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors

    def advance(self) -> np.ndarray:
        """One iteration of every problem; which of them could not move, (a,)."""
        a, k, n = self.logits.shape
        direction = self.direction()
        ahead = self.matrix.logits(direction[..., :-1].reshape(a * k, -1)).reshape(a, k, n)
        ahead += direction[..., -1:]
        length, objective = self._search(direction, ahead)
        stuck = length == 0
        step = length[:, None, None] * direction
        before = self.gradient
        self.theta += step
        self.logits += length[:, None, None] * ahead
        self.objective = objective
        self.gradient = self._gradient()
        step = step.reshape(a, -1)
        change = (self.gradient - before).reshape(a, -1)
        turned = np.vecdot(step, change)
        usable = turned > 0
        rho = np.divide(1, turned, out=np.zeros(a), where=usable)
        self.pairs.append((step, change, rho))
        # What is remembered may point astray where rounding rules: once more without it.
        for _, _, known in self.pairs:
            known[stuck] = 0
        lost = stuck & self.restarted
        self.restarted = stuck
        return lost

    def _search(self, direction: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step lengths that are nearly best, and the objective there: (a,) each.

        Along a line, logits need no product. The slope is brought near zero by Newton's method
        inside a bracket; probabilities are left as they are there. Length 0: the direction does
        not lead down.
        """
        a = len(direction)
        linear = np.vecdot(self.theta[..., :-1].reshape(a, -1), direction[..., :-1].reshape(a, -1))
        square = _square(direction[..., :-1])
        slope = np.vecdot(self.gradient.reshape(a, -1), direction.reshape(a, -1))
        norm = 0.5 * _square(self.theta[..., :-1])
        length, low, high = np.ones(a), np.zeros(a), np.full(a, np.inf)
        result, objective = np.zeros(a), self.objective.copy()
        todo = np.flatnonzero(slope < 0)
        for _ in range(_MAX_TRIALS):
            if not len(todo):
                break
            t, cost = length[todo], self.cost[todo]
            move = ahead[todo]
            loss, p = _loss(self.logits[todo] + t[:, None, None] * move, self.targets)
            value = np.vecdot(cost, loss) + norm[todo] + t * linear[todo]
            value += 0.5 * t**2 * square[todo]
            moved = p * move
            here = np.einsum("akn,an->a", moved - self.targets * move, cost)
            here += linear[todo] + t * square[todo]
            bend = np.einsum("akn,akn,an->a", moved, move, cost)
            bend -= np.vecdot(cost, moved.sum(axis=1) ** 2)
            bend += square[todo]
            allowed = self.objective[todo] * (1 + 1e-14)
            good = (np.abs(here) <= _FLATTER * -slope[todo]) & (value <= allowed)
            ended = todo[good]
            result[ended], objective[ended], self.p[ended] = t[good], value[good], p[good]
            low[todo] = np.where(here < 0, t, low[todo])
            high[todo] = np.where(here < 0, high[todo], t)
            guess = t - here / bend
            floor, roof = low[todo], high[todo]
            middle = np.where(np.isinf(roof), 2 * t, (floor + roof) / 2)
            roof = np.where(np.isinf(roof), 10 * t, roof)
            inside = (guess > floor) & (guess < roof)
            length[todo] = np.where(inside, guess, middle)
            todo = todo[~good]
        return result, objective

    def keep(self, which: np.ndarray) -> None:
        """Go on with some of the problems only."""
        for name in (
            "cost", "number", "theta", "logits", "restarted", "p", "objective", "gradient",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name)[which])
        kept = [(step[which], change[which], rho[which]) for step, change, rho in self.pairs]
        self.pairs = deque(kept, maxlen=MEMORY)


def _solve(batch: _Batch, found: Solution, max_iter: int, tolerance: float) -> None:
    lost = np.zeros(len(batch.cost), bool)
    for iteration in range(max_iter + 1):
        gap = batch.gap()
        done = lost | (gap <= tolerance) | (iteration == max_iter)
        # Dropping moves all that is remembered: worth it for a few at a time.
        if 8 * done.sum() >= len(done) or done.all():
            number = batch.number[done]
            found.weights[number] = batch.theta[done, :, :-1]
            found.intercepts[number] = batch.theta[done, :, -1]
            found.objective[number] = batch.objective[done]
            found.gap[number] = gap[done]
            found.iterations[number] = iteration
            if done.all():
                return
            batch.keep(~done)
        lost = batch.advance()


def _loss(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _square(values: np.ndarray) -> np.ndarray:
    return np.einsum("akr,akr->a", values, values)


def losses(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Loss of each sample in nats, (a, n), from logits (a, k, n) as :func:`solve` has them."""
    k = logits.shape[1]
    return _loss(logits, _targets(y, k))[0]


def _targets(y: np.ndarray, k: int) -> np.ndarray:
    # Where there is one column it speaks of the second class.
    labels = np.array([1]) if k == 1 else np.arange(k)
    return (y == labels[:, None]).astype(np.float64)
