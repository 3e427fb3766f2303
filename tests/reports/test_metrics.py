"""Scores against hand-computed values, scikit-learn's and brute force."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from featpipe.reports.metrics import CALIBRATION_BINS, bootstrap_interval, reliability, score


def random_scores(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), y] += 1.0
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return y, p, [f"c{i}" for i in range(classes)]


def test_scores_of_four_pictures_by_hand() -> None:
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    found = score(y, p, ["cat", "dog"])
    assert found["n"] == 4
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[2, 0], [1, 1]]
    assert found["log_loss"] == pytest.approx(-np.log([0.9, 0.6, 0.3, 0.8]).mean())
    # One of the four pairs of a dog and a cat is in the wrong order (0.3 against 0.4).
    assert found["roc_auc"] == 0.75
    # Four bins of one picture each: |0.9-1|, |0.6-1|, |0.7-0|, |0.8-1|.
    assert found["ece"] == pytest.approx((0.1 + 0.4 + 0.7 + 0.2) / 4)
    cat, dog = found["per_class"]
    assert cat["class"] == "cat" and dog["class"] == "dog"
    assert (cat["precision"], cat["recall"], cat["support"]) == (pytest.approx(2 / 3), 1.0, 2)
    assert (dog["precision"], dog["recall"], dog["support"]) == (1.0, 0.5, 2)
    assert cat["f1"] == pytest.approx(0.8) and dog["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_scores_are_scikit_learns(classes: int) -> None:
    y, p, names = random_scores(200, classes)
    found = score(y, p, names)
    predicted = p.argmax(axis=1)
    assert found["accuracy"] == sk.accuracy_score(y, predicted)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, p))
    assert found["confusion"] == sk.confusion_matrix(y, predicted).tolist()
    auc = (
        sk.roc_auc_score(y, p[:, 1]) if classes == 2 else sk.roc_auc_score(y, p, multi_class="ovr")
    )
    assert found["roc_auc"] == pytest.approx(auc)
    report = sk.classification_report(y, predicted, target_names=names, output_dict=True)
    for row in found["per_class"]:
        expected = report[row["class"]]
        assert row["precision"] == pytest.approx(expected["precision"])
        assert row["recall"] == pytest.approx(expected["recall"])
        assert row["f1"] == pytest.approx(expected["f1-score"])
        assert row["support"] == expected["support"]


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_fit_into_strict_json(classes: int) -> None:
    found = score(*random_scores(50, classes))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def brute_force_ece(correct: np.ndarray, confidence: np.ndarray) -> float:
    total = 0.0
    for i in range(CALIBRATION_BINS):
        low, high = i / CALIBRATION_BINS, (i + 1) / CALIBRATION_BINS
        members = [
            k
            for k, c in enumerate(confidence)
            if low <= c < high or (i == CALIBRATION_BINS - 1 and c == 1)
        ]
        if members:
            accuracy = sum(bool(correct[k]) for k in members) / len(members)
            mean = sum(float(confidence[k]) for k in members) / len(members)
            total += len(members) / len(correct) * abs(accuracy - mean)
    return total


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_calibration_error_is_the_brute_force_one(pairs: list[tuple[bool, float]]) -> None:
    correct = np.array([hit for hit, _ in pairs])
    # Off the edges of bins, where rounding may decide either way.
    confidence = np.array([min(round(c, 3) + 0.0004, 1.0) for _, c in pairs])
    found = reliability(correct, confidence)
    assert found["ece"] == pytest.approx(brute_force_ece(correct, confidence), abs=1e-9)
    assert sum(b["count"] for b in found["bins"]) == len(pairs)
    assert all(0 <= b["accuracy"] <= 1 and 0 <= b["confidence"] <= 1 for b in found["bins"])


def test_full_confidence_falls_into_the_last_bin() -> None:
    found = reliability(np.array([True, False]), np.array([1.0, 1.0]))
    assert found["bins"] == [{"count": 2, "confidence": 1.0, "accuracy": 0.5}]
    assert found["ece"] == 0.5


def test_empty_bins_are_left_out() -> None:
    found = reliability(np.array([True, True, False]), np.array([0.51, 0.52, 0.99]))
    assert [b["count"] for b in found["bins"]] == [2, 1]
    assert found["bins"][0]["confidence"] == pytest.approx(0.515)


@pytest.mark.parametrize(("hits", "n"), [(45, 50), (180, 200), (3, 10)])
def test_interval_is_that_of_a_real_bootstrap(hits: int, n: int) -> None:
    correct = np.arange(n) < hits
    rng = np.random.default_rng(99)
    resampled = correct[rng.integers(0, n, (20_000, n))].mean(axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    # Both are multiples of 1/n; either may be one off by chance.
    assert bootstrap_interval(correct) == pytest.approx([low, high], abs=1.01 / n)


def test_interval_repeats_exactly_and_ignores_the_order() -> None:
    correct = np.arange(60) < 50
    shuffled = np.random.default_rng(0).permutation(correct)
    assert bootstrap_interval(correct) == bootstrap_interval(shuffled)


def test_interval_without_a_mistake_is_a_point() -> None:
    assert bootstrap_interval(np.ones(20, bool)) == [1.0, 1.0]
    assert bootstrap_interval(np.zeros(20, bool)) == [0.0, 0.0]


def test_interval_narrows_with_more_pictures() -> None:
    widths = [np.diff(bootstrap_interval(np.arange(n) < 0.8 * n))[0] for n in (20, 200, 2000)]
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


@pytest.mark.parametrize(
    ("y", "classes"),
    [([0, 0, 1], 3), ([1, 1, 1], 2), ([2, 2], 4)],
    ids=["a class without a picture", "one of two classes", "one of four classes"],
)
def test_roc_auc_is_none_where_it_is_undefined(y: list[int], classes: int) -> None:
    _, p, names = random_scores(max(len(y), classes), classes)
    with warnings.catch_warnings():
        # Nothing may be said on stderr either.
        warnings.simplefilter("error")
        found = score(np.array(y), p[: len(y)], names)
    assert found["roc_auc"] is None
    json.dumps(found, allow_nan=False)
    support = [row["support"] for row in found["per_class"]]
    assert support == np.bincount(y, minlength=classes).tolist()
    assert np.shape(found["confusion"]) == (classes, classes)


def test_a_single_class_alone_is_scored() -> None:
    p = np.array([[0.7, 0.3], [0.4, 0.6]])
    found = score(np.array([0, 0]), p, ["cat", "dog"])
    assert found["accuracy"] == 0.5
    assert found["log_loss"] == pytest.approx(-np.log([0.7, 0.4]).mean())
    assert found["confusion"] == [[1, 1], [0, 0]]
    assert found["per_class"][1] == {
        "class": "dog",
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
    }


def test_a_certain_mistake_has_a_finite_loss() -> None:
    found: dict[str, Any] = score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), ["a", "b"])
    assert np.isfinite(found["log_loss"]) and found["log_loss"] > 10
