"""Packed weights: the same numbers, dense taps, and used only where they are faster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch
from support.backbones import TOY, random_tensors
from torch import fx, nn

from featpipe.backbones import fast, packed
from featpipe.backbones.graph import pruned, set_state, trace
from featpipe.backbones.policies import Autocast

SIZE = 32


class Residual(nn.Module):
    """Convolutions, a shortcut, an operation that oneDNN's layout does not have, and more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.relu = nn.ReLU()
        self.third = nn.Conv2d(8, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.relu(self.first(images))
        hidden = self.relu(self.second(hidden) + hidden)
        gated: torch.Tensor = self.third(hidden * torch.sigmoid(hidden))
        return gated


def residual(taps: Sequence[str] = ("relu_1", "mul", "third")) -> fx.GraphModule:
    torch.manual_seed(0)
    module = pruned(trace(Residual()), taps)
    set_state(module, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    return module


def toy(taps: Sequence[str]) -> fx.GraphModule:
    return TOY.build(random_tensors(TOY, 0, 6), taps, SIZE)


def images(n: int) -> torch.Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
@pytest.mark.parametrize(
    "make",
    [residual, lambda: toy(["block1_conv1", "block2_pool", "block3_pool"])],
    ids=["shortcut", "chain"],
)
def test_packed_weights_give_the_same_dense_taps(make: Callable[[], fx.GraphModule]) -> None:
    module = make()
    made = packed.pack(module, torch.float32)
    assert not any(isinstance(part, nn.Conv2d) for part in made.modules())
    for found, expected in zip(made(images(3)), module(images(3)), strict=True):
        assert found.layout == torch.strided and found.dtype == torch.float32
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_maps_stay_packed_between_convolutions_and_the_given_network_dense() -> None:
    module = toy(["block3_pool"])
    made = packed.pack(module, torch.float32)
    methods = [node.target for node in made.graph.nodes if node.op == "call_method"]
    assert methods == ["to_mkldnn", "to_dense"]
    assert any(isinstance(part, nn.Conv2d) for part in module.modules())
    assert module(images(2))[0].layout == torch.strided


@torch.inference_mode()
def test_company_changes_nothing_beyond_rounding() -> None:
    made = packed.pack(residual(), torch.float32)
    whole = made(images(5))
    for found, expected in zip(made(images(5)[3:4]), whole, strict=True):
        assert torch.allclose(found, expected[3:4], rtol=1e-5, atol=1e-6)


def test_weights_of_another_type_stay_as_they_are() -> None:
    module = residual()
    module.get_submodule("third").to(torch.float64)
    made = packed.pack(module, torch.float32)
    assert [name for name, part in made.named_modules() if isinstance(part, nn.Conv2d)] == ["third"]


@pytest.mark.parametrize(("seconds", "chosen"), [((2.0, 1.0), "packed"), ((1.0, 2.0), "plain")])
def test_the_faster_form_is_chosen(
    seconds: tuple[float, float], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = toy(["block2_pool"])
    made = packed.pack(plain, torch.float32)
    monkeypatch.setattr(packed, "_seconds", lambda *_: list(seconds))
    found = packed.faster(plain, lambda: made, images(1))
    assert found is {"packed": made, "plain": plain}[chosen]


def test_a_form_that_fails_or_differs_is_left_with_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = toy(["block2_pool"])
    other = toy(["block2_pool"])
    other.get_submodule("0").bias.add_(1)  # type: ignore[union-attr, operator]

    def failing() -> nn.Module:
        raise RuntimeError("oneDNN has no bf16 here")

    with caplog.at_level(logging.WARNING, logger="featpipe"):
        assert packed.faster(plain, failing, images(1)) is plain
        assert packed.faster(plain, lambda: other, images(1)) is plain
    first, second = caplog.messages
    assert first == "packed weights are not used: oneDNN has no bf16 here"
    assert second.startswith("packed weights are not used: expected the network's own numbers")


@pytest.mark.parametrize("policy", ["", "autocast"])
@pytest.mark.parametrize("supported", [True, False])
def test_bf16_on_a_cpu_asks_for_packed_weights_where_the_library_has_them(
    policy: str, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def chosen(
        plain: nn.Module, make_packed: Callable[[], nn.Module], given: torch.Tensor
    ) -> nn.Module:
        asked.append(tuple(given.shape))
        return make_packed()

    monkeypatch.setattr(fast, "packs_bf16", lambda: supported)
    monkeypatch.setattr(packed, "faster", chosen)
    # This processor may have no bf16: what is asked for is recorded, and nothing is packed.
    kept: list[torch.dtype] = []
    monkeypatch.setattr(packed, "pack", lambda module, dtype: kept.append(dtype) or module)
    made = fast.optimised(
        toy(["block2_pool"]), policy=policy, precision="bf16", device=torch.device("cpu")
    )
    assert asked == ([(2, 3, SIZE, SIZE)] if supported else [])
    assert kept == ([torch.bfloat16] if supported else [])
    assert isinstance(made, Autocast) == (policy == "autocast")
