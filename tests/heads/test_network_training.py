"""How networks learn: rates of their own, schedules, bf16 products with float32 weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heads import MAP_SHAPE, banded
from torch import nn

from featpipe.base.errors import UsageError
from featpipe.heads import new_head
from featpipe.heads.lenet import LeNetHead
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.training.loop import Plan
from featpipe.heads.training.module_trainer import ModuleTrainer, random_numbers
from featpipe.heads.training.optimizers import OPTIMIZERS
from featpipe.heads.training.schedules import rate_share


def lenet(**params: Any) -> ModuleHead:
    head = new_head("lenet", params)
    assert isinstance(head, ModuleHead)
    head.classes_ = np.array(["a", "b"])
    head.row_shape_ = MAP_SHAPE
    return head


def trainer_of(head: ModuleHead, steps: int = 10, device: str = "cpu") -> ModuleTrainer:
    return ModuleTrainer(
        head, scale=1.0, class_weights=np.ones(2), planned_steps=steps, device=device
    )


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    X, y = banded(16, seed=seed, dtype="f4")
    return torch.from_numpy(X.reshape(16, -1) / 255), torch.from_numpy(y)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_parameters_with_rates_of_their_own_step_as_groups_of_torch(name: str, fused: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    theirs = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    theirs.load_state_dict(ours.state_dict())
    factors, decay = [0.03, 0.03, 1.0, 2.5], 0.1 if name == "adamw" else 0.0
    step = OPTIMIZERS[name](
        ours.parameters(), rate=0.01, decay=decay, momentum=0.9, factors=factors, fused=fused
    )
    groups = [
        {"params": [p], "lr": 0.01 * f, "weight_decay": decay if p.dim() > 1 else 0.0}
        for p, f in zip(theirs.parameters(), factors, strict=True)
    ]
    reference: Any = (
        torch.optim.AdamW(groups, fused=fused)
        if name == "adamw"
        else torch.optim.SGD(groups, momentum=0.9, fused=fused)
    )
    for _ in range(8):
        rows = torch.randn(6, 5)
        for module in (ours, theirs):
            torch.autograd.backward(module(rows).square().mean())
        step.step()
        reference.step()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        if fused:
            assert torch.equal(mine, other)
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


class TwoRates(LeNetHead):
    """A lenet whose first convolution is frozen, and whose second learns slowly."""

    def rate_factors(self, module: nn.Module) -> Mapping[str, float]:
        return {"conv1.weight": 0.0, "conv1.bias": 0.0, "conv2.weight": 0.01, "conv2.bias": 0.01}


def test_a_head_names_the_rates_of_its_parameters() -> None:
    head = TwoRates()
    head.classes_, head.row_shape_ = np.array(["a", "b"]), MAP_SHAPE
    with torch.no_grad(), random_numbers(0, "cpu"):
        trainer = trainer_of(head)
        before = {name: p.clone() for name, p in trainer.module.named_parameters()}
        trainer.learn(*batch(0))
    moved = {
        name: float((p.detach() - before[name]).abs().max())
        for name, p in trainer.module.named_parameters()
    }
    assert moved["conv1.weight"] == moved["conv1.bias"] == 0
    assert moved["conv2.weight"] == pytest.approx(0.01 * head.rate, rel=0.01)
    assert moved["output.weight"] == pytest.approx(head.rate, rel=0.01)
    assert not trainer.module.get_parameter("conv1.weight").requires_grad


def test_a_rate_of_no_parameter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TwoRates, "rate_factors", lambda self, module: {"conv9.weight": 0.1})
    head = TwoRates()
    head.classes_, head.row_shape_ = np.array(["a", "b"]), MAP_SHAPE
    with pytest.raises(KeyError, match=r"conv9\.weight"):
        trainer_of(head)


@given(steps=st.integers(1, 500))
@settings(max_examples=20, deadline=None)
def test_a_cosine_is_that_of_torch(steps: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for step in range(steps):
        assert rate_share("cosine", step, steps) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        assert rate_share("constant", step, steps) == 1.0
        optimizer.step()
        theirs.step()


def test_a_cosine_spreads_over_all_steps_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = OPTIMIZERS["adamw"].step

    def watched(self: Any) -> None:
        rates.append(self.rate)
        step(self)

    monkeypatch.setattr(OPTIMIZERS["adamw"], "step", watched)
    data = (*banded(40, dtype="f4"), *banded(20, seed=1, dtype="f4"))
    head = lenet(schedule="cosine", epochs=7, batch_size=16, learning_rate=1e-4)
    history = head.fit(*data, seed=0, device="cpu", tick=lambda _: None)
    # Three batches make an epoch of two passes: at least 5 steps.
    assert Plan(16, 7, head.min_steps, 5).steps(40) == 7 * 6 == len(rates)
    assert rates == [1e-4 * rate_share("cosine", i, 42) for i in range(42)]
    assert len(history.rows) == 7


def test_a_cosine_makes_all_epochs_unless_patience_is_given() -> None:
    X, y = banded(40, dtype="f4")
    X_val, y_val = banded(20, seed=1, dtype="f4")
    lengths = {}
    for schedule, patience in (("constant", None), ("cosine", None), ("cosine", 2)):
        head = lenet(schedule=schedule, patience=patience, epochs=9, learning_rate=3e-3)
        # Labels of validation are wrong, so that its loss rises from the start.
        history = head.fit(X, y, X_val, 1 - y_val, seed=0, device="cpu", tick=lambda _: None)
        lengths[schedule, patience] = len(history.rows) - 1 - history.best
    assert lengths["constant", None] == 5
    assert lengths["cosine", 2] == 2
    assert lengths["cosine", None] > 5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bf16_multiplies_weights_that_stay_in_float32(optimizer: str) -> None:
    heads = {c: lenet(compute=c, optimizer=optimizer) for c in ("fp32", "bf16")}
    losses, trainers = {}, {}
    for compute, head in heads.items():
        with torch.no_grad(), random_numbers(0, "cpu"):
            trainer = trainers[compute] = trainer_of(head)
            kinds: set[torch.dtype] = set()
            trainer.module.get_submodule("conv2").register_forward_hook(
                lambda _, __, answer, kinds=kinds: kinds.add(answer.dtype)
            )
            losses[compute] = [float(trainer.learn(*batch(i))[0]) for i in range(4)]
            assert kinds == {torch.bfloat16 if compute == "bf16" else torch.float32}
            kinds.clear()
            trainer.score(*batch(9))
            assert kinds == {torch.float32}, "validation is what predictions are"
        assert {p.dtype for p in trainer.state().values()} == {torch.float32}
        memory = trainer._optimizer._memory
        assert {one.dtype for kept in memory.values() for one in kept} <= {torch.float32}
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.01)
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.3)
    assert losses["bf16"] != losses["fp32"]
    # A small step is not lost in the 8 bits of bf16.
    for name, value in trainers["bf16"].state().items():
        assert not torch.equal(value, value.bfloat16().float()), name


def test_a_training_in_bf16_repeats_its_bits() -> None:
    data = (*banded(60, dtype="f4"), *banded(20, seed=1, dtype="f4"))
    found = []
    for _ in range(2):
        head = lenet(compute="bf16", epochs=2)
        head.fit(*data, seed=3, device="cpu", tick=lambda _: None)
        found.append({name: t.tobytes() for name, t in head.layers().items()})
    assert found[0] == found[1]


def test_a_head_that_is_fitted_alone_does_not_choose_its_arithmetic() -> None:
    with pytest.raises(UsageError, match="expected compute to be fp32 or bf16 for a head that is"):
        trainer_of(lenet(compute="auto"))


def test_the_main_layer_is_a_convolution_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    head, before = lenet(), torch.get_rng_state()
    assert head.main_layer(MAP_SHAPE) == "convolution"
    assert torch.equal(torch.get_rng_state(), before)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(512, 2))
    monkeypatch.setattr(LeNetHead, "build", lambda *_: dense)
    assert head.main_layer(MAP_SHAPE) == "dense"


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_bf16_on_a_gpu_learns_as_on_a_cpu(optimizer: str) -> None:
    found = {}
    for device in ("cpu", "cuda:0"):
        head = lenet(compute="bf16", optimizer=optimizer)
        with torch.no_grad(), random_numbers(0, device):
            trainer = trainer_of(head, device=device)
            batches = [tuple(part.to(device) for part in batch(i)) for i in range(4)]
            found[device] = [float(trainer.learn(*one)[0]) for one in batches]
        assert {p.dtype for p in trainer.state().values()} == {torch.float32}
    assert found["cuda:0"] == pytest.approx(found["cpu"], rel=0.05)
