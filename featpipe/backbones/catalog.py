"""The supported backbones, their taps, and the shape of each tap's output.

VGG as in Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (2014); nodes are numbered as in torchvision's ``features``.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property

from featpipe.base.errors import UsageError


@dataclass(frozen=True)
class Tap:
    """A named layer of a backbone whose output can be extracted.

    Attributes
    ----------
    name : str
        Keras-style block name. A convolution's tap gives the output of its ReLU, as in Keras.
    node : str
        torchvision's name of the same layer.
    last_layer : int
        Index of the layer in torchvision's ``features``.
    channels : int
        Channels of the output.
    stride : int
        Input pixels per output pixel.
    convolutions : int
        Number of convolutions up to and including the tap.
    """

    name: str
    node: str
    last_layer: int
    channels: int
    stride: int
    convolutions: int


@dataclass(frozen=True)
class Backbone:
    """A VGG conv base: convolutions per block, each followed by a 2 x 2 max pooling.

    Attributes
    ----------
    name : str
    blocks : tuple of int
        Convolutions (3 x 3, padding 1, ReLU) in each block.
    widths : tuple of int
        Channels of each block.
    """

    name: str
    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)

    @cached_property
    def taps(self) -> dict[str, Tap]:
        """Every tap by name, in network order."""
        taps, layer, convolutions = [], -1, 0
        for block, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            stride = 2 ** (block - 1)
            for conv in range(1, count + 1):
                layer, convolutions = layer + 2, convolutions + 1
                name = f"block{block}_conv{conv}"
                taps.append(Tap(name, f"features.{layer}", layer, width, stride, convolutions))
            layer += 1
            name = f"block{block}_pool"
            taps.append(Tap(name, f"features.{layer}", layer, width, stride * 2, convolutions))
        return {tap.name: tap for tap in taps}

    @cached_property
    def conv_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights, ``features.N.weight`` and ``.bias``, in network order."""
        shapes: dict[str, tuple[int, ...]] = {}
        layer, in_channels = 0, 3
        for count, width in zip(self.blocks, self.widths, strict=True):
            for _ in range(count):
                shapes[f"features.{layer}.weight"] = (width, in_channels, 3, 3)
                shapes[f"features.{layer}.bias"] = (width,)
                layer, in_channels = layer + 2, width
            layer += 1
        return shapes

    def tap(self, name: str) -> Tap:
        """The tap of that Keras-style or torchvision name.

        Raises
        ------
        UsageError
            There is no such tap; the message suggests the most similar name.
        """
        for tap in self.taps.values():
            if name in (tap.name, tap.node):
                return tap
        nearest = difflib.get_close_matches(name, self.taps, 1, 0.0)[0]
        raise UsageError(
            f"expected a tap of {self.name}, found {name!r}; did you mean '{nearest}'? "
            f"'featpipe backbones {self.name}' lists them"
        )

    def output_shape(self, tap: str, pooling: str, size: int) -> tuple[int, ...]:
        """Shape of one image's features: (C, H, W), or (C,) if pooled.

        Parameters
        ----------
        tap : str
            Keras-style or torchvision name.
        pooling : {"none", "avg", "max"}
        size : int
            Side of the input image, pixels.

        Raises
        ------
        UsageError
            The image is too small: the tap's output would be empty.
        """
        named_tap = self.tap(tap)
        side = size // named_tap.stride
        if side < 1:
            raise UsageError(
                f"expected --size of at least {named_tap.stride} for {tap}, found {size}"
            )
        return (named_tap.channels, side, side) if pooling == "none" else (named_tap.channels,)


BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("vgg11", (1, 1, 2, 2, 2)),
        Backbone("vgg13", (2, 2, 2, 2, 2)),
        Backbone("vgg16", (2, 2, 3, 3, 3)),
        Backbone("vgg19", (2, 2, 4, 4, 4)),
    )
}


def get_backbone(name: str) -> Backbone:
    """The backbone of that name.

    Raises
    ------
    UsageError
        There is no such backbone.
    """
    if name not in BACKBONES:
        raise UsageError(f"expected a backbone of {', '.join(BACKBONES)}, found {name!r}")
    return BACKBONES[name]
