"""``mnist-cnn``: the network of PyTorch's first MNIST example."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar

from featpipe.heads.module_head import ModuleHead, Shape, pooled_side
from featpipe.specs.head_params import MNISTCNNParams

if TYPE_CHECKING:
    from torch import nn


class MNISTCNNHead(MNISTCNNParams, ModuleHead):
    """10 and 20 channels of 5 x 5, each with pooling; dropout; a dense layer of 50; dropout."""

    kind = "mnist-cnn"
    smallest_side = 16
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        **ModuleHead.sweep_grid,
        "dropout": (0.1, 0.25, 0.5),
    }

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """See :meth:`ModuleHead.build`."""
        from torch import nn

        channels, height, width = shape
        for _ in range(2):
            height, width = pooled_side(height, 4), pooled_side(width, 4)
        layers: dict[str, nn.Module] = {
            "conv1": nn.Conv2d(channels, 10, 5),
            "pool1": nn.MaxPool2d(2),
            "relu1": nn.ReLU(),
            "conv2": nn.Conv2d(10, 20, 5),
            # Whole channels: neighbouring pixels say nearly the same.
            "dropout1": nn.Dropout2d(self.dropout),
            "pool2": nn.MaxPool2d(2),
            "relu2": nn.ReLU(),
            "flatten": nn.Flatten(),
            "dense": nn.Linear(20 * height * width, 50),
            "relu3": nn.ReLU(),
            "dropout2": nn.Dropout(self.dropout),
            "output": nn.Linear(50, classes),
        }
        return nn.Sequential(OrderedDict(layers))
