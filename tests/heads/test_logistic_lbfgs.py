"""Many problems solved together are each solved as if alone, to scikit-learn's optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from featpipe.heads import logistic_lbfgs as solver
from featpipe.heads.logistic_lbfgs import Solution, solve
from featpipe.heads.logistic_problem import DenseMatrix, losses

GRID = np.array([1e-6, 1e-4, 1e-2, 1.0])


def rows_like_features(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Float64 of float16 rows behind a ReLU, standardised as heads do."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(n, d)) * np.linspace(0.2, 3, d), 0).astype(np.float16)
    wide = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    return wide / (np.sqrt(wide.var(axis=0).mean()) or 1.0)


def value_and_slope(
    Z: np.ndarray, y: np.ndarray, weight: np.ndarray, W: np.ndarray, b: np.ndarray, C: float
) -> tuple[float, float]:
    """scikit-learn's objective and the norm of its gradient, computed otherwise than in the solver.

    Two classes are one row: its logit against 0.
    """
    A = Z @ W.T + b
    if len(W) == 1:
        A = np.concatenate([np.zeros_like(A), A], axis=1)
    A -= A.max(axis=1, keepdims=True)
    log_p = A - np.log(np.exp(A).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(y)), y]
    residual = weight[:, None] * (np.exp(log_p) - np.eye(A.shape[1])[y])
    residual = residual[:, -len(W) :]
    slope = np.hypot(
        np.linalg.norm(C * residual.T @ Z + W), C * np.linalg.norm(residual.sum(axis=0))
    )
    return float(C * (weight * loss).sum() + 0.5 * (W**2).sum()), float(slope)


def oracle(Z: np.ndarray, y: np.ndarray, weight: np.ndarray, C: float) -> float:
    """The objective at scikit-learn's optimum."""
    used = weight > 0
    model = LogisticRegression(C=C, solver="newton-cg", tol=1e-10, max_iter=5000)
    model.fit(Z[used], y[used], sample_weight=weight[used])
    return value_and_slope(Z, y, weight, model.coef_, model.intercept_, C)[0]


def solved(
    Z: np.ndarray, y: np.ndarray, C: np.ndarray, weight: np.ndarray | None = None, **options: int
) -> Solution:
    if weight is None:
        weight = np.ones((len(C), len(y)))
    classes = int(y.max()) + 1
    return solve(DenseMatrix(Z), y, classes, C, weight, **{"max_iter": 1000, **options})


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    wide, tall = rows_like_features(40, 120), rows_like_features(90, 10)
    rng = np.random.default_rng(1)
    constant = tall.copy()
    constant[:, :4] = 0
    apart = tall.copy()
    apart[:, 0] += 20 * (np.arange(90) % 3)
    return {
        "two classes, wide": (wide, np.arange(40) % 2),
        "two classes, tall": (tall, rng.integers(0, 2, 90)),
        "three classes, wide": (wide, np.arange(40) % 3),
        "ten classes, tall": (tall, np.arange(90) % 10),
        "separable": (apart - apart.mean(axis=0), np.arange(90) % 3),
        "duplicated rows": (np.tile(wide[:15], (4, 1)), np.tile(np.arange(15) % 3, 4)),
        "the same row in two classes": (np.tile(wide[:15], (4, 1)), np.arange(60) % 2),
        "constant features": (constant, np.arange(90) % 2),
        "only constant features": (np.zeros((30, 3)), np.arange(30) % 3 // 2),
        "imbalanced": (tall, (np.arange(90) >= 84).astype(int)),
        "a class of one": (tall, np.where(np.arange(90) == 7, 2, np.arange(90) % 2)),
        "one against one": (wide[:2], np.arange(2)),
        "not centred": (tall + 3.0, np.arange(90) % 3),
        "large": (1e3 * tall, rng.integers(0, 3, 90)),
        "small": (1e-3 * tall, rng.integers(0, 3, 90)),
    }


@pytest.mark.parametrize("name", list(cases()))
def test_objective_is_scikit_learns(name: str) -> None:
    Z, y = cases()[name]
    found = solved(Z, y, GRID)
    for i, C in enumerate(GRID):
        value, _ = value_and_slope(Z, y, np.ones(len(y)), found.weights[i], found.intercepts[i], C)
        assert value == pytest.approx(found.objective[i], rel=1e-9)
        # Never worse than the oracle, which itself may stop short.
        best = oracle(Z, y, np.ones(len(y)), C)
        assert value <= best * (1 + 1e-8) + 1e-12
        assert value >= best * (1 - 1e-6) - 1e-12
    assert (found.gap <= solver.TOLERANCE).all()


@given(
    n=st.integers(4, 30),
    d=st.integers(1, 40),
    classes=st.integers(2, 5),
    log_C=st.floats(-6, 0),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_small_problem_is_solved(n: int, d: int, classes: int, log_C: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = min(classes, n)
    y = rng.permutation(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
    Z, weight = rows_like_features(n, d, seed), rng.integers(1, 4, n).astype(float)
    C = 10**log_C
    found = solved(Z, y, np.array([C]), weight[None])
    W, b = found.weights[0], found.intercepts[0]
    value, slope = value_and_slope(Z, y, weight, W, b, C)
    assert found.gap[0] <= solver.TOLERANCE
    # The gap is the one promised: strong convexity bounds it by the gradient.
    nothing = value_and_slope(Z, y, weight, 0 * W, 0 * b, C)[1]
    assert slope <= 1e-4 * max(nothing, np.sqrt(value))
    assert value == pytest.approx(oracle(Z, y, weight, C), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 4])
def test_problems_solved_together_are_those_solved_alone(classes: int) -> None:
    Z, y = rows_like_features(60, 100), np.arange(60) % classes
    fold = np.arange(60) // classes % 3
    weight = np.repeat([fold != i for i in range(3)], len(GRID), axis=0).astype(float)
    C = np.tile(GRID, 3)
    together = solved(Z, y, C, weight)
    for i in range(len(C)):
        kept = weight[i] > 0
        alone = solved(Z[kept], y[kept], C[i : i + 1])
        assert np.allclose(together.weights[i], alone.weights[0], atol=1e-5)
        assert np.allclose(together.intercepts[i], alone.intercepts[0], atol=1e-4)
        assert together.objective[i] == pytest.approx(alone.objective[0], rel=1e-9)


class Counted(DenseMatrix):
    """Tells how often, and how wide, the matrix is gone through."""

    def __init__(self, Z: np.ndarray) -> None:
        super().__init__(Z)
        self.widths: list[int] = []

    def logits(self, weights: np.ndarray) -> np.ndarray:
        self.widths.append(len(weights))
        return super().logits(weights)

    def gradients(self, residuals: np.ndarray) -> np.ndarray:
        self.widths.append(len(residuals))
        return super().gradients(residuals)


@pytest.mark.parametrize("classes", [2, 3])
def test_all_problems_share_their_passes(classes: int) -> None:
    y = np.arange(60) % classes
    matrix, k = Counted(rows_like_features(60, 100)), 1 if classes == 2 else classes
    C = np.repeat(GRID, 5)
    found = solve(matrix, y, classes, C, np.ones((20, 60)), max_iter=1000)
    # Two for each iteration of the slowest, and the gradient they all begin with.
    assert len(matrix.widths) == 1 + 2 * found.iterations.max()
    assert matrix.widths[0] == 20 * k
    # Those that are done are not taken along to the end.
    assert matrix.widths == sorted(matrix.widths, reverse=True)
    assert matrix.widths[-1] <= 10 * k
    assert found.iterations.min() < found.iterations.max() / 2


def test_problems_beyond_the_memory_are_solved_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    Z, y = rows_like_features(40, 60), np.arange(40) % 3
    at_once = solved(Z, y, GRID)
    monkeypatch.setattr(solver, "MAX_BATCH_BYTES", 1)
    matrix = Counted(Z)
    in_turn = solve(matrix, y, 3, GRID, np.ones((4, 40)), max_iter=1000)
    assert set(matrix.widths) == {3}
    assert np.allclose(at_once.weights, in_turn.weights, atol=1e-6)


def test_the_same_again_is_the_same_to_the_bit() -> None:
    Z, y = rows_like_features(60, 100), np.arange(60) % 3
    first, again = solved(Z, y, GRID), solved(Z, y, GRID)
    assert first.weights.tobytes() == again.weights.tobytes()
    assert first.intercepts.tobytes() == again.intercepts.tobytes()


def test_one_stopped_early_says_how_far_it_may_be_from_its_best() -> None:
    Z, y = rows_like_features(60, 100), np.arange(60) % 3
    best = solved(Z, y, GRID).objective
    for steps in (0, 1, 3, 6):
        early = solved(Z, y, GRID, max_iter=steps)
        assert (early.iterations <= steps).all()
        assert early.gap[-1] > solver.TOLERANCE
        short = (early.objective - best) / early.objective
        # A bound, but for the intercept, whose share is an estimate.
        assert (short <= early.gap * 1.01 + 1e-12).all()
        assert short[-1] > 1e-9


def test_fewer_iterations_than_without_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Features of very uneven size: what the principal axes of real ones are like.
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 60)) * np.logspace(2, -1, 60)
    y = (Z[:, :5] @ rng.normal(size=5) / 100 + rng.normal(size=200) > 0).astype(int)
    matrix = DenseMatrix(Z)
    with_it = solve(matrix, y, 2, GRID, np.ones((4, 200)), max_iter=2000).iterations.max()
    matrix.power = np.full(60, matrix.power.mean())
    without = solve(matrix, y, 2, GRID, np.ones((4, 200)), max_iter=2000).iterations.max()
    assert with_it < without / 2


@pytest.mark.parametrize("k", [1, 4])
def test_losses_do_not_overflow(k: int) -> None:
    logits = np.random.default_rng(0).normal(size=(2, k, 50)) * 1e4
    y = np.arange(50) % max(k, 2)
    wide = logits if k > 1 else np.concatenate([np.zeros_like(logits), logits], axis=1)
    expected = np.logaddexp.reduce(wide, axis=1) - wide[:, y, np.arange(50)]
    assert np.allclose(losses(logits, y), expected)
