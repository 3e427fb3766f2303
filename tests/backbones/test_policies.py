"""Half precision: near float32 for every kind of network, and no weight converted twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from featpipe.backbones import fast
from featpipe.backbones.torchvision_networks import torchvision_network

CPU = torch.device("cpu")


class Calls(TorchDispatchMode):
    """Records what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.cast: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name.startswith(("aten::_to_copy", "aten::to.")):
            self.cast.append(args[0])
        return func(*args, **(kwargs or {}))


def built(name: str, taps: Sequence[str], precision: str, size: int) -> nn.Module:
    backbone = torchvision_network(name)
    tensors = backbone.random_tensors(0, list(backbone.tensor_shapes))
    module = backbone.build(tensors, taps, size)
    return fast.optimised(
        module, policy=backbone.policy(precision), precision=precision, device=CPU
    )


def images(size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "taps", "size"),
    [
        ("resnet18", ("layer2", "layer4"), 64),
        ("efficientnet_b0", ("features.3", "features.8"), 64),
        pytest.param("resnet50", ("layer2", "layer4"), 64, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", ("features.3", "features.7"), 64, marks=pytest.mark.slow),
        pytest.param("vit_b_16", ("encoder.ln",), 224, marks=pytest.mark.slow),
    ],
)
def test_bf16_is_near_float32(name: str, taps: tuple[str, ...], size: int) -> None:
    wide, narrow = (
        built(name, taps, precision, size)(images(size)) for precision in ("fp32", "bf16")
    )
    for tap, reference, found in zip(taps, wide, narrow, strict=True):
        error = (found.float() - reference).norm() / reference.norm()
        assert 1e-4 < error < 2e-2, (tap, float(error))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "tap", "size"),
    [
        ("resnet18", "layer4", 64),
        ("efficientnet_b0", "features.8", 64),
        pytest.param("convnext_tiny", "features.7", 64, marks=pytest.mark.slow),
        pytest.param("vit_b_16", "encoder.ln", 224, marks=pytest.mark.slow),
    ],
)
def test_no_weight_is_converted_in_a_pass(name: str, tap: str, size: int) -> None:
    network = built(name, (tap,), "bf16", size)
    # Packed weights, which a processor with bf16 may have, have no address of their own.
    state = [t for t in network.state_dict().values() if t.numel() and not t.is_mkldnn]
    weights = {tensor.data_ptr() for tensor in state}
    with Calls() as calls:
        network(images(size))
    assert calls.cast, "activations are converted"
    assert not [tuple(t.shape) for t in calls.cast if t.data_ptr() in weights]
