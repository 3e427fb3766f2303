"""What a pass over pictures computes: feature spaces, the weights that define them, a device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featpipe.backbones.base import Backbone, NetworkInput
from featpipe.backbones.catalog import get_backbone
from featpipe.base.choices import ALL_CHANNELS, DECODERS, INTERPOLATIONS, RESIZES
from featpipe.base.errors import SpaceMismatchError
from featpipe.base.hardware import resolve_device
from featpipe.base.own_code import is_own_code
from featpipe.base.preprocessing import usual_short_side
from featpipe.base.space import Augmentation, FeatureSpace, Preprocessing
from featpipe.decoding.augmentation import is_known
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

    def of_views(self, augmentation: Augmentation, views: Sequence[int]) -> FeaturePlan:
        """The plan that fills views of these spaces, view by view."""
        spaces = [
            replace(space, view=view, augmentation=augmentation)
            for view in views
            for space in self.spaces
        ]
        return replace(self, spaces=spaces)


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
        The device is not here, the weights are none, or the tap does not suit the size.
    """
    backbone = get_backbone(options.backbone)
    device = _device_for(backbone, options.device)
    weights = open_weights(options.weights, backbone, cache)
    preprocessing = _preprocessing(options, weights.input)
    shapes = {
        (backbone.tap(tap).name, pool): backbone.output_shape(
            tap, pool, preprocessing.size, options.channels
        )
        for tap in options.taps
        for pool in options.pool
    }
    digests = {tap: weights.digest(tap) for tap in dict.fromkeys(tap for tap, _ in shapes)}
    # Last, because it leaves a file in the cache.
    precision, dtype = "fp32", "uint8"
    if backbone.has_weights:
        precision = choose_precision(options.precision, device, cache, remember=remember)
        dtype = options.dtype
    spaces = [
        FeatureSpace(
            backbone=backbone.name,
            weights=digests[tap],
            tap=tap,
            pooling=pool,
            preprocessing=preprocessing,
            precision=precision,
            dtype=dtype,
            shape=shape,
            policy=backbone.policy(precision),
        )
        for (tap, pool), shape in shapes.items()
    ]
    return FeaturePlan(spaces, weights, device)


def _preprocessing(options: FeatureOptions, trained_on: NetworkInput) -> Preprocessing:
    """The preprocessing that weights expect, at the size that is asked for."""
    size = options.size or trained_on.size
    resize_to = None
    if options.resize == "crop" and trained_on.resize_to is not None:
        resize_to = _scaled(trained_on.resize_to, trained_on.size, size)
    return Preprocessing(
        size=size,
        resize=options.resize,
        mean=trained_on.mean,
        std=trained_on.std,
        channels="grey" if options.channels == "grey" else trained_on.channels,
        decoder=options.decoder,
        interpolation=trained_on.interpolation,
        resize_to=resize_to,
    )


def _scaled(resize_to: int, size: int, wanted: int) -> int | None:
    """The shorter side before the crop, for another size of the crop.

    None where it is what everybody does, so that ids stay as they were.
    """
    side = round(wanted * resize_to / size)
    return None if side == usual_short_side(wanted) else side


def at_size(space: FeatureSpace, size: int, weights_name: str) -> FeatureSpace:
    """The feature space that pictures of another size have, all else being the same.

    It is the one that ``extract --size`` would fill.

    Raises
    ------
    UsageError
        The network does not take pictures of this size.
    """
    prep, backbone = space.preprocessing, get_backbone(space.backbone)
    if size == prep.size:
        return space
    resize_to = None
    if prep.resize_to is not None:
        resize_to = _scaled(prep.resize_to, prep.size, size)
        usual = backbone.input_of(backbone.weights_called(weights_name))
        side = usual.resize_to
        # From the sides of the weights where they are the same: those of the space are rounded.
        if side is not None and _scaled(side, usual.size, prep.size) == prep.resize_to:
            resize_to = _scaled(side, usual.size, size)
    channels = "grey" if prep.channels == "grey" else "rgb"
    return dataclasses.replace(
        space,
        preprocessing=dataclasses.replace(prep, size=size, resize_to=resize_to),
        shape=backbone.output_shape(space.tap, space.pooling, size, channels),
    )


def plan_for_spaces(
    spaces: Sequence[FeatureSpace], weights_name: str, cache: Path, *, device: str = "auto"
) -> FeaturePlan:
    """A plan that fills exactly the known spaces of one pass, such as a head's.

    Raises
    ------
    SpaceMismatchError
        The weights are not those of a space, or this featpipe cannot make its pixels.
    """
    prep = spaces[0].preprocessing
    for what, known, found in (
        ("a resizing", RESIZES, prep.resize),
        ("a decoder", DECODERS, prep.decoder),
        ("an interpolation", INTERPOLATIONS, prep.interpolation),
        ("channels", ALL_CHANNELS, prep.channels),
    ):
        if found not in known:
            raise SpaceMismatchError(
                f"expected {what} of {', '.join(known)}, found {found!r} in the feature space; "
                "update featpipe, or extract anew and train another head"
            )
    drawn = spaces[0].augmentation
    if drawn is not None and not is_known(drawn):
        raise SpaceMismatchError(
            f"expected an augmentation that this featpipe knows, found version {drawn.version} of "
            f"{drawn.policy!r} in the feature space; update featpipe, or extract anew and train "
            "another head"
        )
    backbone = get_backbone(spaces[0].backbone)
    weights = open_weights(weights_name, backbone, cache)
    advice = "give the right ones with --weights"
    if is_own_code(backbone.name):
        advice = f"they, or the code of {backbone.name}, have changed since; {advice}"
    for space in spaces:
        found = weights.digest(space.tap)
        if found != space.weights:
            raise SpaceMismatchError(
                f"expected weights of digest {space.weights[:12]}… up to {space.tap}, found "
                f"{found[:12]}… in {weights_name}; {advice}"
            )
    return FeaturePlan(list(spaces), weights, _device_for(backbone, device))


def _device_for(backbone: Backbone, device: str) -> str:
    """Where a backbone runs; looking for a GPU imports torch, which pictures alone do not need."""
    return resolve_device(device if backbone.has_weights or device != "auto" else "cpu")
