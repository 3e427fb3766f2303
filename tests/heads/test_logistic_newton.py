"""Newton's method reaches the optimum of the slow solver, from every start and in every space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from featpipe.heads import logistic_axes, logistic_preconditioner, logistic_rows
from featpipe.heads.logistic_axes import Axes
from featpipe.heads.logistic_lbfgs import solve
from featpipe.heads.logistic_newton import Fit, NewtonSolver
from featpipe.heads.logistic_preconditioner import ClassByClass, CommonAxes, DecisiveSamples
from featpipe.heads.logistic_problem import DenseMatrix, losses_and_residuals
from featpipe.heads.logistic_rows import FeatureRows, GramRows, Rows
from featpipe.heads.logistic_solvers import PATH_TOLERANCE

GRID = np.array([1e-6, 1e-3, 1e-1, 1.0, 100.0])
SPACES: dict[str, Callable[[np.ndarray], Rows]] = {"features": FeatureRows, "gram": GramRows}


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Standardised rows of float16 like those behind a ReLU."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(n, d)) * np.linspace(0.2, 3, d), 0).astype(np.float16)
    wide = X.astype(np.float64) - X.mean(axis=0, dtype=np.float64)
    return (wide / (np.sqrt(wide.var(axis=0).mean()) or 1.0)).astype(np.float32)


def cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    wide, tall = features(40, 120), features(90, 10)
    rng = np.random.default_rng(1)
    constant = tall.copy()
    constant[:, :4] = 0
    apart = tall + 20 * (np.arange(90) % 3)[:, None]
    return {
        "two classes, wide": (wide, np.arange(40) % 2),
        "two classes, tall": (tall, rng.integers(0, 2, 90)),
        "three classes, wide": (wide, np.arange(40) % 3),
        "many classes, tall": (tall, np.arange(90) % 30),
        "separable": (apart - apart.mean(axis=0), np.arange(90) % 3),
        "duplicated rows": (np.tile(wide[:15], (4, 1)), np.tile(np.arange(15) % 3, 4)),
        "the same row in two classes": (np.tile(wide[:15], (4, 1)), np.arange(60) % 2),
        "constant features": (constant, np.arange(90) % 2),
        "only constant features": (np.zeros((30, 3), np.float32), np.arange(30) % 3),
        "a class of one": (tall, np.where(np.arange(90) == 7, 2, np.arange(90) % 2)),
        "not centred": (tall + 3, np.arange(90) % 3),
        "large": (1e3 * tall, rng.integers(0, 3, 90)),
        "small": (1e-3 * tall, rng.integers(0, 3, 90)),
        "constant features, wide": (np.concatenate([0 * wide, wide], 1), np.arange(40) % 3),
        "a class of one, wide": (wide, np.where(np.arange(40) == 7, 2, np.arange(40) % 2)),
        "not centred, wide": (wide + 3, np.arange(40) % 3),
        "large, wide": (1e3 * wide, rng.integers(0, 3, 40)),
        "small, wide": (1e-3 * wide, rng.integers(0, 3, 40)),
        "as many rows as features": (features(30, 30), np.arange(30) % 3),
    }


def objective(rows: Rows, Z: np.ndarray, y: np.ndarray, cost: np.ndarray, fit: Fit) -> float:
    """In float64, from the features, computed otherwise than in the solver."""
    W = rows.features(fit.coefficients)
    logits = Z.astype(np.float64) @ W.T + fit.intercepts
    if len(W) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    loss = -log_softmax(logits, axis=1)[np.arange(len(y)), y]
    return float(cost @ loss + 0.5 * (W**2).sum())


def slow(Z: np.ndarray, y: np.ndarray, cost: np.ndarray) -> float:
    """The optimum by L-BFGS in float64, whose own tests compare it with scikit-learn."""
    classes = int(y.max()) + 1
    found = solve(
        DenseMatrix(Z.astype(np.float64)), y, classes, np.ones(1), cost[None], max_iter=20_000
    )
    assert found.gap[0] < 1e-8
    return float(found.objective[0])


@pytest.mark.parametrize("space", list(SPACES))
@pytest.mark.parametrize("name", list(cases()))
def test_the_path_has_the_optima_of_the_slow_solver(name: str, space: str) -> None:
    Z, y = cases()[name]
    if space == "gram" and len(Z) > 1.5 * Z.shape[1]:
        pytest.skip("inner products are for fewer samples than features")
    rows = SPACES[space](Z)
    newton = NewtonSolver(rows, y, int(y.max()) + 1)
    weight = np.random.default_rng(2).integers(1, 4, len(y)).astype(float)
    fit = newton.start()
    for C in GRID if "large" not in name else GRID[:2]:
        fit = newton.solve(C * weight, fit, tolerance=1e-6, max_iter=5000)
        best = slow(Z, y, C * weight)
        found = objective(rows, Z, y, C * weight, fit)
        assert best * (1 - 1e-9) - 1e-12 <= found <= best * (1 + 1e-6) + 1e-12
    finished = newton.solve(C * weight, fit, tolerance=1e-10, max_iter=5000)
    assert objective(rows, Z, y, C * weight, finished) <= best * (1 + 1e-9) + 1e-12


@example(n=4, d=8, classes=2, log_C=0.0, space="features", seed=0)
@given(
    n=st.integers(4, 30),
    d=st.integers(1, 40),
    classes=st.integers(2, 5),
    log_C=st.floats(-6, 1),
    space=st.sampled_from(list(SPACES)),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_any_small_problem_is_solved(
    n: int, d: int, classes: int, log_C: float, space: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    d = max(d, n) if space == "gram" else d
    classes = min(classes, n)
    y = rng.permutation(np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)]))
    Z, cost = features(n, d, seed), 10**log_C * rng.integers(0, 3, n).astype(float)
    # Every class keeps a sample.
    cost[[int(np.flatnonzero(y == label)[0]) for label in range(classes)]] = 10**log_C
    rows = SPACES[space](Z)
    newton = NewtonSolver(rows, y, classes)
    fit = newton.solve(cost, newton.start(), tolerance=PATH_TOLERANCE, max_iter=2000)
    best = slow(Z, y, cost)
    assert objective(rows, Z, y, cost, fit) <= best * (1 + 1e-6)


@pytest.mark.parametrize("space", list(SPACES))
@pytest.mark.parametrize("classes", [2, 4])
def test_some_axes_are_as_good_as_all(
    space: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    Z, y = features(*((60, 150) if space == "gram" else (150, 60))), np.arange(150) % classes
    y = y[: len(Z)]
    monkeypatch.setattr(logistic_rows, "_ALL_AXES", 10)
    monkeypatch.setattr(logistic_axes, "_SOME_AXES", 12)
    rows = SPACES[space](Z)
    newton = NewtonSolver(rows, y, classes)
    assert newton.axes.vectors is not None and newton.axes.vectors.shape[1] == 12
    cost = np.full(len(y), 0.1)
    fit = newton.solve(cost, newton.start(), tolerance=1e-6, max_iter=1000)
    best = slow(Z, y, cost)
    assert objective(rows, Z, y, cost, fit) <= best * (1 + 1e-6)


@pytest.mark.parametrize("space", list(SPACES))
def test_one_stopped_early_says_how_far_it_may_be_from_its_best(space: str) -> None:
    Z, y = features(60, 100), np.arange(60) % 3
    rows = SPACES[space](Z)
    newton, cost = NewtonSolver(rows, y, 3), np.full(60, 0.1)
    best = slow(Z, y, cost)
    for steps in (1, 3, 6, 10):
        early = newton.solve(cost, newton.start(), tolerance=1e-6, max_iter=steps)
        assert early.iterations <= steps
        short = (objective(rows, Z, y, cost, early) - best) / best
        assert short <= early.gap * 1.01 + 1e-7


def test_the_line_through_two_solutions_starts_nearer_than_the_last() -> None:
    Z, y = features(200, 40), np.arange(200) % 5
    newton = NewtonSolver(FeatureRows(Z), y, 5)
    older = newton.solve(np.full(200, 1e-3), newton.start(), tolerance=1e-6, max_iter=500)
    last = newton.solve(np.full(200, 3e-3), older, tolerance=1e-6, max_iter=500)
    cost = np.full(200, 1e-2)
    ahead = newton.between(cost, older, last)
    found = [objective(newton.rows, Z, y, cost, start) for start in (last, ahead)]
    best = slow(Z, y, cost)
    assert found[1] - best < 0.2 * (found[0] - best)


def exact_hessian(Z: np.ndarray, p: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """(k (d + 1), k (d + 1)) of the coefficients with their intercepts, unpenalised, last."""
    wide = np.concatenate([Z, np.ones((len(Z), 1))], axis=1).astype(np.float64)
    k, size = len(p), wide.shape[1]
    hessian = np.zeros((k, size, k, size))
    for a in range(k):
        for b in range(k):
            bent = cost * (p[a] * (a == b) - p[a] * p[b])
            hessian[a, :, b] = (wide * bent[:, None]).T @ wide
            if a == b:
                hessian[a, :, b] += np.diag(np.append(np.ones(size - 1), 0.0))
    return hessian.reshape(k * size, k * size)


@pytest.mark.parametrize("confident", [False, True])
def test_preconditioners_are_near_the_inverse_of_the_exact_hessian(confident: bool) -> None:
    Z = features(120, 20)
    rows, k = FeatureRows(Z), 6
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(k, 120)) * (6 if confident else 0.3)
    p = np.exp(log_softmax(logits, axis=0)).astype(np.float32)
    cost = np.full(120, 1.0)
    hessian = exact_hessian(rows.Z, p, cost)
    eye = Axes(np.eye(20, dtype=np.float32), rows.axes().values, 0.0)
    condition = {}
    for name, precondition in {
        "none": lambda r, rb: (r, rb),
        "classes": ClassByClass(p, cost, rows.axes(), rows.Z),
        "axes": CommonAxes(p, cost, eye),
    }.items():
        columns = []
        for unit in hessian.reshape(-1, k, 21):
            z, zb = precondition(unit[..., :-1].astype("f4"), unit[..., -1].astype("f4"))
            columns.append(np.concatenate([z, zb[:, None]], axis=1).ravel())
        # The shift of all classes is worth 0 for intercepts, and is left out of the weights.
        values = np.sort(np.abs(np.linalg.eigvals(np.array(columns, np.float64))))[21:]
        condition[name] = values[-1] / values[0]
    assert condition["axes"] < 0.25 * condition["none"]
    assert condition["classes"] < 0.3 * condition["none"]


def test_the_decisive_samples_make_the_inverse_of_one_class_exact() -> None:
    Z = features(30, 8)
    rows, cost = FeatureRows(Z), np.full(30, 2.0)
    p = np.random.default_rng(0).uniform(0.1, 0.9, (1, 30)).astype(np.float32)
    assert logistic_preconditioner._DECISIVE >= 30
    precondition = ClassByClass(p, cost, rows.axes(), rows.Z)
    hessian = exact_hessian(rows.Z, p, cost)[:-1, :-1]
    r = np.random.default_rng(1).normal(size=(1, 8)).astype(np.float32)
    z, _ = precondition(r, np.zeros(1, np.float32))
    assert np.allclose(z[0], np.linalg.solve(hessian, r[0]), rtol=1e-3, atol=1e-5)


def test_decisive_samples_of_two_classes_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Z = features(60, 20)
    rng = np.random.default_rng(0)
    # Half of the samples are close to the boundary, the others far from it.
    p = np.where(np.arange(60) % 2, 0.5, 1e-4)[None].astype(np.float32)
    cost, squares = rng.uniform(1, 3, 60), (Z**2).sum(axis=1)
    eye = Axes(np.eye(20, dtype=np.float32), (Z.astype(float) ** 2).mean(axis=0), 0.0)
    hessian = exact_hessian(Z, p, cost)[:-1, :-1]
    r = rng.normal(size=(1, 20)).astype(np.float32)
    truth = np.linalg.solve(hessian, r[0])
    error = {}
    for many in (512, 10, 0):
        monkeypatch.setattr(logistic_preconditioner, "_DECISIVE_OF_TWO", many)
        z, zb = DecisiveSamples(p, cost, eye, Z, squares)(r, np.ones(1, np.float32))
        error[many] = np.abs(z[0] - truth).max() / np.abs(truth).max()
        assert zb[0] == pytest.approx(1 / (cost * p[0] * (1 - p[0])).sum())
    assert error[512] < 1e-3 and error[10] < error[0]
    # None bends more than the penalty.
    few = DecisiveSamples(p, 1e-4 * cost, eye, Z, squares)
    assert len(few.mapped) == 0
    assert np.allclose(few(r, np.ones(1, np.float32))[0], r, rtol=0.1)


def test_the_same_again_is_the_same_to_the_bit() -> None:
    Z, y = features(60, 100), np.arange(60) % 3
    fits = []
    for _ in range(2):
        newton = NewtonSolver(GramRows(Z), y, 3)
        fits.append(newton.solve(np.ones(60), newton.start(), tolerance=1e-10, max_iter=500))
    assert fits[0].coefficients.tobytes() == fits[1].coefficients.tobytes()
    assert fits[0].intercepts.tobytes() == fits[1].intercepts.tobytes()


@pytest.mark.parametrize("k", [1, 4])
def test_float32_losses_keep_their_digits_where_samples_are_certain(k: int) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(k, 400)) * 12).astype(np.float32)
    y = np.arange(400) % max(k, 2)
    loss, p, residual = losses_and_residuals(logits, y)
    wide = logits.astype(np.float64)
    if k == 1:
        wide = np.concatenate([np.zeros_like(wide), wide])
    truth = np.exp(log_softmax(wide, axis=0))
    others = np.where(np.arange(len(wide))[:, None] == y, 0, truth).sum(axis=0)
    wrong = np.where(np.arange(len(wide))[:, None] == y, -others, truth)[-k:]
    assert np.allclose(loss, np.log1p(others / truth[y, np.arange(400)]), rtol=1e-5, atol=1e-30)
    assert np.allclose(residual, wrong, rtol=2e-5, atol=1e-30)
    assert np.allclose(p, truth[-k:], rtol=2e-5, atol=1e-7)
    assert np.isfinite(losses_and_residuals(logits * np.float32(1e4), y)[0]).all()
