"""Every pass over rows that have views takes one of each row's views, drawn from the seed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heads import MAP_KINDS, WithViews, separable

from featpipe.heads import new_head
from featpipe.heads.training import feature_rows as batches
from featpipe.heads.training.feature_rows import (
    FeatureRowSet,
    HeldRows,
    StreamedRows,
    feature_rows,
)

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01}


def numbered(n: int, views: int) -> WithViews:
    """Row i of view v is [i, v]."""
    tables = [np.stack([np.arange(n), np.full(n, v)], axis=1) for v in range(views + 1)]
    return WithViews(*(table.astype(np.float32) for table in tables))


def row_set(kind: str, X: Any) -> FeatureRowSet:
    y = np.arange(len(X))
    return HeldRows(X, y, "cpu", home="cpu") if kind == "held" else StreamedRows(X, y, "cpu")


def passes(rows: FeatureRowSet, seed: int, count: int, size: int) -> np.ndarray:
    """The view of each row in each pass, (count, n); every row comes once a pass."""
    order, found = np.random.default_rng(seed), np.full((count, len(rows)), -1)
    for number in range(count):
        for Z, y in rows.shuffled(order, size):
            assert len(y) <= size
            assert (Z[:, 0].long() == y).all(), "a row has another's label"
            assert (found[number, y.numpy()] == -1).all(), "a row came twice"
            found[number, y.numpy()] = Z[:, 1].numpy()
    assert (found >= 0).all(), "a row did not come"
    return found


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 60),
    views=st.integers(1, 9),
    size=st.integers(1, 70),
    block=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_pass_takes_each_row_once_in_one_of_its_views(
    n: int, views: int, size: int, block: int, seed: int
) -> None:
    X = numbered(n, views)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_BLOCK_BYTES", 8 * block)
        drawn = [passes(row_set(kind, X), seed, 3, size) for kind in ("held", "streamed")]
        again = passes(row_set("held", X), seed, 3, max(1, size - 1))
    assert drawn[0].max() <= views
    # Held or streamed, and whatever the batches, a row comes in the same views.
    assert np.array_equal(drawn[0], drawn[1]) and np.array_equal(drawn[0], again)


def test_views_come_about_equally_often_and_depend_on_the_seed() -> None:
    rows = row_set("held", numbered(200, 4))
    drawn = passes(rows, 0, 50, 64)
    shares = np.bincount(drawn.reshape(-1), minlength=5) / drawn.size
    # 10,000 draws of a chance of 1/5: a standard deviation of 0.4 %.
    assert abs(shares - 0.2).max() < 0.02
    # Of one picture, too; and neither passes nor neighbours repeat each other.
    assert all(len(set(column)) == 5 for column in drawn.T.tolist())
    assert (drawn[0] == drawn[1]).mean() < 0.4 and (drawn[:, 0] == drawn[:, 1]).mean() < 0.5
    assert np.array_equal(drawn, passes(rows, 0, 50, 64))
    assert (drawn != passes(rows, 1, 50, 64)).mean() > 0.7


@pytest.mark.parametrize(
    ("kind", "expected"), [("held", "40bc6c966687a0e5"), ("streamed", "f52986a8592d7037")]
)
@pytest.mark.parametrize("views", [0, 3])
def test_the_order_of_rows_is_what_it_was_before_there_were_views(
    kind: str, expected: str, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A width of one number, so that blocks are those that the digests were taken with.
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 20)
    table = np.arange(103, dtype=np.float32)[:, None]
    X = WithViews(table, *[table] * views) if views else table
    order, rows = np.random.default_rng(7), row_set(kind, X)
    seen = [int(i) for _ in range(3) for _, y in rows.shuffled(order, 16) for i in y]
    assert hashlib.sha256(np.array(seen, "<i8").tobytes()).hexdigest()[:16] == expected


def test_rows_are_held_only_if_all_views_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    X = numbered(10, 3)
    monkeypatch.setattr(batches, "free_memory", lambda device: 2 * 4 * 80)
    assert isinstance(feature_rows(X, np.arange(10), "cpu"), HeldRows)
    monkeypatch.setattr(batches, "free_memory", lambda device: 2 * 4 * 80 - 2)
    assert isinstance(feature_rows(X, np.arange(10), "cpu"), StreamedRows)
    assert isinstance(feature_rows(X.rows, np.arange(10), "cpu"), HeldRows)


def test_streaming_reads_of_views_only_the_rows_that_were_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 8 * 7)

    class Counting:
        def __init__(self, table: np.ndarray) -> None:
            self.table, self.read = table, 0
            self.shape, self.dtype = table.shape, table.dtype

        def __len__(self) -> int:
            return len(self.table)

        def __getitem__(self, index: Any) -> np.ndarray:
            self.read += len(self.table[index])
            return self.table[index]

    X = numbered(50, 3)
    parts = [Counting(table) for table in (X.rows, *X.views)]
    viewed: Any = parts[0]
    viewed.views = tuple(parts[1:])
    found = passes(row_set("streamed", viewed), 0, 1, 8)
    assert [part.read for part in parts] == np.bincount(found[0], minlength=4).tolist()


@pytest.mark.parametrize("kind", ["held", "streamed"])
def test_statistics_and_stored_order_are_those_of_view_0(kind: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(30, 4)).astype(np.float32)
    viewed = row_set(kind, WithViews(X, X + 100, X * 50))
    for found, expected in zip(
        viewed.mean_and_scale(), row_set(kind, X).mean_and_scale(), strict=True
    ):
        assert np.array_equal(found, expected)
    assert torch.equal(torch.cat([Z.clone() for Z, _ in viewed.in_order(7)]), torch.from_numpy(X))


def trained(kind: str, X: Any, y: np.ndarray, val: Any, **options: Any) -> dict[str, np.ndarray]:
    head = new_head(kind, QUICK)
    head.classes_ = np.array(["a", "b"])
    given: dict[str, Any] = {"seed": 0, "device": "cpu", "tick": lambda row: None, **options}
    head.fit(X, y, *val, **given)
    return head.tensors()


@pytest.mark.parametrize("kind", ["linear", "mlp", MAP_KINDS[0]])
def test_heads_repeat_bit_for_bit_and_learn_something_else_from_views(kind: str) -> None:
    X, y = separable(kind, 40)
    val = separable(kind, 20, seed=1)
    views = [X + np.random.default_rng(v).normal(size=X.shape).astype(X.dtype) for v in (1, 2)]
    plain = trained(kind, X, y, val)
    without = trained(kind, WithViews(X), y, val)
    # A view that is the picture itself changes nothing, not one bit.
    same = trained(kind, WithViews(X, X, X), y, val)
    drawn = trained(kind, WithViews(X, *views), y, val)
    again = trained(kind, WithViews(X, *views), y, val)
    for name, tensor in plain.items():
        assert np.array_equal(tensor, without[name]) and np.array_equal(tensor, same[name])
        assert np.array_equal(drawn[name], again[name])
    assert np.array_equal(plain["mean"], drawn["mean"])
    assert any(not np.array_equal(plain[name], drawn[name]) for name in plain)
