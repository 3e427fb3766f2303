"""Neighbours vote as the formula says, in any blocks, and a head of rows is checked when read."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.heads import overlapping, toy

from featpipe.base.errors import DamageError, UsageError
from featpipe.heads import knn
from featpipe.heads.knn import K_GRID, SMOOTHING, KNNHead


def fitted(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray] | None = None, **p: Any
) -> KNNHead:
    head = KNNHead(**p)
    head.classes_ = np.array([str(i) for i in range(int(train[1].max()) + 1)])
    head.fit(*train, *(val or train), seed=0, device="cpu", tick=lambda row: None)
    return head


def by_hand(head: KNNHead, train: Any, X: np.ndarray, k: int, weight: np.ndarray) -> np.ndarray:
    """The formula, one row at a time."""
    rows, labels = train
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = []
    for x in X:
        similarity = unit @ (x / np.linalg.norm(x))
        nearest = np.argsort(-similarity)[:k]
        vote = np.exp((similarity[nearest] - similarity.max()) / head.vote_temperature)
        votes = np.bincount(labels[nearest], vote, len(weight)) * weight
        found.append((votes + SMOOTHING / len(weight)) / (votes.sum() + SMOOTHING))
    return np.array(found)


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_probabilities_are_shares_of_the_votes(k: int, class_weight: str) -> None:
    X, y = overlapping(60, 0)
    y[:12] = 2
    head = fitted((X, y), k=k, vote_temperature=0.2, class_weight=class_weight)
    weight = np.ones(3) if class_weight == "none" else 60 / (3 * np.bincount(y))
    queries, _ = overlapping(40, 1)
    expected = by_hand(head, (X, y), queries, k, weight)
    assert np.allclose(head.predict_proba(queries), expected, rtol=1e-4, atol=1e-6)


def test_neighbours_are_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = overlapping(90, 0), overlapping(50, 1)
    whole = fitted(train, val)
    expected = whole.predict_proba(val[0])
    monkeypatch.setattr(knn, "_QUERIES", 7)
    monkeypatch.setattr(knn, "_SIMILARITIES", 77)
    parts = fitted(train, val)
    assert parts.k_ == whole.k_
    assert np.allclose(parts.predict_proba(val[0]), expected, rtol=1e-5)
    monkeypatch.setattr(knn, "_ROW_NUMBERS", 8)
    assert np.allclose(parts.predict_proba(val[0]), expected, rtol=1e-5)


def test_the_length_of_a_row_does_not_matter() -> None:
    X, y = overlapping(40, 0)
    head = fitted((X, y), k=5)
    assert np.allclose(head.predict_proba(7 * X), head.predict_proba(X), rtol=1e-4)
    assert np.isfinite(head.predict_proba(np.zeros((2, 8), np.float32))).all()


def test_float16_features_are_kept_as_float16() -> None:
    X, y = toy(40, 3)
    for dtype in (np.float16, np.float32):
        head = fitted((X.astype(dtype), y))
        assert head.layers()["rows"].dtype == dtype
        assert np.allclose(np.linalg.norm(head.rows_.astype(float), axis=1), 1, atol=1e-3)


def test_a_training_row_is_scored_among_the_others() -> None:
    # Each pair of equal rows has different labels: its twin is always wrong, and it is no help.
    X = np.repeat(np.eye(8, dtype=np.float32), 2, axis=0)
    y = np.arange(16) % 2
    head = KNNHead(k=1)
    head.classes_ = np.array(["a", "b"])
    history = head.fit(X, y, X, y, seed=0, device="cpu", tick=lambda row: None)
    assert history.kept.train_accuracy == 0.0


def test_of_many_training_rows_some_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_TRAIN_SCORED", 10)
    asked: list[int] = []
    real = KNNHead._nearest

    def watched(self: KNNHead, queries: np.ndarray, k: int, own: Any = None) -> Any:
        asked.append(len(queries) if own is not None else 0)
        return real(self, queries, k, own)

    monkeypatch.setattr(KNNHead, "_nearest", watched)
    fitted(overlapping(60, 0), overlapping(20, 1))
    assert sum(asked) == 10


def test_k_is_tried_up_to_the_rows_there_are() -> None:
    head = KNNHead()
    head.classes_ = np.array(["a", "b"])
    for n in (4, 300):
        history = head.fit(
            *overlapping(n, 0), *overlapping(20, 1), seed=0, device="cpu", tick=lambda row: None
        )
        assert [row.at for row in history.rows] == [k for k in K_GRID if k <= n]
    with pytest.raises(
        UsageError, match="expected --k of at most 60, the pictures trained on, found 61"
    ):
        fitted(overlapping(60, 0), k=61)
    assert fitted(overlapping(60, 0), k=60).k_ == 60


def test_large_heads_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(knn, "_LARGE_BYTES", 100)
    with caplog.at_level(logging.WARNING, "featpipe"):
        fitted(overlapping(60, 0))
    assert "this head holds all 60 training rows" in caplog.text


DAMAGES: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
    "fewer labels": lambda t: t.update(labels=t["labels"][:-1]),
    "a label too large": lambda t: t.update(labels=t["labels"] + 1),
    "a negative label": lambda t: t.update(labels=t["labels"] - 1),
    "labels of another kind": lambda t: t.update(labels=t["labels"].astype(float)),
    "no rows": lambda t: t.update(rows=t["rows"][:0], labels=t["labels"][:0]),
    "rows of another width": lambda t: t.update(rows=t["rows"][:, :-1]),
    "rows of one axis": lambda t: t.update(rows=t["rows"][:, 0]),
    "k of nothing": lambda t: t.update(k=np.array([0])),
    "k above the rows": lambda t: t.update(k=np.array([1000])),
    "k of another kind": lambda t: t.update(k=np.array([1.0])),
    "two k": lambda t: t.update(k=np.array([1, 2])),
    "weights of two axes": lambda t: t.update(vote_weight=t["vote_weight"][None]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rows_that_cannot_vote_are_damage(damage: str) -> None:
    head = fitted(toy(30, 3))
    tensors = dict(head.tensors())
    DAMAGES[damage](tensors)
    with pytest.raises(DamageError, match="expected the tensors of a 'knn' head"):
        KNNHead().set_tensors(tensors, head.classes_.tolist(), (8,))
