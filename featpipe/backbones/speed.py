"""How fast this processor convolves in bf16, found by trying."""

from __future__ import annotations

import time

import torch

_CHANNELS, _SIDE = 256, 28
"""A convolution from the middle of VGG16, a few milliseconds of work."""
_ROUNDS = 7


@torch.inference_mode()
def bf16_speedup() -> float:
    """Time of one convolution in float32 over its time in bf16, on the CPU.

    Both take turns and the shortest time of each counts, so that a busy neighbour, who can
    only make a round slower, weighs little.
    """
    shortest: dict[torch.dtype, float] = {}
    work = {
        dtype: (
            torch.ones(1, _CHANNELS, _SIDE, _SIDE, dtype=dtype),
            torch.ones(_CHANNELS, _CHANNELS, 3, 3, dtype=dtype),
        )
        for dtype in (torch.float32, torch.bfloat16)
    }
    for number in range(1 + _ROUNDS):
        for dtype, (image, kernel) in work.items():
            image = image.contiguous(memory_format=torch.channels_last)
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            started = time.perf_counter()
            torch.nn.functional.conv2d(image, kernel, padding=1)
            taken = time.perf_counter() - started
            if number:  # the first call of each also compiles it
                shortest[dtype] = min(taken, shortest.get(dtype, taken))
    return shortest[torch.float32] / shortest[torch.bfloat16]
