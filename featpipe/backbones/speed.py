"""How fast this processor convolves in bf16, found by trying."""

from __future__ import annotations

import time

import torch
from torch import nn

from featpipe.backbones.winograd import WinogradConvReLU

_CHANNELS, _SIDE = 256, 28
"""A convolution from the middle of VGG16, a few milliseconds of work."""
_ROUNDS = 7


@torch.inference_mode()
def bf16_speedup() -> float:
    """Time of one convolution in float32, as the network does it, over its time in bf16.

    Both take turns and the shortest time of each counts, so that a busy neighbour, who can
    only make a round slower, weighs little.
    """
    shortest: dict[torch.dtype, float] = {}
    image = torch.ones(1, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
    work = {
        torch.float32: (WinogradConvReLU(convolution), image),
        torch.bfloat16: (
            convolution.bfloat16().to(memory_format=torch.channels_last),
            image.bfloat16(),
        ),
    }
    for number in range(1 + _ROUNDS):
        for dtype, (layer, given) in work.items():
            started = time.perf_counter()
            layer(given)
            taken = time.perf_counter() - started
            if number:  # the first call of each also compiles it
                shortest[dtype] = min(taken, shortest.get(dtype, taken))
    return shortest[torch.float32] / shortest[torch.bfloat16]
