"""``lenet`` and ``lenet3x3``: after LeCun et al., "Gradient-based learning applied to document
recognition" (1998), with ReLU and max pooling, as they are built today.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from featpipe.heads.module_head import ModuleHead, Shape, pooled_side
from featpipe.specs.head_params import LeNet3x3Params, LeNetParams

if TYPE_CHECKING:
    from torch import nn


class LeNetHead(LeNetParams, ModuleHead):
    """Two 5 x 5 convolutions of 6 and 16 channels, each with pooling; dense layers of 120, 84."""

    kind = "lenet"
    smallest_side = 16
    kernels: tuple[int, ...] = (5,)
    """Sides of the convolutions before each pooling."""

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """See :meth:`ModuleHead.build`."""
        from torch import nn

        layers: dict[str, nn.Module] = {}
        channels, height, width = shape
        for number, wide in enumerate((6, 16), 1):
            for place, side in enumerate(self.kernels):
                name = f"{number}" if len(self.kernels) == 1 else f"{number}{'ab'[place]}"
                layers[f"conv{name}"] = nn.Conv2d(channels, wide, side)
                layers[f"relu{name}"] = nn.ReLU()
                channels = wide
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            # A convolution of 5 x 5, like two of 3 x 3, takes 2 pixels from each edge.
            height, width = pooled_side(height, 4), pooled_side(width, 4)
        layers["flatten"] = nn.Flatten()
        inputs = channels * height * width
        for number, outputs in enumerate((120, 84), 1):
            layers[f"dense{number}"] = nn.Linear(inputs, outputs)
            layers[f"dense_relu{number}"] = nn.ReLU()
            inputs = outputs
        layers["output"] = nn.Linear(inputs, classes)
        return nn.Sequential(OrderedDict(layers))


class LeNet3x3Head(LeNet3x3Params, LeNetHead):
    """``lenet`` with each 5 x 5 convolution as two of 3 x 3, each with its ReLU."""

    kind = "lenet3x3"
    kernels = (3, 3)
