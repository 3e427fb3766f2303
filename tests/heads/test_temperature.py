"""The temperature is that of the lowest log-loss, or there is none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heads import overlapping

from featpipe.base.errors import DamageError
from featpipe.heads import new_head
from featpipe.heads.base import softmax
from featpipe.heads.temperature import best_temperature, logits_of


def loss(logits: np.ndarray, y: np.ndarray, temperature: float) -> float:
    return float(-np.log(softmax(logits / temperature)[np.arange(len(y)), y]).mean())


def drawn(temperature: float, seed: int = 0, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with the probabilities they have at a temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.normal(size=(n, 4))
    y = (softmax(logits / temperature).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, np.minimum(y, 3)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 20.0])
def test_the_temperature_that_made_the_classes_is_found(temperature: float) -> None:
    assert best_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.15)


@given(st.integers(0, 10_000), st.floats(-6, 6), st.integers(2, 30))
@settings(max_examples=80, deadline=None)
def test_no_other_temperature_has_a_lower_loss(seed: int, magnitude: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    logits, y = 10.0**magnitude * rng.normal(size=(n, 3)), rng.integers(0, 3, n)
    found = best_temperature(logits, y)
    if found is None:
        return
    assert 0 < found < np.inf
    for other in (0.5, 0.99, 1.01, 2.0):
        assert loss(logits, y, found) <= loss(logits, y, found * other) + 1e-9


def test_a_head_that_is_always_right_or_knows_nothing_has_no_best_temperature() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert best_temperature(logits, np.array([0, 1])) is None
    assert best_temperature(logits, np.array([1, 0])) is None
    assert best_temperature(np.zeros((4, 2)), np.array([0, 1, 0, 1])) is None


@pytest.mark.parametrize("kind", ["linear", "logistic", "knn"])
def test_a_temperature_divides_the_logits_of_every_kind(kind: str) -> None:
    head = new_head(kind, {"epochs": 3} if kind == "linear" else {})
    head.classes_ = np.array(["a", "b"])
    head.fit(*overlapping(60, 0), *overlapping(40, 1), seed=0, device="cpu", tick=lambda row: None)
    X, _ = overlapping(30, 2)
    plain = head.predict_proba(X)
    assert "temperature" not in head.tensors()
    assert np.allclose(softmax(logits_of(head, X)), plain, rtol=1e-6)
    head.temperature_ = 2.5
    warm = head.predict_proba(X)
    assert np.allclose(warm, softmax(np.log(plain) / 2.5), rtol=1e-5)
    assert np.array_equal(warm.argmax(axis=1), plain.argmax(axis=1))
    other = new_head(kind, head.params)
    other.set_tensors(head.tensors(), ["a", "b"], (8,))
    assert other.temperature_ == 2.5
    assert np.array_equal(other.predict_proba(X), warm)
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(DamageError, match=r"expected (a temperature above 0|finite numbers)"):
            other.set_tensors(
                {**head.tensors(), "temperature": np.array([value])}, ["a", "b"], (8,)
            )
    with pytest.raises(DamageError):
        other.set_tensors({**head.tensors(), "temperature": np.ones(2)}, ["a", "b"], (8,))
