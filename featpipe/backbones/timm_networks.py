"""Every network of timm (PyTorch Image Models), with its published weights: the extra ``timm``."""

from __future__ import annotations

import difflib
import functools
import math
from typing import TYPE_CHECKING, Any

from featpipe.backbones.base import NetworkInput, PublishedWeights, Tensors
from featpipe.backbones.module_backbone import ModuleBackbone
from featpipe.base.choices import INTERPOLATIONS
from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from torch import nn
    from torchvision.models.feature_extraction import NodePathTracer

PREFIX = "timm/"


@functools.cache
def names() -> tuple[str, ...]:
    """Names of the networks, with ``timm/`` before them; none where timm is not installed."""
    try:
        import timm
    except ImportError:
        return ()
    return tuple(f"{PREFIX}{name}" for name in timm.list_models())


def timm_network(name: str) -> ModuleBackbone:
    """The backbone of one of :func:`names`.

    Raises
    ------
    UsageError
        timm is not installed, has no such network, or it takes pictures that are no squares.
    """
    timm = _timm(name)
    model, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(model):
        nearest = difflib.get_close_matches(name, names(), 1, 0.0)[0]
        raise UsageError(f"expected a network of timm, found {name!r}; did you mean '{nearest}'?")
    if tag:
        raise UsageError(
            f"expected the name of a network alone, found {name!r}; say --backbone {PREFIX}{model} "
            f"--weights {model}.{tag}"
        )
    tags = _tags(model)
    aliases = {full.removeprefix(f"{model}."): full for full in tags}
    return ModuleBackbone(
        name,
        functools.partial(make, model),
        published=functools.partial(published, model),
        aliases={**aliases, **({"DEFAULT": tags[0]} if tags else {})},
        tracer=_tracer,
    )


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"expected timm for --backbone {name}, found {error}; install it: "
            "pip install 'featpipe[timm]'"
        ) from error
    return timm


def make(model: str) -> nn.Module:
    """The network with weights that stand for nothing."""
    import timm

    return timm.create_model(model, pretrained=False)


def _tracer() -> NodePathTracer:
    """A tracer that leaves alone what timm says cannot be traced."""
    from timm.layers import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import NodePathTracer

    return NodePathTracer(
        leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions()
    )


@functools.cache
def _tags(model: str) -> tuple[str, ...]:
    """Full names of the published weights (``resnet50.a1_in1k``), the default first."""
    import timm

    default = timm.get_pretrained_cfg(model)
    found = timm.list_pretrained(f"{model}.*")
    first = f"{model}.{default.tag}" if default is not None else ""
    return tuple(sorted(found, key=lambda full: full != first))


def published(model: str) -> dict[str, PublishedWeights]:
    """Published weights with the input they were trained on, the default first."""
    return {
        full: PublishedWeights(
            _input(full),
            library="Hugging Face's cache and hub",
            fetch=functools.partial(_fetch, full),
        )
        for full in _tags(model)
    }


def _input(full: str) -> NetworkInput:
    """timm's data config of weights, as far as featpipe can follow it.

    Pictures that timm would squash before a crop, or scale to the longer side and give a border,
    are cropped as all others; ``--resize squash`` shows the network the whole picture.
    """
    import timm
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(full).to_dict())
    channels, height, width = config["input_size"]
    if channels != 3 or height != width or config["interpolation"] not in INTERPOLATIONS:
        raise UsageError(
            f"expected weights for square colour pictures, bilinear or bicubic, found {full} of "
            f"timm for {channels} x {height} x {width}, {config['interpolation']}; choose another "
            "network"
        )
    return NetworkInput(
        tuple(config["mean"]),
        tuple(config["std"]),
        size=height,
        resize_to=math.floor(height / config["crop_pct"]),  # as timm rounds it
        interpolation=config["interpolation"],
    )


def _fetch(full: str) -> Tensors:
    """The tensors of weights, from Hugging Face's local cache or its hub."""
    import timm

    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in timm.create_model(full, pretrained=True).state_dict().items()
    }
