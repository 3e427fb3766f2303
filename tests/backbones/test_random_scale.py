"""Random weights keep the scale: deep taps neither vanish nor overflow, and tell pictures apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn

from featpipe.backbones import random_scale
from featpipe.backbones.torchvision_networks import torchvision_network

SIZE = 96


class Gated(nn.Module):
    """Two shortcuts, one of them beside weights, and two kinds of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.last, self.end = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.stem(images)))
        hidden = hidden + self.norm(self.outer(nn.functional.silu(self.inner(hidden))))
        hidden = self.left(hidden) + self.right(hidden)
        hidden = hidden + self.last(hidden)
        ended: torch.Tensor = self.end(hidden)
        return ended


def test_the_variance_follows_what_is_behind_the_weights() -> None:
    root = Gated().eval()
    assert random_scale.variances(root, fx.Tracer().trace(root)) == {
        "stem": 2.0,
        "inner": 3.0,
        "outer": 1 / 2,
        "last": 1 / 2,
    }


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("efficientnet_b0", "efficientnet_b7", "efficientnet_v2_l", "resnet152")
        ),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("densenet121", "inception_v3", "regnet_y_400mf", "convnext_tiny")
        ),
    ],
)
def test_deep_taps_of_random_networks_are_of_use(name: str) -> None:
    backbone = torchvision_network(name)
    taps = list(backbone.taps)
    deep = [taps[len(taps) // 2], taps[-2], taps[-1]]
    tensors = backbone.random_tensors(0, list(backbone.tensor_shapes))
    module = backbone.build(tensors, deep, SIZE)
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = [output.numpy() for output in module(images)]
    for tap, output in zip(deep, outputs, strict=True):
        scale = np.sqrt(np.square(output).mean())
        # Far from float16's smallest normal number, 6e-5, and from its largest, 65,504.
        assert scale > 2e-4 and np.abs(output).max() < 1e4, tap
        assert np.linalg.norm(output[0] - output[1]) > 1e-2 * np.linalg.norm(output), tap
