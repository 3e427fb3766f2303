"""HeadGroups of heads do PyTorch's own arithmetic, and rows reach them once an epoch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from support.heads import overlapping, toy

from featpipe.heads import new_head
from featpipe.heads.base import Head, mean_and_scale
from featpipe.heads.training import feature_rows as batches
from featpipe.heads.training import fit as gradient
from featpipe.heads.training.adamw import AdamW
from featpipe.heads.training.feature_rows import HeldRows, StreamedRows, feature_rows
from featpipe.heads.training.head_group import HeadGroup
from featpipe.heads.training.mlp_group import MLPGroup


def heads_of(kind: str, classes: int, settings: list[dict[str, Any]]) -> list[Head]:
    heads = [new_head(kind, given) for given in settings]
    for head in heads:
        head.classes_ = np.array([str(i) for i in range(classes)])
    return heads


def train_all(heads: list[Head], seeds: list[int], train: Any, val: Any) -> Any:
    return gradient.train_all(
        heads, seeds, *train, *val, seed=3, device="cpu", on_epoch=lambda *_: None
    )


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "public operators"])
def test_each_head_is_updated_as_torch_updates_it(fused: bool) -> None:
    torch.manual_seed(0)
    start, rates, decays = torch.randn(5, 3, 4), [1e-3, 0.1, 0.1, 1.0, 1e-2], [0, 1, 1, 0.5, 0.01]
    ours = AdamW(start.clone(), rates, decays, fused=fused)
    theirs = [torch.nn.Parameter(start[k].clone()) for k in range(5)]
    optimisers = [
        torch.optim.AdamW([p], lr=rate, weight_decay=decay)
        for p, rate, decay in zip(theirs, rates, decays, strict=True)
    ]
    kept = list(range(5))
    for step in range(30):
        if step == 10:
            # Heads that leave take nothing of the others with them.
            kept = [1, 3, 4]
            ours.keep(kept)
        for row, k in enumerate(kept):
            gradient_now = torch.randn(3, 4)
            ours.gradient[row] = gradient_now
            theirs[k].grad = gradient_now
            optimisers[k].step()
        ours.step()
        # After every step, not only at the end.
        for row, k in enumerate(kept):
            found = ours.value[row] * ours.factors[row]
            assert torch.allclose(found, theirs[k], rtol=1e-4, atol=1e-6)


def test_a_head_of_a_far_higher_rate_takes_nothing_from_its_neighbours() -> None:
    train, val = toy(60, 3, (5,)), toy(30, 3, (5,), seed=1)
    settings = [{"learning_rate": rate, "epochs": 3} for rate in (1e-3, 1e25)]
    together = train_all(heads_of("linear", 3, settings), [0, 0], train, val)
    (alone,) = train_all(heads_of("linear", 3, settings[:1]), [0], train, val)
    for found, expected in zip(together[0].history.rows, alone.history.rows, strict=True):
        assert found.as_json("epoch") == pytest.approx(expected.as_json("epoch"), rel=1e-4)


def test_one_step_is_one_update_of_each_tensor_however_many_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = 0
    update = torch._fused_adamw_

    def counted(*args: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        update(*args, **options)

    monkeypatch.setattr(torch, "_fused_adamw_", counted)
    settings = [{"learning_rate": rate, "epochs": 2} for rate in np.geomspace(1e-4, 1e-2, 20)]
    train_all(heads_of("linear", 2, settings), [0] * 20, toy(64, 2, (5,)), toy(30, 2, (5,)))
    steps = 2 * -(-64 // new_head("linear", {}).batch_size)
    assert calls == 2 * steps


@pytest.mark.parametrize(("width", "heads", "threads"), [(512, 1, 1), (512, 200, 3), (25088, 1, 3)])
def test_small_steps_take_one_thread(
    width: int, heads: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    learn = HeadGroup.learn

    def watched(self: HeadGroup, Z: torch.Tensor, y: torch.Tensor) -> Any:
        seen.add(torch.get_num_threads())
        return learn(self, Z, y)

    monkeypatch.setattr(HeadGroup, "learn", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        given = heads_of("linear", 2, [{"epochs": 1}] * heads)
        train_all(given, [0] * heads, toy(20, 2, (width,)), toy(20, 2, (width,)))
        assert seen == {threads}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_is_trained_as_torch_would_train_it(kind: str, classes: int) -> None:
    given = {"learning_rate": 0.02, "weight_decay": 0.3, "batch_size": 16, "epochs": 4}
    given |= {"dropout": 0.0, "hidden": 8} if kind == "mlp" else {}
    train, val = toy(60, classes, (3, 4), dtype="f2"), toy(40, classes, (3, 4), seed=1)
    (head,) = heads_of(kind, classes, [given])
    (outcome,) = train_all([head], [5], train, val)

    torch.manual_seed(5)
    layers = [torch.nn.Linear(12, classes)]
    if kind == "mlp":
        torch.manual_seed(5)
        layers = [torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, classes)]
    module = torch.nn.Sequential(*layers)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.3)
    Z, y = torch.from_numpy(head.standardise(train[0])), torch.from_numpy(train[1])
    Z_val, y_val = torch.from_numpy(head.standardise(val[0])), torch.from_numpy(val[1])
    order = np.random.default_rng(3)
    for epoch in range(4):
        total = 0.0
        for batch in torch.split(torch.from_numpy(order.permutation(60)), 16):
            loss = torch.nn.functional.cross_entropy(module(Z[batch]), y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        row = outcome.history.rows[epoch]
        assert row.train_loss == pytest.approx(total / 60, rel=1e-4)
        with torch.inference_mode():
            logits = module(Z_val)
            val_loss = float(torch.nn.functional.cross_entropy(logits, y_val))
        assert row.val_loss == pytest.approx(val_loss, rel=1e-4)
        assert row.val_accuracy == pytest.approx(int((logits.argmax(1) == y_val).sum()) / 40)
    assert outcome.history.best == 3, "not the last state: it cannot be compared"
    theirs = [p.detach().numpy() for p in module.parameters()]
    for layer, expected in zip(outcome.layers.values(), theirs, strict=True):
        assert np.allclose(layer, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_in_a_stack_ends_as_it_would_alone(kind: str, classes: int) -> None:
    # Rates from too small to far too large: some stop after a few epochs, some never.
    settings: list[dict[str, Any]] = [
        {"learning_rate": rate, "weight_decay": decay, "epochs": 25, "patience": 3}
        for rate in (1e-3, 0.03, 0.3)
        for decay in (0.0, 0.5)
    ]
    if kind == "mlp":
        settings = [
            {**given, "hidden": hidden, "dropout": dropout}
            for given, (hidden, dropout) in zip(
                settings, [(8, 0.0), (8, 0.5), (8, 0.2), (5, 0.5), (8, 0.5), (5, 0.0)], strict=True
            )
        ]
    settings = [{**given, "batch_size": 16} for given in settings]
    seeds = [0, 1, 0, 1, 0, 0]
    X, y = overlapping(70, 0)
    X_val, y_val = overlapping(60, 1)
    train, val = (X, y + (X[:, 0] > 0) * (classes - 2)), (X_val, y_val)
    heads = heads_of(kind, classes, settings)
    together = train_all(heads, seeds, train, val)
    lengths = set()
    for given, seed, found in zip(settings, seeds, together, strict=True):
        (alone,) = train_all(heads_of(kind, classes, [given]), [seed], train, val)
        assert found.history.best == alone.history.best
        assert len(found.history.rows) == len(alone.history.rows)
        for row, expected in zip(found.history.rows, alone.history.rows, strict=True):
            numbers = expected.as_json("epoch")
            assert row.as_json("epoch") == pytest.approx(numbers, rel=1e-3, abs=1e-5)
        for name, layer in alone.layers.items():
            assert np.allclose(found.layers[name], layer, rtol=1e-3, atol=1e-5), name
        lengths.add(len(alone.history.rows))
    assert len(lengths) > 2, "all stopped together: nothing left the stack early"


def test_a_seed_decides_weights_and_dropout_but_not_the_order() -> None:
    given = {"hidden": 6, "dropout": 0.5, "epochs": 1}
    seen: list[list[int]] = []
    real = HeldRows.shuffled

    def watched(self: Any, order: np.random.Generator, size: int) -> Any:
        for Z, y in real(self, order, size):
            seen.append((Z[:, 0] + self._mean[0]).round().int().tolist())
            yield Z, y

    X = np.repeat(np.arange(20, dtype=np.float32)[:, None], 4, axis=1)
    y = np.arange(20) % 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldRows, "shuffled", watched)
        outcomes = [
            train_all(heads_of("mlp", 2, [given]), [seed], (X, y), (X, y))[0] for seed in (1, 2)
        ]
    assert seen[0] == seen[1] and sorted(seen[0]) == list(range(20))
    first, other = outcomes
    assert (first.layers["hidden.weight"] != other.layers["hidden.weight"]).all()


def test_a_seed_decides_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MLPGroup, "_initial", lambda self, seed: real(self, 0))
    train, val = overlapping(60, 0), overlapping(40, 1)
    heads = heads_of("mlp", 2, [{"hidden": 6, "dropout": 0.5, "epochs": 1}] * 3)
    first, other, again = train_all(heads, [1, 2, 1], train, val)
    lost = [outcome.history.rows[0].train_loss for outcome in (first, other, again)]
    assert lost[0] == pytest.approx(lost[2], rel=1e-6)
    assert lost[0] != pytest.approx(lost[1], rel=1e-3)


real = MLPGroup._initial


def test_heads_that_are_done_leave_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    learn = HeadGroup.learn

    def watched(self: HeadGroup, *batch: torch.Tensor) -> Any:
        sizes.append(len(self.state()["weight"]))
        return learn(self, *batch)

    monkeypatch.setattr(HeadGroup, "learn", watched)
    # Three run past their best at once, the slow one goes on.
    settings = [{"epochs": 20, "patience": 2, "learning_rate": r} for r in (9.0, 9.0, 9.0, 1e-3)]
    train_all(heads_of("linear", 2, settings), [0] * 4, overlapping(60, 0), overlapping(40, 1))
    assert (sizes[0], sizes[-1]) == (4, 1) and len(sizes) == 20


class Watched:
    """Rows that know how often each was read, and the most that was read at once."""

    def __init__(self, X: np.ndarray) -> None:
        self._X, self.shape, self.dtype = X, X.shape, X.dtype
        self.reads = np.zeros(len(X), int)
        self.most = 0

    def __len__(self) -> int:
        return len(self._X)

    def __getitem__(self, index: slice) -> np.ndarray:
        assert isinstance(index, slice), "rows are read in blocks of neighbours"
        found = self._X[index]
        self.reads[index] += 1
        self.most = max(self.most, found.nbytes)
        return found


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for rows, and blocks of ten rows of eight float16 numbers."""
    monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)


@pytest.mark.parametrize("n", [1, 9, 10, 57, 203])
@pytest.mark.parametrize("size", [1, 7, 64, 300])
def test_streaming_hands_out_every_row_once_an_epoch(n: int, size: int, narrow: None) -> None:
    X = Watched(np.repeat(np.arange(n, dtype=np.float16)[:, None], 8, axis=1))
    rows = feature_rows(X, np.arange(n), "cpu")
    assert isinstance(rows, StreamedRows)
    order = np.random.default_rng(0)
    epochs = []
    for epoch in range(3):
        got = []
        for Z, y in rows.shuffled(order, size):
            assert Z.dtype == torch.float32 and (Z[:, 0].long() == y).all()
            assert len(y) <= size
            got.append(y.tolist())
        assert [len(batch) for batch in got[:-1]] == [size] * (len(got) - 1)
        flat = list(itertools.chain(*got))
        assert sorted(flat) == list(range(n))
        assert (X.reads == epoch + 1).all()
        epochs.append(flat)
    if n > 50:
        assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])
        # Rows of different blocks meet in a batch, and blocks come in another order.
        assert max(abs(np.diff(epochs[0]))) > 10
    assert [int(i) for _, y in rows.in_order(size) for i in y] == list(range(n))
    # In memory: four blocks and a batch, in the stored dtype.
    assert X.most <= 160 and rows._pool.dtype == torch.float16
    assert len(rows._pool) <= max(10, min(n, 40 + size))


@pytest.mark.parametrize("n", [1, 57])
def test_rows_that_fit_are_read_once_and_stay_as_stored(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)
    X = Watched(np.repeat(np.arange(n, dtype=np.float16)[:, None], 8, axis=1))
    monkeypatch.setattr(batches, "free_memory", lambda device: 2 * n * 16)
    rows = feature_rows(X, np.arange(n), "cpu")
    assert isinstance(rows, HeldRows) and rows._rows.dtype == torch.float16
    order = np.random.default_rng(0)
    for _ in range(2):
        flat = [
            int(i) for Z, y in rows.shuffled(order, 7) for i in y if (Z[:, 0].long() == y).all()
        ]
        assert sorted(flat) == list(range(n))
    assert (X.reads == 1).all() and X.most <= 160
    monkeypatch.setattr(batches, "free_memory", lambda device: 2 * n * 16 - 2)
    assert isinstance(feature_rows(X, np.arange(n), "cpu"), StreamedRows)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_streaming_learns_as_well_and_repeats_itself(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"learning_rate": 0.01, "batch_size": 16, "epochs": 15}
    # Sorted by class: without shuffling across blocks a batch would show one class only.
    X, y = toy(120, 3, dtype="f2")
    by_class = np.argsort(y, kind="stable")
    train, val = (X[by_class], y[by_class]), toy(60, 3, seed=1, dtype="f2")
    (held,) = train_all(heads_of(kind, 3, [given]), [0], train, val)
    monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)
    streamed = [train_all(heads_of(kind, 3, [given]), [0], train, val)[0] for _ in range(2)]
    assert streamed[0].history == streamed[1].history
    last, expected = streamed[0].history.rows[-1], held.history.rows[-1]
    assert last.val_accuracy >= expected.val_accuracy - 0.02
    assert last.val_loss < expected.val_loss * 1.5


@pytest.mark.parametrize("stream", [False, True])
def test_the_scale_is_the_one_all_heads_use(stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X = (1000 + np.random.default_rng(0).normal(size=(57, 2, 4))).astype(np.float32)
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 160)
    monkeypatch.setattr(batches, "_PIECE_BYTES", 200)
    if stream:
        monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    mean, scale = feature_rows(X, np.zeros(57, np.int64), "cpu").mean_and_scale()
    expected_mean, expected_scale = mean_and_scale(X)
    assert mean.dtype == scale.dtype == np.float32
    assert np.allclose(mean, expected_mean, rtol=1e-6)
    assert np.allclose(scale, expected_scale, rtol=1e-5)
