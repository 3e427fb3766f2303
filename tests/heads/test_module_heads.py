"""Networks on maps: their shapes, their optimisers, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.heads import MAP_SHAPE, banded, overlapping

from featpipe.base.errors import DamageError, UsageError
from featpipe.heads import new_head
from featpipe.heads.base import History
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.sweep import plan_sweep, run_sweep
from featpipe.heads.training import fit as training
from featpipe.heads.training.module_trainer import (
    ModuleTrainer,
    initialise,
    random_numbers,
)
from featpipe.heads.training.optimizers import OPTIMIZERS

PARAMETERS = {
    # Convolutions of 5 x 5 on 1 x 28 x 28: LeCun's numbers with 256 inputs of the dense layers.
    "lenet": 156 + 2416 + 257 * 120 + 121 * 84 + 85 * 10,
    "lenet3x3": 60 + 330 + 880 + 2320 + 257 * 120 + 121 * 84 + 85 * 10,
    "mnist-cnn": 260 + 5020 + 321 * 50 + 51 * 10,
    "simplecnn": 320 + 18496 + 73856 + 1153 * 512 + 513 * 64 + 65 * 10,
}
SMALL_NETWORKS = tuple(PARAMETERS)
SMALLEST = {"lenet": 16, "lenet3x3": 16, "mnist-cnn": 16, "simplecnn": 8}


def head_of(kind: str, classes: int = 2, **params: Any) -> ModuleHead:
    head = new_head(kind, params)
    assert isinstance(head, ModuleHead)
    head.classes_ = np.array([f"class {i}" for i in range(classes)])
    return head


def fit(head: ModuleHead, train: Any, val: Any, seed: int = 0) -> History:
    return head.fit(*train, *val, seed=seed, device="cpu", tick=lambda _: None)


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_a_network_has_the_parameters_of_its_description(kind: str) -> None:
    module = head_of(kind, 10).new_module((1, 28, 28))
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[kind]


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 20), (3, 16, 16)])
def test_a_network_takes_maps_of_any_size(kind: str, shape: tuple[int, int, int]) -> None:
    module = head_of(kind, 5).new_module(shape).eval()
    assert module(torch.zeros(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_maps_that_are_too_small_are_refused_with_the_smallest_side(kind: str) -> None:
    side = SMALLEST[kind]
    assert head_of(kind).new_module((1, side, side)) is not None
    X, y = np.zeros((4, 1, side, side - 1), np.uint8), np.arange(4) % 2
    with pytest.raises(
        UsageError,
        match=f"expected maps of at least {side} x {side} for a '{kind}' head, found {side} x "
        f"{side - 1}; extract with a larger --size",
    ):
        fit(head_of(kind), (X, y), (X, y))


@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_flat_rows_are_refused_with_what_to_do(kind: str) -> None:
    X, y = np.zeros((4, 512), np.float16), np.arange(4) % 2
    with pytest.raises(UsageError) as caught:
        fit(head_of(kind), (X, y), (X, y))
    assert str(caught.value) == (
        f"expected maps (channels, height, width) for a '{kind}' head, found flat rows of 512 "
        "numbers; extract with --backbone pixels, or with --pool none, and name that space with "
        "--backbone or --pool"
    )


def test_momentum_is_not_for_adamw() -> None:
    with pytest.raises(UsageError, match="--momentum only with --optimizer sgd or rmsprop, found"):
        new_head("lenet", {"momentum": 0.5})
    assert head_of("lenet", momentum=0.5, optimizer="rmsprop").inertia == 0.5
    assert head_of("lenet", optimizer="sgd").inertia == 0.9
    assert head_of("lenet", optimizer="sgd").rate == 0.01
    assert head_of("lenet", optimizer="sgd", learning_rate=0.5).rate == 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_that_of_torch(name: str, fused: bool, momentum: float) -> None:
    # Decoupled decay is compared with AdamW's; the others' own decay is another one.
    decay = 0.1 if name == "adamw" else 0.0
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    step: Any = OPTIMIZERS[name](
        ours.parameters(), rate=0.03, decay=decay, momentum=momentum, fused=fused
    )
    reference: Any = {
        "adamw": lambda p: torch.optim.AdamW(
            [{"params": [p.weight]}, {"params": [p.bias], "weight_decay": 0.0}],
            lr=0.03,
            weight_decay=decay,
        ),
        "sgd": lambda p: torch.optim.SGD(p.parameters(), lr=0.03, momentum=momentum),
        "rmsprop": lambda p: torch.optim.RMSprop(p.parameters(), lr=0.03, momentum=momentum),
    }[name](theirs)
    for _ in range(6):
        rows = torch.randn(4, 5)
        for module in (ours, theirs):
            torch.autograd.backward(module(rows).square().mean())
        step.step()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)
        assert mine.grad is None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_decay_and_biases_do_not(name: str) -> None:
    layer = torch.nn.Linear(2, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    step: Any = OPTIMIZERS[name](layer.parameters(), rate=0.1, decay=0.5, momentum=0.0)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step.step()
    assert torch.allclose(layer.weight, 0.95 * before[0])
    assert torch.equal(layer.bias, before[1])


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    used, unused = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = unused.weight.detach().clone()
    step: Any = OPTIMIZERS["adamw"](
        [*used.parameters(), *unused.parameters()], rate=0.1, decay=0.5, momentum=0.0
    )
    torch.autograd.backward(used(torch.ones(1, 2)).sum())
    step.step()
    assert torch.equal(unused.weight, before)


@pytest.mark.parametrize(
    ("scheme", "spread"),
    [("xavier", (2 / 1100) ** 0.5), ("kaiming", (2 / 1000) ** 0.5), ("normal", 0.05)],
)
def test_initial_weights_have_the_spread_of_their_scheme(scheme: str, spread: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(1000, 100))
    initialise(layer, scheme)
    assert layer[0].weight.std().item() == pytest.approx(spread, rel=0.02)
    assert not layer[0].bias.any()


@pytest.mark.parametrize("options", [{"optimizer": "sgd"}, {"optimizer": "rmsprop"}, {"init": "xavier"}, {"init": "kaiming"}, {"init": "normal"}, {"batch_size": 1}, {"batch_size": 4096}, {"class_weight": "balanced"}], ids=str)  # fmt: skip  # noqa: E501
def test_every_option_learns(options: dict[str, Any]) -> None:
    rate = {} if options.get("optimizer") == "sgd" else {"learning_rate": 0.003}
    head = head_of("lenet", 3, **{"batch_size": 16, "epochs": 8, **rate, **options})
    history = fit(head, banded(90, 3, dtype="u1"), banded(30, 3, seed=1, dtype="u1"))
    assert history.kept.val_accuracy >= 0.95
    assert len(history.epoch_seconds) == len(history.rows) and min(history.epoch_seconds) > 0


def test_numbers_are_drawn_apart_from_those_of_others() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with random_numbers(1, "cpu"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with random_numbers(1, "cpu"):
        assert torch.equal(torch.rand(3), first)


def test_nothing_is_read_from_the_device_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            Reads.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads():
        torch.ones(1).item()
    assert Reads.count == 1, "the counter must work, or this test shows nothing"
    reads = []
    for n in (40, 160):
        Reads.count = 0
        head = head_of("lenet", epochs=1, batch_size=8)
        with Reads():
            fit(head, overlapping(n, 0, "lenet"), overlapping(20, 1, "lenet"))
        reads.append(Reads.count)
    assert reads == [0, 0]


def test_a_sweep_takes_networks_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"epochs": 2, "learning_rate": 0.003}
    plan = plan_sweep("mnist-cnn", given, seed=3, seeds=2)
    assert plan.grid == {"batch_size": [32, 128], "dropout": [0.1, 0.25, 0.5]}
    held: list[int] = []
    real = training.EpochLoop.run

    def counted(self: Any, **options: Any) -> Any:
        held.append(self.trainer.count)
        return real(self, **options)

    monkeypatch.setattr(training.EpochLoop, "run", counted)
    train, val = overlapping(60, 0, "lenet"), overlapping(40, 1, "lenet")
    sweep = run_sweep(
        plan,
        *train,
        *val,
        classes=["a", "b"],
        seed=3,
        device="cpu",
        on_progress=lambda *_: None,
    )
    assert held == [1] * 12, "each once: none is trained again"
    winner: Any = plan.heads[sweep.winner]
    means = [row["val_loss"] for row in sweep.by_seed]
    assert means == sorted(means, key=lambda spread: spread["mean"])
    assert winner.params == sweep.trials[0].params
    # Only the winner has tensors, and they are those that its own training gives.
    assert [hasattr(head, "layers_") for head in plan.heads].count(True) == 1
    alone = head_of("mnist-cnn", **winner.params)
    fit(alone, train, val, seed=plan.seeds[sweep.winner])
    for name, tensor in alone.layers().items():
        assert tensor.tobytes() == winner.layers()[name].tobytes()


def test_sgd_sweeps_higher_learning_rates() -> None:
    assert plan_sweep("lenet", {"optimizer": "sgd"}, seed=0).grid["learning_rate"] == [
        0.003,
        0.01,
        0.03,
    ]


def test_a_file_cannot_ask_for_more_memory_than_it_has() -> None:
    head = head_of("lenet", epochs=1)
    fit(head, overlapping(20, 0, "lenet"), overlapping(20, 1, "lenet"))
    other = new_head("lenet", {})
    with pytest.raises(DamageError):
        other.set_tensors(head.tensors(), ["a", "b"], (2, 2**31 - 1, 2**31 - 1))


def test_a_batch_of_any_number_of_rows_is_scored_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of("lenet", epochs=2)
    fit(head, overlapping(40, 0, "lenet"), overlapping(20, 1, "lenet"))
    X, _ = overlapping(50, 2, "lenet")
    whole = head.predict_proba(X)
    monkeypatch.setattr(ModuleHead, "block_rows", 7)
    assert np.allclose(head.predict_proba(X), whole, rtol=1e-4)
    assert X.shape[1:] == MAP_SHAPE


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_stays_on_its_device(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without numbers that claim to lie on a GPU: mixing devices is an error. There the
    # gradients are made by hand, because autograd wants a real device.
    from torch._subclasses.fake_tensor import FakeTensorMode

    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
    head = head_of("mnist-cnn", optimizer=optimizer)
    head.row_shape_ = (1, 16, 16)
    weights = np.array([0.5, 1.5])
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda:0"):
        trainer = ModuleTrainer(
            head, scale=2.0, class_weights=weights, planned_steps=1, device="cuda:0"
        )
        Z, y = torch.empty(8, 256), torch.zeros(8, dtype=torch.int64)
        for learns in (True, False):
            sums = trainer._losses(Z, y, learns=learns)
            assert [part.device.type for part in sums] == ["cuda", "cuda"]
        trainer._optimizer.fused = optimizer == "adamw"  # the kernel of SGD has no pretence
        for parameter in trainer.module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer._optimizer.step()
        assert {tensor.device.type for tensor in trainer.state().values()} == {"cuda"}


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SMALL_NETWORKS)
def test_a_network_learns_on_a_gpu_as_on_a_cpu(kind: str) -> None:
    data = (*banded(120, 3, dtype="u1"), *banded(40, 3, seed=1, dtype="u1"))
    X, y = banded(60, 3, seed=2, dtype="u1")
    torch.manual_seed(1)
    before = torch.cuda.get_rng_state(0)
    for device in ("cuda:0", "cpu"):
        head = head_of(kind, 3, learning_rate=0.003, batch_size=16, epochs=8)
        head.fit(*data, seed=0, device=device, tick=lambda _: None)
        assert (head.predict_proba(X).argmax(axis=1) == y).mean() >= 0.95, device
    assert torch.equal(torch.cuda.get_rng_state(0), before)
