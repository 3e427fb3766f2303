"""What a pass over pictures computes: feature spaces, the weights that define them, a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featpipe.backbones.catalog import get_backbone
from featpipe.base.choices import DECODERS
from featpipe.base.errors import SpaceMismatchError
from featpipe.base.hardware import resolve_device
from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.engine.precision import choose_precision
from featpipe.specs.extract import FeatureOptions
from featpipe.weights import Weights, open_weights


@dataclass(frozen=True)
class FeaturePlan:
    """Feature spaces one pass can fill, and with what.

    Attributes
    ----------
    spaces : list of FeatureSpace
    weights : Weights
    device : str
    """

    spaces: list[FeatureSpace]
    weights: Weights
    device: str


def plan_features(options: FeatureOptions, cache: Path, *, remember: bool = True) -> FeaturePlan:
    """Turn options into feature spaces: decide what ``auto`` means, and look the weights up.

    Parameters
    ----------
    options : FeatureOptions
    cache : Path
    remember : bool
        Whether what is measured to choose a precision is kept in the cache.

    Raises
    ------
    UsageError
        The device is not here, or the weights are none.
    """
    backbone = get_backbone(options.backbone)
    taps = [backbone.tap(name) for name in options.tap]
    shapes = {
        (tap.name, pool): backbone.output_shape(tap.name, pool, options.size)
        for tap in taps
        for pool in options.pool
    }
    device = resolve_device(options.device)
    weights = open_weights(options.weights, backbone, cache)
    preprocessing = Preprocessing(
        size=options.size,
        resize=options.resize,
        decoder=options.decoder,
        **dataclasses.asdict(weights.normalisation),
    )
    digests = {tap.name: weights.digest(tap.convolutions) for tap in taps}
    # Last, because it leaves a file in the cache.
    precision = choose_precision(options.precision, device, cache, remember=remember)
    spaces = [
        FeatureSpace(
            backbone=backbone.name,
            weights=digests[tap],
            tap=tap,
            pooling=pool,
            preprocessing=preprocessing,
            precision=precision,
            dtype=options.dtype,
            shape=shape,
        )
        for (tap, pool), shape in shapes.items()
    ]
    return FeaturePlan(spaces, weights, device)


def plan_for_spaces(
    spaces: Sequence[FeatureSpace], weights_name: str, cache: Path, *, device: str = "auto"
) -> FeaturePlan:
    """A plan that fills exactly the known spaces of one pass, such as a head's.

    Raises
    ------
    SpaceMismatchError
        The weights are not those of a space, or this featpipe cannot make its pixels.
    """
    decoder = spaces[0].preprocessing.decoder
    if decoder not in DECODERS:
        raise SpaceMismatchError(
            f"expected a decoder of {', '.join(DECODERS)}, found {decoder!r} "
            "in the feature space; update featpipe, or extract anew and train another head"
        )
    backbone = get_backbone(spaces[0].backbone)
    weights = open_weights(weights_name, backbone, cache)
    for space in spaces:
        found = weights.digest(backbone.tap(space.tap).convolutions)
        if found != space.weights:
            raise SpaceMismatchError(
                f"expected weights of digest {space.weights[:12]}… up to {space.tap}, found "
                f"{found[:12]}… in {weights_name}; give the right ones with --weights"
            )
    return FeaturePlan(list(spaces), weights, resolve_device(device))
