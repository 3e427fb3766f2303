"""Measures how much faster this CPU computes a convolution in bf16 than in float32."""

from __future__ import annotations

import time

import torch
from torch import nn

from featpipe.backbones.winograd import WinogradConv

_CHANNELS, _SIDE = 256, 28
"""Shape of a convolution from the middle of VGG16, which takes a few milliseconds."""
_ROUNDS = 7


@torch.inference_mode()
def bf16_speedup() -> float:
    """Time of one convolution in float32, computed as the network does it, over its time in bf16.

    Both are timed alternately, and the shortest time of each counts, because other programs on the
    machine can only make a measurement longer.
    """
    shortest: dict[torch.dtype, float] = {}
    image = torch.ones(1, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
    variants = {
        torch.float32: (WinogradConv(convolution, relu=True), image),
        torch.bfloat16: (
            convolution.bfloat16().to(memory_format=torch.channels_last),
            image.bfloat16(),
        ),
    }
    for number in range(1 + _ROUNDS):
        for dtype, (layer, layer_input) in variants.items():
            started = time.perf_counter()
            layer(layer_input)
            elapsed = time.perf_counter() - started
            if number:  # the first call also prepares the kernels, so it does not count
                shortest[dtype] = min(elapsed, shortest.get(dtype, elapsed))
    return shortest[torch.float32] / shortest[torch.bfloat16]
