"""Every classification network of torchvision, with its published weights."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from featpipe.backbones.base import NetworkInput, PublishedWeights
from featpipe.backbones.module_backbone import ModuleBackbone

if TYPE_CHECKING:
    from torch import nn

_SCALES_INPUT = {"init_weights": False, "transform_input": True}
_OPTIONS = {"googlenet": _SCALES_INPUT, "inception_v3": _SCALES_INPUT}
"""Options of single builders: their published weights expect an input that the networks scale
themselves, and weights come later."""


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the networks."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def torchvision_network(name: str) -> ModuleBackbone:
    """The backbone of one of :func:`names`."""
    return ModuleBackbone(
        name,
        functools.partial(make, name),
        published=functools.partial(published, name),
        aliases={"DEFAULT": default_of(name)},
    )


def make(name: str) -> nn.Module:
    """The network with weights that stand for nothing."""
    from torchvision import models

    return models.get_model(name, weights=None, **_OPTIONS.get(name, {}))  # type: ignore[no-any-return]


def default_of(name: str) -> str:
    """Name of the newest published weights."""
    from torchvision import models

    return str(models.get_model_weights(name).DEFAULT.name)  # type: ignore[attr-defined]


def published(name: str) -> dict[str, PublishedWeights]:
    """Published weights with the input they were trained on, the default first."""
    from torchvision import models

    found = models.get_model_weights(name)
    default = found.DEFAULT  # type: ignore[attr-defined]
    rest = [weights for weights in found if weights.name != default.name]
    return {weights.name: _described(weights) for weights in (default, *rest)}


def _described(weights: Any) -> PublishedWeights:
    preset = weights.transforms()
    (size,), (resize_to,) = preset.crop_size, preset.resize_size
    return PublishedWeights(
        NetworkInput(
            tuple(preset.mean),
            tuple(preset.std),
            size=size,
            resize_to=resize_to,
            interpolation=preset.interpolation.value,
        ),
        weights.url,
    )
