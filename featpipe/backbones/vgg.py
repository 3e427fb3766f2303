"""The VGG family: described without importing torch, because most runs compute nothing anew.

VGG as in Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition" (2014); nodes are numbered as in torchvision's ``features``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import (
    IMAGENET,
    Backbone,
    NetworkInput,
    PublishedWeights,
    Tap,
    Tensors,
)
from featpipe.backbones.module_backbone import ModuleBackbone
from featpipe.backbones.random_weights import normal_weights
from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from torch import fx

    from featpipe.backbones.graph import Traced

V1 = "IMAGENET1K_V1"
FEATURES = "IMAGENET1K_FEATURES"

_UNIT = 1 / 255
CAFFE_RGB = NetworkInput((0.48235, 0.45882, 0.40784), (_UNIT, _UNIT, _UNIT))
"""torchvision's ``IMAGENET1K_FEATURES``: the original weights, channels reordered to RGB."""
CAFFE_BGR = NetworkInput(
    (103.939 / 255, 116.779 / 255, 123.68 / 255), (_UNIT, _UNIT, _UNIT), channels="bgr"
)
"""Keras' VGG: the original weights with the original BGR input."""

_URLS = {
    ("vgg11", V1): "vgg11-8a719046.pth",
    ("vgg13", V1): "vgg13-19584684.pth",
    ("vgg16", V1): "vgg16-397923af.pth",
    ("vgg16", FEATURES): "vgg16_features-amdegroot-88682ab5.pth",
    ("vgg19", V1): "vgg19-dcbb9e9d.pth",
}
_VGG16_V1_DIGESTS = (
    "e8530d28308442660916220dac7bd8adc2650a2863e6f33907691c4a6617f508",
    "651995650cb6936232051eb3ed00823e751d65a8392fcc147b30ef3a229e31b6",
    "bd3df534c8fc5fe25a5847df81ecf5e6b301a80eccec5acb92024af00c77a08a",
    "4f0169a4ef9424df1ea8f0f367781e05a9f9b2031fd3151742349168c44e14ff",
    "446e88dd96d5e10e092f7f5db60d7d21fbb2769c3270396b75d649ebb180a2be",
    "f82da710038d1b1309073abc41e2057eba5846fd19ed1494c54d592948548910",
    "bfcf0a6d4abd704aba83585d5bd210fa478cf8df1719c81bcc8cd3396a2f3925",
    "8fb985715a0be8d2f47929a700c1f4b0056ffa659b4f1d401994acd571b44628",
    "0a76f8c50691136e8d825f30d62cb1eacad0c959a4b58c80b228604e332a4cb9",
    "ef62c035423f358200c9a71b7166cd019a9c13a4c6b4f92d212c68b471a306f3",
    "e056074373f43a2ac17d2aece28404af4d52f0eb346afe41c00293844e145a68",
    "a349761712ab16b41eb9a33aaf9219716b592593fb2de4a483b3c7172213bc81",
    "59f3df9a05b36959a8835d84c5342da0f144e6f8bf604837c3c403bfedefd5e9",
)
"""Digests of the first 1, 2, … 13 convolutions of vgg16's ``IMAGENET1K_V1``; tensors of every
provider must match them."""

_POOLED_SIDE = 7
"""Side of the map that goes into the classifier, whatever the picture's."""
_DENSE = (4096, 4096, 1000)
"""Outputs of the classifier's layers."""


@dataclass(frozen=True)
class VggTap(Tap):
    """A tap of VGG.

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

    last_layer: int
    channels: int
    stride: int
    convolutions: int


@dataclass(frozen=True)
class Vgg(Backbone):
    """A VGG: blocks of convolutions, each followed by a 2 x 2 max pooling, then a classifier.

    The conv base is described here, from its blocks; of what lies behind it, and of convolutions
    before their ReLU, torchvision's own graph tells.

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

    # Measured: from two pictures on, they do not; Network pads a single small one.
    bits_depend_on_batch = False

    @cached_property
    def conv_taps(self) -> dict[str, VggTap]:
        """The taps of the conv base by name, in network order."""
        taps, layer, convolutions = [], -1, 0
        for block, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            stride = 2 ** (block - 1)
            for conv in range(1, count + 1):
                layer, convolutions = layer + 2, convolutions + 1
                name = f"block{block}_conv{conv}"
                taps.append(VggTap(name, f"features.{layer}", layer, width, stride, convolutions))
            layer += 1
            name = f"block{block}_pool"
            taps.append(VggTap(name, f"features.{layer}", layer, width, stride * 2, convolutions))
        return {tap.name: tap for tap in taps}

    @cached_property
    def _conv_names(self) -> dict[str, str]:
        """Accepted spellings of the conv base's taps → their names."""
        names = {tap.node: tap.name for tap in self.conv_taps.values()}
        return names | {name: name for name in self.conv_taps}

    @cached_property
    def whole(self) -> ModuleBackbone:
        """torchvision's network of this name, with all its taps."""
        from featpipe.backbones.torchvision_networks import make

        return ModuleBackbone(
            self.name, functools.partial(make, self.name), published=lambda: self.published
        )

    @cached_property
    def taps(self) -> Mapping[str, Tap]:  # type: ignore[override]
        """See :attr:`Backbone.taps`; needs torch."""
        own = {tap.node: tap for tap in self.conv_taps.values()}
        taps = (own.get(tap.node, tap) for tap in self.whole.taps.values())
        return {tap.name: tap for tap in taps}

    @property
    def tap_names(self) -> Mapping[str, str]:
        """See :attr:`Backbone.tap_names`; needs torch."""
        node_of = {tap.name: tap.node for tap in self.whole.taps.values()}
        spellings = self.whole.tap_names.items()
        names = {path: self._conv_names.get(node_of[name], name) for path, name in spellings}
        return names | self._conv_names

    def tap(self, name: str) -> Tap:
        """See :meth:`Backbone.tap`; needs torch for what is no tap of the conv base."""
        if name in self._conv_names:
            return self.conv_taps[self._conv_names[name]]
        return super().tap(name)

    def _conv_tap(self, name: str) -> VggTap | None:
        tap = self.tap(name)
        return tap if isinstance(tap, VggTap) else None

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:  # type: ignore[override]
        """Shapes of all weights and biases, ``features.N.weight`` first, in network order."""
        shapes: dict[str, tuple[int, ...]] = {}
        layer, in_channels = 0, 3
        for count, width in zip(self.blocks, self.widths, strict=True):
            for _ in range(count):
                shapes[f"features.{layer}.weight"] = (width, in_channels, 3, 3)
                shapes[f"features.{layer}.bias"] = (width,)
                layer, in_channels = layer + 2, width
            layer += 1
        flat = in_channels * _POOLED_SIDE**2
        for layer, (inputs, outputs) in zip(
            (0, 3, 6), zip((flat, *_DENSE), _DENSE, strict=False), strict=True
        ):
            shapes[f"classifier.{layer}.weight"] = (outputs, inputs)
            shapes[f"classifier.{layer}.bias"] = (outputs,)
        return shapes

    def parameters(self, tap: str) -> tuple[str, ...]:
        """See :meth:`Backbone.parameters`."""
        found = self._conv_tap(tap)
        if found is None:
            return self.whole.parameters(tap)
        return tuple(self.tensor_shapes)[: 2 * found.convolutions]

    def output_shape(
        self, tap: str, pooling: str, size: int, channels: str = "rgb"
    ) -> tuple[int, ...]:
        """See :meth:`Backbone.output_shape`: (C, H, W), or (C,) if pooled."""
        found = self._conv_tap(tap)
        if found is None:
            return self.whole.output_shape(tap, pooling, size)
        side = size // found.stride
        if side < 1:
            raise UsageError(f"expected --size of at least {found.stride} for {tap}, found {size}")
        if pooling == "cls":
            raise UsageError(
                f"expected --pool none, avg or max for {tap} of {self.name}, found 'cls': its "
                "output is a map, and has no class token"
            )
        return (found.channels, side, side) if pooling == "none" else (found.channels,)

    def pooled_axes(self, tap: str, size: int) -> tuple[int, ...]:
        """See :meth:`Backbone.pooled_axes`."""
        return self.whole.pooled_axes(tap, size) if self._conv_tap(tap) is None else (2, 3)

    def spellings(self, name: str) -> tuple[str, ...]:
        """Names with and without ``features.``, and Keras' (``block1_conv1.weight``)."""
        room, layer, part = name.split(".")
        if room != "features":
            return (name,)
        # A convolution's tap is the ReLU that follows it as the next layer.
        keras = next(t.name for t in self.conv_taps.values() if t.last_layer - 1 == int(layer))
        return (name, f"{layer}.{part}", f"{keras}.{part}")

    @property
    def published(self) -> dict[str, PublishedWeights]:
        """See :attr:`Backbone.published`."""
        found = {}
        for (owner, name), file_name in _URLS.items():
            if owner == self.name:
                known = _VGG16_V1_DIGESTS if (owner, name) == ("vgg16", V1) else ()
                found[name] = PublishedWeights(
                    CAFFE_RGB if name == FEATURES else IMAGENET,
                    f"https://download.pytorch.org/models/{file_name}",
                    {t.name: known[t.convolutions - 1] for t in self.conv_taps.values() if known},
                )
        return found

    def weights_called(self, name: str) -> str:
        """See :meth:`Backbone.weights_called`."""
        return V1 if name == "DEFAULT" else name

    def input_of(self, weights: str, layout: str = "") -> NetworkInput:
        """See :meth:`Backbone.input_of`."""
        if layout == "keras" and weights not in self.published:
            return CAFFE_BGR
        return super().input_of(weights, layout)

    def random_tensors(self, seed: int, names: Sequence[str]) -> dict[str, NDArray]:
        """He-normal weights (He et al. 2015) and zero biases, reproducible from the seed."""
        tensors: dict[str, NDArray] = {}
        for number, name in enumerate(self.tensor_shapes):
            if name not in names:
                continue
            shape = self.tensor_shapes[name]
            if name.endswith(".bias"):
                tensors[name] = np.zeros(shape, np.float32)
            else:
                tensors[name] = normal_weights(seed, number, shape, variance=2)
        return tensors

    def policy(self, precision: str) -> str:
        """Empty: the first edition had this policy alone, and ids are for ever.

        The first convolution stays in fp32: rounding its inputs and weights to bf16 would cost
        more accuracy than all other layers together, and it is under 1 % of the work.
        """
        return ""

    @property
    def graph(self) -> Traced | None:
        """See :attr:`Backbone.graph`."""
        return self.whole.graph

    def build(self, tensors: Tensors, taps: Sequence[str], size: int) -> fx.GraphModule:
        """See :meth:`Backbone.build`."""
        nodes = [self.tap(tap).node for tap in taps]
        if any(self._conv_tap(tap) is None for tap in taps):
            return self.whole.build(tensors, nodes, size)
        # Neither from torchvision's network nor by a run without data: both import parts of torch
        # that take as long to load as torch itself, also where one picture is to be predicted.
        import torch
        from torch import fx, nn

        from featpipe.backbones.graph import Traced, pruned, set_state

        layers: list[nn.Module] = []
        with torch.device("meta"):
            for count in self.blocks:
                for _ in range(count):
                    kernel = self.tensor_shapes[f"features.{len(layers)}.weight"]  # O I 3 3
                    layers += [nn.Conv2d(kernel[1], kernel[0], 3, padding=1), nn.ReLU()]
                layers.append(nn.MaxPool2d(2))
        network = nn.Sequential(*layers).eval()
        graph = fx.Tracer().trace(network)
        named = {f"features.{node.target}": node for node in graph.nodes}
        module = pruned(Traced(network, graph, named), nodes)
        channels, side = 3, size
        for node in module.graph.nodes:
            layer = layers[int(node.target)] if node.op == "call_module" else None
            if isinstance(layer, nn.Conv2d):
                channels = layer.out_channels
            elif isinstance(layer, nn.MaxPool2d):
                side //= 2
            node.meta["shape"] = (1, channels, side, side)
        set_state(module, {name.removeprefix("features."): t for name, t in tensors.items()})
        return module


FAMILY: Mapping[str, Vgg] = {
    backbone.name: backbone
    for backbone in (
        Vgg("vgg11", (1, 1, 2, 2, 2)),
        Vgg("vgg13", (2, 2, 2, 2, 2)),
        Vgg("vgg16", (2, 2, 3, 3, 3)),
        Vgg("vgg19", (2, 2, 4, 4, 4)),
    )
}
