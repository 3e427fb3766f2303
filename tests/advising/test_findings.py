"""Comparisons, the gap and the learning curve, on answers that are made up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.heads import overlapping, toy
from support.samples import image_ids

from featpipe.advising import findings
from featpipe.advising.linear_probe import (
    CURVE_SHARES,
    LabelledRows,
    Probe,
    at_most,
    mean_interval,
    probe,
    share_of,
)
from featpipe.heads import new_head
from featpipe.reports.paired import mcnemar


def answers(correct: list[int], loss: list[float]) -> Probe:
    return Probe(0.1, 1.0, np.array(correct, bool), np.array(loss), [], 0.0)


def test_taps_are_compared_on_the_same_pictures() -> None:
    a = answers([1, 1, 1, 0, 0], [0.1, 0.1, 0.1, 2.0, 2.0])
    b = answers([1, 0, 0, 1, 0], [0.2, 1.0, 1.0, 0.5, 2.0])
    found = findings.compare_taps("deep", "early", a, b)
    assert (found["only_deepest_right"], found["only_earlier_right"]) == (2, 1)
    assert found["accuracy_difference"] == pytest.approx(1 / 5)
    assert found["p_value"] == 1.0
    assert found["log_loss_difference"] == pytest.approx((4.3 - 4.7) / 5)
    low, high = found["log_loss_difference_ci95"]
    assert low < found["log_loss_difference"] < high


@pytest.mark.parametrize(
    ("difference", "content"), [(-0.5, "similar"), (0.5, "different"), (0.0, "undecided")]
)
def test_the_best_earlier_tap_decides_about_content(difference: float, content: str) -> None:
    rng = np.random.default_rng(0)
    loss = rng.uniform(1, 2, 200)
    noise = rng.normal(0, 0.2, 200)
    deep = answers([1] * 200, list(loss + difference + noise))
    worse = findings.compare_taps("deep", "bad", deep, answers([0] * 200, list(loss + 3)))
    near = findings.compare_taps("deep", "near", deep, answers([1] * 200, list(loss)))
    assert findings.content_of([worse, near]) == content
    assert findings.content_of([worse]) == "similar"
    assert findings.content_of([]) == "unknown"


def test_six_pictures_are_the_fewest_that_prove_anything() -> None:
    assert mcnemar(findings.FEWEST_PROVABLE, 0) < 0.05 < mcnemar(findings.FEWEST_PROVABLE - 1, 0)


@pytest.mark.parametrize(
    ("accuracy", "high", "amount"),
    [(0.02, -0.01, "little"), (0.02, 0.01, "undecided"), (0.009, -0.01, "enough")],
)
def test_data_is_little_where_the_curve_rises_beyond_chance(
    accuracy: float, high: float, amount: str
) -> None:
    found = {
        "accuracy": accuracy,
        "accuracy_ci95": [0.0, 0.1],
        "log_loss": high - 0.1,
        "log_loss_ci95": [high - 0.2, high],
    }
    assert findings.amount_of(found) == amount  # type: ignore[arg-type]
    assert findings.amount_of(None) == "unknown"


def test_the_gain_is_that_of_all_against_the_mean_of_the_draws() -> None:
    whole = answers([1, 1, 0], [0.1, 0.1, 1.0])
    half = [answers([1, 0, 0], [0.3, 1.0, 1.0]), answers([0, 0, 0], [0.5, 1.0, 1.0])]
    found = findings.gain_of(half, whole)
    assert found["accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-(0.3 + 0.9) / 3)


def test_the_interval_of_one_value_is_that_value() -> None:
    assert mean_interval(np.array([0.25])) == [0.25, 0.25]
    low, high = mean_interval(np.random.default_rng(0).normal(1.0, 1.0, 10_000))
    assert low == pytest.approx(1 - 1.96 / 100, abs=0.03)
    assert high == pytest.approx(1 + 1.96 / 100, abs=0.03)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    copies=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_shares_are_nested_by_content_and_have_every_class(
    labels: list[int], copies: int, seed: int
) -> None:
    y = np.repeat(labels, copies)
    ids = np.repeat(image_ids(*range(len(labels))), copies, axis=0)
    quarter, half = (share_of(ids, y, share, seed) for share in CURVE_SHARES)
    assert set(quarter) <= set(half)
    for part, share in ((quarter, 0.25), (half, 0.5)):
        assert set(y[part]) == set(labels)
        # Copies of a picture count once.
        assert len(np.unique(ids[part], axis=0)) == len(part)
        for label in set(labels):
            n = labels.count(label)
            assert (y[part] == label).sum() == max(1, np.ceil(share * n))
    # The order of the pictures does not matter.
    order = np.random.default_rng(seed).permutation(len(y))
    again = share_of(ids[order], y[order], 0.5, seed)
    assert {ids[order][i].tobytes() for i in again} == {ids[i].tobytes() for i in half}


def test_only_what_is_too_much_is_left_out() -> None:
    ids, y = image_ids(*range(100)), np.arange(100) % 4
    assert len(at_most(ids, y, 100, 0)) == 100
    part = at_most(ids, y, 20, 0)
    assert np.bincount(y[part]).tolist() == [5, 5, 5, 5]


def test_a_probe_is_the_logistic_head() -> None:
    (X, y), (X_val, y_val) = overlapping(200, 0), overlapping(100, 1)
    found = probe(LabelledRows(X, y, X_val, y_val), 2)
    head = new_head("logistic", {})
    head.classes_ = np.array(["0", "1"])
    history = head.fit(X, y, X_val, y_val, seed=0, device="cpu", tick=lambda _: None)
    assert history.kept.at == found.C
    assert found.correct.mean() == pytest.approx(history.kept.val_accuracy)
    assert found.loss.mean() == pytest.approx(history.kept.val_loss, abs=1e-4)


def test_a_probe_of_a_part_learns_from_that_part_alone() -> None:
    X, y = toy(40)
    part = np.flatnonzero(np.arange(40) < 10)
    X_wrong = X.copy()
    X_wrong[10:] = -X[10:]
    one = probe(LabelledRows(X, y, X, y), 2, part)
    other = probe(LabelledRows(X_wrong, y, X, y), 2, part)
    assert np.array_equal(one.loss, other.loss)
