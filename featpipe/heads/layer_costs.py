"""What the layers of a module cost for one row: multiplications, and numbers that they give."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_ROWS = 2
"""Rows that activations are counted on: batch normalisation refuses to train on one."""


def multiplications(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiplications of convolutions and dense layers for one row of a shape."""
    total = 0

    def count(layer: Any, _: Any, answer: Any) -> None:
        nonlocal total
        if isinstance(answer, torch.Tensor):
            total += answer.numel() * layer.weight[0].numel()

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
        module.train()
    return total


def widest_activation(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Numbers of the widest output of a layer for one row of a shape."""
    widest = 0

    def look(_: Any, __: Any, answer: Any) -> None:
        nonlocal widest
        if isinstance(answer, torch.Tensor):
            widest = max(widest, answer.numel())

    hooks = [layer.register_forward_hook(look) for layer in module.modules()]
    try:
        with torch.no_grad():
            module(torch.zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return widest


def activation_bytes(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
    """Bytes that a row leaves for the backward pass in float32, and those of its widest layer."""
    own = {tensor.untyped_storage()._cdata for tensor in module.state_dict().values()}
    saved: dict[int, torch.Tensor] = {}
    widest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # Kept alive until all are counted: a storage of the same address is the same one.
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = tensor
        return tensor

    def look(_: Any, __: Any, answer: Any) -> None:
        nonlocal widest
        if isinstance(answer, torch.Tensor):
            widest = max(widest, answer.nbytes // _ROWS)

    hooks = [one.register_forward_hook(look) for one in module.modules()]
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            module.train()(torch.zeros(_ROWS, *shape, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(t.untyped_storage().nbytes() for t in saved.values()) // _ROWS, widest
