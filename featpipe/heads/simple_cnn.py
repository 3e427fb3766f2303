"""``simplecnn``: the small network that tutorials train on photographs from scratch."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from featpipe.heads.module_head import ModuleHead, Shape, pooled_side
from featpipe.specs.head_params import SimpleCNNParams

if TYPE_CHECKING:
    from torch import nn


class SimpleCNNHead(SimpleCNNParams, ModuleHead):
    """32, 64, 128 channels of 3 x 3, each with pooling; dense layers of 512 and 64 with dropout."""

    kind = "simplecnn"
    smallest_side = 8
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ModuleHead.sweep_grid,
        "dropout": (0.2, 0.5),
    }

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """See :meth:`ModuleHead.build`."""
        from torch import nn

        layers: dict[str, nn.Module] = {}
        channels, height, width = shape
        for number, wide in enumerate((32, 64, 128), 1):
            layers[f"conv{number}"] = nn.Conv2d(channels, wide, 3, padding=1)
            layers[f"relu{number}"] = nn.ReLU()
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            channels, height, width = wide, pooled_side(height), pooled_side(width)
        layers["flatten"] = nn.Flatten()
        inputs = channels * height * width
        for number, outputs in enumerate((512, 64), 1):
            layers[f"dropout{number}"] = nn.Dropout(self.dropout)
            layers[f"dense{number}"] = nn.Linear(inputs, outputs)
            layers[f"dense_relu{number}"] = nn.ReLU()
            inputs = outputs
        layers["output"] = nn.Linear(inputs, classes)
        return nn.Sequential(OrderedDict(layers))
