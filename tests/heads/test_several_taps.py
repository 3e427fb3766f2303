"""Heads on rows of several taps side by side: no tap counts for more because its values are large.

Of one tap alone nothing changes: the tests of each kind of head hold that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.heads import ROW_KINDS, SideBySide, overlapping, toy

from featpipe.heads import new_head
from featpipe.heads.base import Head, mean_and_scale
from featpipe.heads.sweep import plan_sweep, run_sweep
from featpipe.heads.training import feature_rows as batches
from featpipe.heads.training.feature_rows import StreamedRows, feature_rows

FAST: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 0.03, "epochs": 15},
    "mlp": {"learning_rate": 0.01, "epochs": 15, "hidden": 16, "dropout": 0.0},
    "logistic": {},
    "knn": {},
}
IN_TWO = slice(0, 3), slice(3, 8)
"""The columns of the toy rows, as if two taps had made them."""


def joined(X: np.ndarray, factor: float = 1.0) -> SideBySide:
    """The rows as those of two taps, of which the first has values that many times as large."""
    return SideBySide(factor * X[:, IN_TWO[0]], X[:, IN_TWO[1]])


def fit(kind: str, X: Any, y: np.ndarray, X_val: Any, y_val: np.ndarray) -> Head:
    head = new_head(kind, FAST[kind])
    head.classes_ = np.array([f"class {i}" for i in range(int(y.max()) + 1)])
    head.fit(X, y, X_val, y_val, seed=0, device="cpu", tick=lambda row: None)
    return head


@pytest.mark.parametrize("stream", [False, True])
def test_each_tap_has_its_own_scale(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if stream:
        monkeypatch.setattr(batches, "free_memory", lambda device: 0)
        monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)
    X, y = overlapping(57, 0)
    rows = joined(X, 100.0)
    expected = np.concatenate(
        [np.full(len(v), np.sqrt(v.mean())) for v in (rows.values.var(axis=0)[c] for c in IN_TWO)]
    )
    for mean, scale in (mean_and_scale(rows), feature_rows(rows, y, "cpu").mean_and_scale()):
        assert mean.dtype == scale.dtype == np.float32
        assert np.allclose(mean, rows.values.mean(axis=0), rtol=1e-5)
        assert np.allclose(scale, expected, rtol=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_batches_are_centred_and_divided_by_tap(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stream:
        monkeypatch.setattr(batches, "free_memory", lambda device: 0)
        monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)
    X, y = overlapping(57, 0)
    rows = joined(X, 100.0)
    mean, scale = mean_and_scale(rows)
    batch = feature_rows(rows, y, "cpu")
    assert isinstance(batch, StreamedRows) == stream
    batch.centre_on(mean)
    batch.divide_by(scale)
    got = np.concatenate([Z.numpy().copy() for Z, _ in batch.in_order(10)])
    assert np.array_equal(got, (rows.values.astype(np.float32) - mean) / scale)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_tap_of_large_values_drowns_no_other(kind: str) -> None:
    # Powers of two change no rounding.
    (X, y), (X_val, y_val), (X_new, _) = overlapping(120, 0), overlapping(60, 1), overlapping(40, 2)
    answers = [
        fit(kind, joined(X, f), y, joined(X_val, f), y_val).predict_proba(joined(X_new, f))
        for f in (1.0, 1024.0)
    ]
    assert np.allclose(*answers, atol=2e-5)
    drowned = fit(kind, X * SCALES, y, X_val * SCALES, y_val).predict_proba(X_new * SCALES)
    assert not np.allclose(answers[0], drowned, atol=0.01), "the common scale would have done"


SCALES = np.repeat([1024.0, 1.0], [3, 5]).astype(np.float32)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_head_learns_from_all_taps_and_comes_back_from_its_tensors(kind: str) -> None:
    (X, y), (X_val, y_val) = toy(60, 4), toy(40, 4, seed=1)
    head = fit(kind, joined(X), y, joined(X_val), y_val)
    assert (head.predict_proba(joined(X_val)).argmax(axis=1) == y_val).all()
    assert head.scale_.shape == head.mean_.shape == (8,)
    other = new_head(kind, head.params)
    other.set_tensors(head.tensors(), head.classes_.tolist(), (8,))
    assert np.array_equal(other.predict_proba(X_val), head.predict_proba(joined(X_val)))


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_tap_that_never_changes_is_survived(kind: str) -> None:
    (X, y), (X_val, y_val) = toy(60), toy(40, seed=1)
    X[:, IN_TWO[1]] = X_val[:, IN_TWO[1]] = 0
    head = fit(kind, joined(X), y, joined(X_val), y_val)
    assert np.isfinite(head.scale_).all() and (head.scale_ > 0).all()
    assert (head.predict_proba(joined(X_val)).argmax(axis=1) == y_val).mean() > 0.9


def test_a_sweep_scales_by_tap() -> None:
    (X, y), (X_val, y_val) = overlapping(60, 0), overlapping(40, 1)
    plan = plan_sweep("linear", {"epochs": 3, "weight_decay": 0.01}, seed=0)
    rows = joined(X, 100.0), y, joined(X_val, 100.0), y_val
    classes = ["a", "b"]
    sweep = run_sweep(
        plan, *rows, classes=classes, seed=0, device="cpu", on_progress=lambda *_: None
    )
    kept = plan.heads[sweep.winner]
    assert np.array_equal(kept.scale_, mean_and_scale(rows[0])[1])
    found = kept.predict_proba(rows[2])
    assert -np.log(found[np.arange(40), y_val]).mean() == pytest.approx(
        sweep.history.kept.val_loss, rel=1e-4
    )
