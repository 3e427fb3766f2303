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
from featpipe.heads.gradient_head import GradientHead
from featpipe.heads.training import feature_rows as batches
from featpipe.heads.training import fit as gradient
from featpipe.heads.training.adamw import AdamW
from featpipe.heads.training.feature_rows import HeldRows, StreamedRows, feature_rows
from featpipe.heads.training.head_group import HeadGroup
from featpipe.heads.training.mlp_group import MLPGroup
from featpipe.specs.head_params import CLASS_WEIGHTS


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
    assert calls == 2 * 2 * GradientHead.min_steps


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


def unequal(n: int, classes: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """:func:`toy` of rows (3, 4), of which half of class 0 and more are left out."""
    X, y = toy(3 * n, classes, (3, 4), seed=seed, dtype="f2")
    kept = np.flatnonzero((y == classes - 1) | (np.arange(3 * n) % 4 == 0))[:n]
    return X[kept], y[kept]


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_head_is_trained_as_torch_would_train_it(
    kind: str, classes: int, class_weight: str
) -> None:
    given = {"learning_rate": 0.02, "weight_decay": 0.3, "batch_size": 16, "epochs": 4}
    given |= {"dropout": 0.0, "hidden": 8} if kind == "mlp" else {}
    train, val = unequal(60, classes), unequal(40, classes, seed=1)
    counts = np.bincount(train[1])
    assert counts.max() > 1.5 * counts.min(), "equal classes: their weights are not tested"
    (head,) = heads_of(kind, classes, [{**given, "class_weight": class_weight}])
    (outcome,) = train_all([head], [5], train, val)

    torch.manual_seed(5)
    layers = [torch.nn.Linear(12, classes)]
    if kind == "mlp":
        torch.manual_seed(5)
        layers = [torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, classes)]
    module = torch.nn.Sequential(*layers)
    weights = torch.ones(classes)
    with torch.no_grad():
        if kind == "linear":
            layers[-1].weight.mul_(0.1)
        if class_weight == "balanced":
            layers[-1].bias.zero_()
            weights = torch.from_numpy(60 / (classes * counts)).float()
        else:
            log_counts = torch.from_numpy(np.log(counts)).float()
            layers[-1].bias.copy_(log_counts - log_counts.mean())
    decayed = [p for name, p in module.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in module.named_parameters() if name.endswith("bias")]
    pace = np.sqrt(12) if kind == "linear" and class_weight == "balanced" else 1
    optimiser = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": 0.3},
            {"params": biases, "weight_decay": 0.0, "lr": 0.02 * pace},
        ],
        lr=0.02,
    )
    Z, y = torch.from_numpy(head.standardise(train[0])), torch.from_numpy(train[1])
    Z_val, y_val = torch.from_numpy(head.standardise(val[0])), torch.from_numpy(val[1])
    order = np.random.default_rng(3)
    for epoch in range(4):
        total = 0.0
        # Four batches are fewer than an epoch's steps.
        for permutation in (order.permutation(60), order.permutation(60)):
            for batch in torch.split(torch.from_numpy(permutation), 16):
                losses = torch.nn.functional.cross_entropy(
                    module(Z[batch]), y[batch], reduction="none"
                )
                optimiser.zero_grad()
                (losses * weights[y[batch]]).mean().backward()
                optimiser.step()
                total += float((losses.detach() * weights[y[batch]]).sum())
        row = outcome.history.rows[epoch]
        assert row.train_loss == pytest.approx(total / 120, rel=1e-4)
        with torch.inference_mode():
            logits = module(Z_val)
            val_loss = float(torch.nn.functional.cross_entropy(logits, y_val, weights))
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
    passes = len(seen) // 2
    assert seen[:passes] == seen[passes:] and sorted(seen[0]) == list(range(20))
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
    assert (sizes[0], sizes[-1]) == (4, 1) and len(sizes) == 20 * GradientHead.min_steps


@pytest.mark.parametrize(
    ("n", "batch_size", "steps"), [(3, 128, 5), (40, 20, 6), (80, 20, 8), (81, 20, 5), (130, 20, 7)]
)
def test_an_epoch_of_few_rows_passes_over_them_until_it_has_made_enough_steps(
    n: int, batch_size: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    learn = HeadGroup.learn

    def watched(self: HeadGroup, *batch: torch.Tensor) -> Any:
        seen.extend(batch[1].tolist())
        return learn(self, *batch)

    monkeypatch.setattr(HeadGroup, "learn", watched)
    heads = heads_of("linear", 2, [{"epochs": 1, "batch_size": batch_size}])
    (end,) = train_all(heads, [0], overlapping(n, 0), overlapping(30, 1))
    assert len(end.history.rows) == 1 and end.history.rows[0].train_accuracy <= 1
    passes = -(-steps // -(-n // batch_size))
    assert len(seen) == passes * n and passes * -(-n // batch_size) == steps


@pytest.mark.parametrize("width", [16, 1024])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_unequal_classes_cost_no_accuracy(kind: str, classes: int, width: int) -> None:
    # Nothing can be learned from these rows, so the larger class is the best answer.
    rng = np.random.default_rng(0)
    y, y_val = np.zeros(120 + 6 * (classes - 1), np.int64), np.zeros(84, np.int64)
    y[120:], y_val[80:] = np.arange(6 * (classes - 1)) % (classes - 1) + 1, 1
    train, val = ((rng.normal(size=(len(part), width)), part) for part in (y, y_val))
    (end,) = train_all(heads_of(kind, classes, [{}]), [0], train, val)
    assert end.history.kept.val_accuracy >= 80 / 84
    # As good as the classes' frequencies: they are known from the first step on.
    share = np.bincount(y) / len(y)
    assert end.history.kept.val_loss < 1.1 * -np.log(share[y_val]).mean()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_balanced_classes_count_alike(kind: str, classes: int) -> None:
    X, y = overlapping(400, 0)
    kept = np.flatnonzero((y == 0) | (np.arange(400) % 20 == 1))
    X, y = X[kept], y[kept]
    y = y + (classes - 2) * (y == 1) * (np.arange(len(y)) % 2)
    recalls = {}
    for class_weight in CLASS_WEIGHTS:
        given = {"class_weight": class_weight, "learning_rate": 0.01, "epochs": 20}
        given |= {"hidden": 4} if kind == "mlp" else {}
        (head,) = heads_of(kind, classes, [given])
        (end,) = train_all([head], [0], (X, y), (X, y))
        head.set_layers(end.layers)
        found = head.predict_proba(X).argmax(axis=1)
        assert end.history.kept.val_accuracy == pytest.approx((found == y).mean(), abs=0.02)
        recalls[class_weight] = [(found[y == c] == c).mean() for c in range(classes)]
    assert np.mean(recalls["balanced"]) > np.mean(recalls["none"]) + 0.1


def test_a_class_without_rows_does_not_spoil_the_start() -> None:
    X, y = overlapping(60, 0)
    for class_weight in CLASS_WEIGHTS:
        (head,) = heads_of("linear", 3, [{"class_weight": class_weight}])
        (end,) = train_all([head], [0], (X, y), overlapping(40, 1))
        assert not end.diverged and np.isfinite(end.layers["bias"]).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_decay_of_weights_leaves_the_frequencies_of_classes_alone(classes: int) -> None:
    y = np.arange(100) % 10 == 0
    zeros = np.zeros((100, 4), np.float32)
    given = {"weight_decay": 100.0, "learning_rate": 3e-3, "epochs": 40, "patience": 40}
    (end,) = train_all(heads_of("linear", classes, [given]), [0], (zeros, y + 0), (zeros, y + 0))
    bias = end.layers["bias"]
    assert bias[0] - bias[1] == pytest.approx(np.log(9), abs=0.2)
    assert abs(end.layers["weight"]).max() < 0.05


def test_a_best_epoch_at_an_end_is_a_warning() -> None:
    train, val = overlapping(80, 0), overlapping(200, 1)
    (slow,) = train_all(heads_of("linear", 2, [{"epochs": 3}]), [0], train, val)
    assert slow.history.warnings == [
        "expected the validation loss to stop falling, found it lowest in the last of 3 epochs; "
        "raise --epochs"
    ]
    train, (X_val, y_val) = toy(80), toy(40, seed=1)
    given = {"learning_rate": 0.1}
    (fast,) = train_all(heads_of("linear", 2, [given]), [0], train, (X_val, 1 - y_val))
    assert fast.history.warnings == [
        "expected the validation loss to fall after the first epoch, found it lowest there; "
        "lower --learning-rate"
    ]
    train, val = overlapping(60, 0), overlapping(200, 1)
    given = {"learning_rate": 0.002, "epochs": 60}
    (fine,) = train_all(heads_of("linear", 2, [given]), [0], train, val)
    assert fine.history.warnings == [] and 0 < fine.history.best < 59


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
