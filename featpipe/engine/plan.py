"""What a caller asks of a backbone, resolved to feature spaces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featpipe.backbones.catalog import DEFAULT_BACKBONE, DEFAULT_TAP, get_backbone
from featpipe.base.errors import SpaceMismatchError, UsageError
from featpipe.base.hardware import resolve_device
from featpipe.base.space import (
    DECODERS,
    DTYPES,
    POOLINGS,
    PRECISIONS,
    RESIZES,
    FeatureSpace,
    Preprocessing,
)
from featpipe.engine.precision import choose_precision
from featpipe.weights import DEFAULT_WEIGHTS, Weights, open_weights

MAX_SIZE = 4096


@dataclass(frozen=True)
class FeatureRequest:
    """The options that decide the numbers, with their one set of defaults.

    Attributes
    ----------
    backbone : str
    weights : str
        Name, file or ``random:SEED``.
    taps : sequence of str
        Places in the backbone whose output is kept.
    pools : sequence of {"none", "avg", "max"}
        Every tap is stored with every pooling.
    size : int
        Side of the square input, pixels.
    resize : {"crop", "squash"}
    decoder : {"pillow", "pillow-draft"}
    precision : {"auto", "fp32", "bf16", "fp16"}
    dtype : {"float16", "float32"}
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises
    ------
    UsageError
        A field has a value that cannot be meant.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str = DEFAULT_WEIGHTS
    taps: Sequence[str] = (DEFAULT_TAP,)
    pools: Sequence[str] = ("none",)
    size: int = 224
    resize: str = "crop"
    decoder: str = "pillow"
    precision: str = "auto"
    dtype: str = "float16"
    device: str = "auto"

    def __post_init__(self) -> None:
        _choose("--resize", self.resize, RESIZES)
        _choose("--decoder", self.decoder, DECODERS)
        _choose("--dtype", self.dtype, DTYPES)
        for pool in self.pools:
            _choose("--pool", pool, POOLINGS)
        if not 1 <= self.size <= MAX_SIZE:
            raise UsageError(f"expected --size of 1 to {MAX_SIZE} pixels, found {self.size}")
        if not self.taps or not self.pools:
            raise UsageError(
                f"expected at least one --tap and one --pool, found {len(self.taps)} and "
                f"{len(self.pools)}"
            )
        _choose("precision", self.precision, ("auto", *PRECISIONS))
        backbone = get_backbone(self.backbone)
        for tap in self.taps:
            backbone.output_shape(tap, "none", self.size)

    def resolve(self, cache: Path, *, remember: bool = True) -> FeaturePlan:
        """Fill in what ``auto`` and the weights decide.

        Parameters
        ----------
        cache : Path
        remember : bool
            Whether what is measured for it is kept in the cache.

        Raises
        ------
        UsageError
            The device is not here, or the weights are none.
        """
        backbone = get_backbone(self.backbone)
        taps = [backbone.tap(name) for name in dict.fromkeys(self.taps)]
        shapes = {
            (tap.name, pool): backbone.output_shape(tap.name, pool, self.size)
            for tap in taps
            for pool in dict.fromkeys(self.pools)
        }
        device = resolve_device(self.device)
        weights = open_weights(self.weights, backbone, cache)
        preprocessing = Preprocessing(
            size=self.size,
            resize=self.resize,
            decoder=self.decoder,
            **dataclasses.asdict(weights.normalisation),
        )
        digests = {tap.name: weights.digest(tap.convolutions) for tap in taps}
        # Last, for it leaves something in the cache.
        precision = choose_precision(self.precision, device, cache, remember=remember)
        spaces = [
            FeatureSpace(
                backbone=backbone.name,
                weights=digests[tap],
                tap=tap,
                pooling=pool,
                preprocessing=preprocessing,
                precision=precision,
                dtype=self.dtype,
                shape=shape,
            )
            for (tap, pool), shape in shapes.items()
        ]
        return FeaturePlan(spaces, weights, device)


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


def plan_for_space(
    space: FeatureSpace, weights_spec: str, cache: Path, *, device: str = "auto"
) -> FeaturePlan:
    """A plan that fills exactly one known space, such as a head's.

    Raises
    ------
    SpaceMismatchError
        The weights are not those of the space, or this featpipe cannot make its pixels.
    """
    if space.preprocessing.decoder not in DECODERS:
        raise SpaceMismatchError(
            f"expected a decoder of {', '.join(DECODERS)}, found {space.preprocessing.decoder!r} "
            "in the feature space; update featpipe, or extract anew and train another head"
        )
    backbone = get_backbone(space.backbone)
    weights = open_weights(weights_spec, backbone, cache)
    found = weights.digest(backbone.tap(space.tap).convolutions)
    if found != space.weights:
        raise SpaceMismatchError(
            f"expected weights of digest {space.weights[:12]}… up to {space.tap}, found "
            f"{found[:12]}… in {weights_spec}; give the right ones with --weights"
        )
    return FeaturePlan([space], weights, resolve_device(device))


def _choose(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"expected {option} {', '.join(choices)}, found {value!r}")
