"""Measures how much faster this CPU computes in bf16 than in float32: a backbone's convolution,
and training steps of single layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from featpipe.backbones.winograd import WinogradConv

_CHANNELS, _SIDE = 256, 28
"""Shape of a convolution from the middle of VGG16, which takes a few milliseconds."""
_BATCH, _MAP_SIDE, _WIDTH = 32, 14, 4096
"""Shapes of training steps: of a convolution on maps, and of a matrix."""
_ROUNDS = 7


@torch.inference_mode()
def bf16_speedup() -> float:
    """Time of one convolution in float32, as the network computes it, over its time in bf16."""
    image = torch.ones(1, _CHANNELS, _SIDE, _SIDE).to(memory_format=torch.channels_last)
    convolution = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
    as_computed = WinogradConv(convolution, relu=True)
    in_bf16 = convolution.bfloat16().to(memory_format=torch.channels_last)
    image_in_bf16 = image.bfloat16()
    return _speedup(lambda: as_computed(image), lambda: in_bf16(image_in_bf16))


def training_speedup(layer: str) -> float:
    """Time of a training step of one layer in float32 over its time in bf16, with fp32 weights.

    Parameters
    ----------
    layer : {"convolution", "dense"}
    """
    if layer == "dense":
        module: nn.Module = nn.Linear(_WIDTH, _WIDTH)
        rows = torch.ones(_BATCH, _WIDTH)
    else:
        module = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        rows = torch.ones(_BATCH, _CHANNELS, _MAP_SIDE, _MAP_SIDE)
    rows.requires_grad_()  # as those that the layer before it gives

    def step(*, in_bf16: bool) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=in_bf16):
            answer = module(rows)
        torch.autograd.backward(answer.float().sum())
        rows.grad = None
        module.zero_grad(set_to_none=True)

    return _speedup(lambda: step(in_bf16=False), lambda: step(in_bf16=True))


def _speedup(in_fp32: Callable[[], object], in_bf16: Callable[[], object]) -> float:
    """Time of the first over that of the second.

    Both are timed alternately, and the shortest time of each counts, because other programs on the
    machine can only make a measurement longer.
    """
    shortest = [float("inf")] * 2
    for number in range(1 + _ROUNDS):
        for place, compute in enumerate((in_fp32, in_bf16)):
            started = time.perf_counter()
            compute()
            elapsed = time.perf_counter() - started
            if number:  # the first call also prepares the kernels, so it does not count
                shortest[place] = min(elapsed, shortest[place])
    return shortest[0] / shortest[1]
