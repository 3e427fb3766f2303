"""``logistic`` reaches scikit-learn's own optimum, whichever way it takes there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from featpipe.base.errors import UsageError
from featpipe.heads import base, logistic_reduced, logistic_solvers
from featpipe.heads.base import History
from featpipe.heads.logistic import LogisticHead, stratified_folds
from featpipe.heads.logistic_lbfgs import Solution
from featpipe.heads.logistic_path import C_GRID, NEGLIGIBLE
from featpipe.heads.logistic_problem import Matrix


def samples(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """float16 rows like those behind a ReLU: sparse, not negative, of uneven size."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = np.maximum(rng.normal(size=(n, d)) * np.linspace(0.2, 3, d), 0)
    X[np.arange(n), y] += 1.5
    return X.astype(np.float16), y


def fitted(
    head: LogisticHead,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray] | None = None,
) -> History:
    head.classes_ = np.array([str(i) for i in range(int(train[1].max()) + 1)])
    return head.fit(*train, *(val or train), seed=0, device="cpu", tick=lambda row: None)


def objective(
    weight: np.ndarray, bias: np.ndarray, Z: np.ndarray, y: np.ndarray, C: float
) -> float:
    """scikit-learn's: C times the summed loss, plus half the squared norm.

    Where there are two classes scikit-learn has one row of weights; the head's first is zero.
    """
    logits = Z @ weight.astype(np.float64).T + bias.astype(np.float64)
    top = logits.max(axis=1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    loss = (log_sum - logits[np.arange(len(y)), y]).sum()
    return float(C * loss + 0.5 * (weight.astype(np.float64) ** 2).sum())


def reference(Z: np.ndarray, y: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    model = LogisticRegression(C=C, solver="lbfgs", tol=1e-12, max_iter=20_000).fit(Z, y)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([0 * weight, weight]), np.concatenate([[0.0], bias])
    return weight, bias


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(60, 400), (200, 12), (40, 40)])
@pytest.mark.parametrize("C", [1e-6, 1e-3, 1.0])
def test_objective_is_scikit_learns(C: float, n: int, d: int, classes: int) -> None:
    X, y = samples(n, d, classes)
    head = LogisticHead(C=C)
    fitted(head, (X, y))
    # Standardised by hand, and not rotated.
    wide = X.astype(np.float64)
    Z = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0).mean())
    expected = objective(*reference(Z, y, C), Z, y, C)
    found = objective(head.weight_, head.bias_, Z, y, C)
    assert found == pytest.approx(expected, rel=1e-6)
    # A head that had learned nothing would be told apart from the optimum.
    nothing = objective(0 * head.weight_, 0 * head.bias_, Z, y, C)
    assert nothing > expected * (1 + 1e-5) or C < 1e-5


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(60, 400), (200, 12)])
def test_probabilities_are_scikit_learns(n: int, d: int, classes: int) -> None:
    X, y = samples(n, d, classes)
    head = LogisticHead(C=0.01)
    fitted(head, (X, y))
    fresh, _ = samples(50, d, classes, seed=1)
    # In float32 scikit-learn itself stops short of the optimum.
    Z, Z_fresh = head.standardise(X).astype("f8"), head.standardise(fresh).astype("f8")
    model = LogisticRegression(C=0.01, tol=1e-12, max_iter=20_000).fit(Z, y)
    expected = model.predict_proba(Z_fresh)
    assert np.allclose(head.predict_proba(fresh), expected, atol=1e-5)


def test_every_step_of_the_path_is_an_optimum() -> None:
    # Warm starts must not leave a later C where an earlier one stopped.
    X, y = samples(80, 30, 3)
    head = LogisticHead()
    history = fitted(head, (X, y))
    for row in history.rows[::4]:
        alone = LogisticHead(C=row.at)
        (single,) = fitted(alone, (X, y)).rows
        # A millionth of the objective is a thousandth of the distance.
        assert row.train_loss == pytest.approx(single.train_loss, rel=2e-3)
        assert row.val_accuracy == single.val_accuracy


def test_samples_are_rotated_into_the_fewest_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    real = logistic_solvers.solve

    def watched(matrix: Matrix, *args: Any, **options: Any) -> Solution:
        shapes.append(matrix.shape)
        return real(matrix, *args, **options)

    monkeypatch.setattr(logistic_solvers, "solve", watched)
    for n, d in ((30, 200), (200, 30), (30, 30)):
        head = LogisticHead(C=0.1)
        fitted(head, samples(n, d, 2))
        assert head.weight_.shape == (2, d)
    # Centring takes one dimension away.
    assert shapes == [(30, 29), (200, 30), (30, 29)]
    # Where both are too many for eigenvectors, features are taken as they are.
    monkeypatch.setattr(logistic_reduced, "MAX_ROTATED", 20)
    fitted(LogisticHead(C=0.1), samples(30, 200, 2))
    assert shapes[-1] == (30, 200)


@pytest.mark.parametrize(
    ("way", "n", "d"),
    [
        ("not rotated", 60, 300),
        ("not rotated", 150, 20),
        ("read again", 150, 20),
        ("read again, not rotated", 60, 300),
        ("read again, not rotated", 150, 20),
    ],
)
def test_every_way_leads_to_the_same_head(
    way: str, n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = samples(n, d, 3)
    expected, found = LogisticHead(folds=3), LogisticHead(folds=3)
    history = fitted(expected, train)
    if "not rotated" in way:
        monkeypatch.setattr(logistic_reduced, "MAX_ROTATED", 10)
    if "again" in way:
        monkeypatch.setattr(logistic_reduced, "MAX_DENSE_BYTES", 0)
        # Several blocks, the last one shorter.
        monkeypatch.setattr(base, "_BLOCK_BYTES", 4 * d * 7)
    other = fitted(found, train)
    assert np.allclose(found.weight_, expected.weight_, atol=1e-5)
    assert np.allclose(found.bias_, expected.bias_, atol=1e-5)
    assert other.kept.at == history.kept.at
    rows = {row.at: row for row in other.rows}
    for row in history.rows:
        assert rows[row.at].as_json("C") == pytest.approx(row.as_json("C"), rel=2e-3)


def test_rows_that_are_read_again_are_never_held_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = samples(500, 40, 2)
    monkeypatch.setattr(logistic_reduced, "MAX_DENSE_BYTES", 0)
    monkeypatch.setattr(base, "_BLOCK_BYTES", 4 * 40 * 50)
    most = 0

    class Mapped:
        shape, dtype = X.shape, X.dtype

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, key: slice) -> np.ndarray:
            nonlocal most
            most = max(most, len(X[key]))
            return X[key]

        def __array__(self, *args: Any, **options: Any) -> np.ndarray:
            raise AssertionError("read whole")

    head = LogisticHead(C=0.1)
    head.classes_ = np.array(["a", "b"])
    head.fit(Mapped(), y, X[:20], y[:20], seed=0, device="cpu", tick=lambda row: None)
    assert most == 50
    plain = LogisticHead(C=0.1)
    monkeypatch.undo()
    fitted(plain, (X, y))
    assert np.allclose(head.weight_, plain.weight_, atol=1e-6)


def test_duplicated_samples_do_not_upset_the_rotation() -> None:
    # They make the matrix of inner products singular.
    X, y = samples(20, 100, 2)
    X, y = np.concatenate([X] * 3), np.concatenate([y] * 3)
    head = LogisticHead(C=1e-2)
    fitted(head, (X, y))
    weight, bias = reference(head.standardise(X).astype(np.float64), y, 1e-2)
    assert np.allclose(head.weight_, weight, atol=1e-5)
    assert np.allclose(head.bias_, bias, atol=1e-5)


def test_c_is_chosen_by_validation() -> None:
    rng = np.random.default_rng(0)

    def noisy(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(n) % 2
        return (rng.normal(size=(n, 100)) + 0.3 * y[:, None]).astype(np.float16), y

    train, val = noisy(60), noisy(300)
    head = LogisticHead()
    history = fitted(head, train, val)
    losses = [row.val_loss for row in history.rows]
    chosen = history.rows[history.best].at
    assert [row.at for row in history.rows] == list(C_GRID)
    assert history.best == int(np.argmin(losses))
    assert C_GRID[0] < chosen < C_GRID[-1]
    # Training alone would have taken the largest.
    assert int(np.argmin([row.train_loss for row in history.rows])) == len(C_GRID) - 1
    p = head.predict_proba(val[0])[np.arange(300), val[1]]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-6)
    # Flattering validation rows ask for a larger one, until nothing is left to gain.
    flattered = fitted(LogisticHead(), train, train)
    assert flattered.kept.at == max(row.at for row in flattered.rows)
    assert flattered.kept.val_loss < NEGLIGIBLE


def test_a_given_c_is_not_searched() -> None:
    head = LogisticHead(C=0.25)
    history = fitted(head, samples(40, 10, 2))
    assert [row.at for row in history.rows] == [0.25]
    assert history.best == 0
    assert head.params["C"] == 0.25


def test_two_classes_are_two_rows_of_weights() -> None:
    head = LogisticHead(C=1.0)
    fitted(head, samples(40, 10, 2))
    assert head.weight_.shape == (2, 10) and head.bias_.shape == (2,)
    assert head.weight_.dtype == head.bias_.dtype == np.float32
    assert not head.weight_[0].any() and head.weight_[1].any()


def noisy(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that overlap, so that neither the smallest C is best nor the largest."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(size=(n, d))
    X[np.arange(n), y] += 1.5
    return X.astype(np.float16), y


@pytest.mark.parametrize("classes", [2, 3])
def test_held_out_loss_is_that_of_heads_trained_without_the_fold(classes: int) -> None:
    X, y = noisy(60, 100, classes)
    head = LogisticHead(folds=4)
    history = fitted(head, (X, y), noisy(20, 100, classes, seed=1))
    Z = head.standardise(X).astype(np.float64)
    fold = stratified_folds(y, 4, 0)
    for row in history.rows[::4]:
        chances = np.empty((60, classes))
        for number in range(4):
            kept = fold != number
            model = LogisticRegression(C=row.at, solver="newton-cg", tol=1e-9, max_iter=1000)
            chances[~kept] = model.fit(Z[kept], y[kept]).predict_proba(Z[~kept])
        near = 1e-5 if classes == 2 else 1e-3
        assert row.cv_loss == pytest.approx(log_loss(y, chances), rel=near)


def test_folds_choose_c_whatever_validation_says() -> None:
    train = noisy(60, 100, 2)
    X_val, y_val = noisy(40, 100, 2, seed=1)
    head = LogisticHead(folds=5)
    # Swapped labels ask for the smallest C.
    history = fitted(head, train, (X_val, 1 - y_val))
    assert history.best == int(np.argmin([row.cv_loss for row in history.rows]))
    assert history.best != int(np.argmin([row.val_loss for row in history.rows])) == 0
    assert 0 < history.best < len(C_GRID) - 1
    for row in history.rows:
        assert list(row.as_json(history.axis)) == [
            "C", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "cv_loss"
        ]  # fmt: skip
    # What is kept was trained on all of train.
    alone = LogisticHead(C=history.rows[history.best].at)
    (row,) = fitted(alone, train, (X_val, 1 - y_val)).rows
    assert np.allclose(head.weight_, alone.weight_, atol=1e-5)
    assert row.val_loss == pytest.approx(history.rows[history.best].val_loss, rel=1e-5)


def test_all_of_c_and_folds_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = logistic_solvers.solve

    def watched(
        matrix: Matrix, y: np.ndarray, classes: int, C: np.ndarray, weight: np.ndarray, **rest: int
    ) -> Solution:
        calls.append((len(C), weight.sum(axis=1).astype(int).tolist()))
        return real(matrix, y, classes, C, weight, **rest)

    monkeypatch.setattr(logistic_solvers, "solve", watched)
    fitted(LogisticHead(folds=3), noisy(30, 40, 2))
    grid = len(C_GRID)
    assert calls == [(4 * grid, [30] * grid + [20] * 3 * grid)]


def test_another_seed_makes_other_folds_and_the_same_seed_the_same() -> None:
    train = noisy(60, 30, 2)

    def losses(seed: int) -> list[float]:
        head = LogisticHead(folds=3)
        head.classes_ = np.array(["a", "b"])
        history = head.fit(*train, *train, seed=seed, device="cpu", tick=lambda row: None)
        return [row.cv_loss for row in history.rows]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


@given(
    st.lists(st.integers(0, 4), min_size=4, max_size=60),
    st.integers(2, 6),
    st.integers(0, 2**32 - 1),
)
def test_folds_are_of_one_size_and_of_one_mixture(labels: list[int], folds: int, seed: int) -> None:
    y = np.array(labels)
    counts = np.bincount(y)
    some = counts[y] > 1
    if some.sum() < folds:
        with pytest.raises(UsageError, match=f"expected --folds up to {some.sum()}, "):
            stratified_folds(y, folds, seed)
        return
    fold = stratified_folds(y, folds, seed)
    assert ((fold == -1) == ~some).all()
    sizes = np.bincount(fold[some], minlength=folds)
    assert len(sizes) == folds and np.ptp(sizes) <= 1
    for label in np.unique(y[some]):
        parts = np.bincount(fold[y == label], minlength=folds)
        assert np.ptp(parts) <= 1
        # Whatever fold is held out, the class is still there to be learned.
        assert parts.max() < parts.sum()


def test_the_only_sample_of_a_class_is_never_held_out() -> None:
    X, y = noisy(30, 40, 3)
    keep = (y != 2) | (np.arange(30) == 2)
    head = LogisticHead(folds=5)
    history = fitted(head, (X[keep], y[keep]))
    assert all(row.cv_loss < 1.1 for row in history.rows[:6])


def test_one_fold_is_refused() -> None:
    with pytest.raises(UsageError, match=r"found it with --C 0\.5; leave out one"):
        LogisticHead(C=0.5, folds=3)
    with pytest.raises(UsageError, match="expected --folds of at least 2, found 1"):
        LogisticHead(folds=1)


def test_a_c_that_falls_short_casts_doubt_on_the_head() -> None:
    (told,) = fitted(LogisticHead(max_iter=4, folds=2), noisy(80, 30, 3)).warnings
    found = re.fullmatch(
        r"expected the optimum for every C, found that of (.*) not reached in 4 steps, "
        r"up to \S+ of its objective away; raise --max-iter",
        told,
    )
    assert found and "0.316228" in found[1].split(", ")
    # The smallest C needs no more.
    assert "1e-06" not in found[1].split(", ")
    assert not fitted(LogisticHead(folds=2), noisy(80, 30, 3)).warnings


@pytest.mark.parametrize("C", [1e7, 1e100, 1e308])
def test_a_c_without_regularisation_is_refused_and_still_loaded(C: float) -> None:
    head = LogisticHead(C=C)
    X, y = np.eye(20, 4, dtype=np.float32), np.arange(20) % 2
    head.classes_ = np.array(["a", "b"])
    with pytest.raises(UsageError, match=r"expected --C of at most 1e\+06, found 1e\+"):
        head.fit(X, y, X, y, seed=0, device="cpu", tick=lambda row: None)
