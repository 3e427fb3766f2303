"""Weights published under a name: their digests and the input scale they were trained with."""

from __future__ import annotations

from dataclasses import dataclass

from featpipe.backbones.catalog import Backbone


@dataclass(frozen=True)
class Normalisation:
    """How inputs were scaled in training: ``(value / 255 - mean) / std`` per channel.

    Attributes
    ----------
    mean, std : tuple of float
        Per channel, in ``channels`` order, for values scaled to 0..1.
    channels : {"rgb", "bgr"}
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str = "rgb"


TORCHVISION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""torchvision's ImageNet statistics."""

_UNIT = 1 / 255
CAFFE_RGB = Normalisation((0.48235, 0.45882, 0.40784), (_UNIT, _UNIT, _UNIT))
"""torchvision's ``IMAGENET1K_FEATURES``: the original weights, channels reordered to RGB."""

CAFFE_BGR = Normalisation(
    (103.939 / 255, 116.779 / 255, 123.68 / 255), (_UNIT, _UNIT, _UNIT), channels="bgr"
)
"""Keras' VGG: the original weights with the original BGR input."""

V1 = "IMAGENET1K_V1"
FEATURES = "IMAGENET1K_FEATURES"

PREFIX_DIGESTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("vgg16", V1): (
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
    ),
}
"""Digests of the first 1, 2, … 13 convolutions; tensors of every provider must match them."""


def known_names(backbone: Backbone) -> tuple[str, ...]:
    """Names under which torchvision publishes weights of this backbone."""
    return (V1, FEATURES) if backbone.name == "vgg16" else (V1,)


def named_normalisation(name: str) -> Normalisation:
    """The normalisation that named weights were trained with."""
    return CAFFE_RGB if name == FEATURES else TORCHVISION
