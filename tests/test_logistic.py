"""``logistic`` reaches scikit-learn's own optimum, whichever way it takes there."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from featpipe.heads import logistic
from featpipe.heads.base import History
from featpipe.heads.logistic import C_GRID, LogisticHead


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
        alone = LogisticHead(C=row["C"])
        (single,) = fitted(alone, (X, y)).rows
        assert row["train_loss"] == pytest.approx(single["train_loss"], rel=1e-4)
        assert row["val_accuracy"] == single["val_accuracy"]


def test_samples_are_rotated_only_where_features_outnumber_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widths = []
    real = LogisticHead._reduced

    def watched(head: LogisticHead, X: np.ndarray) -> object:
        Z, back = real(head, X)
        widths.append(Z.shape[1])
        return Z, back

    monkeypatch.setattr(LogisticHead, "_reduced", watched)
    for n, d in ((30, 200), (200, 30), (30, 30)):
        head = LogisticHead(C=0.1)
        fitted(head, samples(n, d, 2))
        assert head.weight_.shape == (2, d)
    # Centring takes one dimension away.
    assert widths == [29, 30, 30]
    monkeypatch.setattr(logistic, "_MAX_ROTATED", 20)
    fitted(LogisticHead(C=0.1), samples(30, 200, 2))
    assert widths[-1] == 200


def test_rotation_changes_nothing_but_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    train = samples(60, 300, 3)
    rotated, plain = LogisticHead(C=0.1), LogisticHead(C=0.1)
    fitted(rotated, train)
    monkeypatch.setattr(logistic, "_MAX_ROTATED", 0)
    fitted(plain, train)
    assert np.allclose(rotated.weight_, plain.weight_, atol=1e-6)
    assert np.allclose(rotated.bias_, plain.bias_, atol=1e-6)


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
    losses = [row["val_loss"] for row in history.rows]
    chosen = history.rows[history.best]["C"]
    assert [row["C"] for row in history.rows] == list(C_GRID)
    assert history.best == int(np.argmin(losses))
    assert C_GRID[0] < chosen < C_GRID[-1]
    # Training alone would have taken the largest.
    assert int(np.argmin([row["train_loss"] for row in history.rows])) == len(C_GRID) - 1
    p = head.predict_proba(val[0])[np.arange(300), val[1]]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-6)
    # Flattering validation rows ask for a larger one.
    assert fitted(LogisticHead(), train, train).best == len(C_GRID) - 1


def test_a_given_c_is_not_searched() -> None:
    head = LogisticHead(C=0.25)
    history = fitted(head, samples(40, 10, 2))
    assert [row["C"] for row in history.rows] == [0.25]
    assert history.best == 0
    assert head.params["C"] == 0.25


def test_two_classes_are_two_rows_of_weights() -> None:
    head = LogisticHead(C=1.0)
    fitted(head, samples(40, 10, 2))
    assert head.weight_.shape == (2, 10) and head.bias_.shape == (2,)
    assert head.weight_.dtype == head.bias_.dtype == np.float32
    assert not head.weight_[0].any() and head.weight_[1].any()
