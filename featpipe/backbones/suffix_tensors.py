"""What the tensors of a suffix are before it is trained, where no weights give them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from featpipe.backbones.base import COUNTER, Backbone
from featpipe.backbones.suffix import SuffixModule


def draw(module: SuffixModule, backbone: Backbone, *, given: Collection[str]) -> None:
    """Give all tensors memory, and numbers from torch's random numbers but to those ``given``.

    Hidden layers are drawn as by He et al. (2015), so that values keep their scale through ReLUs;
    the last layer and norms as PyTorch does; parameters of other kinds as the backbone's
    ``random:SEED``.
    """
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        own = dict(part.named_parameters(recurse=False)) | dict(part.named_buffers(recurse=False))
        if any(tensor.is_meta for tensor in own.values()):
            part.to_empty(device="cpu", recurse=False)
        names = [prefix + name for name in own if prefix + name not in given]
        if not names:
            continue
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and path != module.last_layer:
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
        else:
            _draw_as_backbone(module, backbone, names)


def _draw_as_backbone(module: SuffixModule, backbone: Backbone, names: list[str]) -> None:
    seed = int(torch.randint(2**31 - 1, ()))
    state = module.state_dict()
    counters = [name for name in names if name.endswith(COUNTER)]
    tensors = backbone.random_tensors(seed, [name for name in names if name not in counters])
    for name in counters:
        state[name].zero_()
    for name, tensor in tensors.items():
        state[name].copy_(torch.from_numpy(tensor))


def set_dropout(module: nn.Module, rate: float) -> int:
    """Set the rate of every dropout layer; returns how many there are."""
    layers = [m for m in module.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    for layer in layers:
        layer.p = rate
    return len(layers)
