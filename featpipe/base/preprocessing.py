"""The constants of preprocessing, and their record in a head file, so that others can repeat it.

``docs/file-format.md`` says how to read the record. Change a constant and
:attr:`featpipe.base.space.Preprocessing.version` must change too.
"""

from __future__ import annotations

from typing import TypedDict

from featpipe.base.space import Preprocessing

WHITE = 255
"""Largest 8-bit value: what transparent pixels become, and what the network's input divides by."""
WHITE_16 = 65535
"""Largest 16-bit value."""
MAX_ASPECT = 8
"""``crop`` first cuts the ends off pictures that are longer than this times their shorter side."""
CROP_MARGIN = (256, 224)
"""``crop`` makes the shorter side this much larger than the square it then cuts out, unless the
preprocessing says how long."""
WHOLE = "whole"
"""A way of resizing that shows all of a picture: its shorter side becomes the size, the longer one
keeps its proportion. No feature space has it, because rows have one shape: it is for score maps."""
JPEG_SCALES = (2, 4, 8)
"""By what ``pillow-draft`` may divide the sides of a JPEG while decoding it."""


def largest_shape(preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width that hold the pixels of any picture: of the square, or of a strip."""
    size = preprocessing.size
    return (size, MAX_ASPECT * size if preprocessing.resize == WHOLE else size)


class Grey16(TypedDict):
    """16-bit grey values become ``(value * becomes + white // 2) // white``."""

    white: int
    becomes: int


class Rounding(TypedDict):
    """How lengths in pixels become whole."""

    short_side: str
    long_side: str
    crop_offset: str


class PreprocessingDocument(TypedDict):
    """Everything that turns the bytes of a picture into the network's input, in order."""

    version: int
    decoder: str
    jpeg_scales: list[int]
    jpeg_min_side: int | None
    frame: int
    exif_orientation: bool
    colour_profiles: bool
    grey_16: Grey16
    background: list[int]
    resize: str
    max_aspect: int | None
    margin: list[int] | None
    short_side: int | None
    rounding: Rounding
    interpolation: str
    antialias: bool
    size: int
    divide_by: int
    channels: str
    mean: list[float]
    std: list[float]


def usual_short_side(size: int) -> int:
    """Shorter side before the crop to ``size`` where nothing else is said, pixels."""
    wide, narrow = CROP_MARGIN
    return round(size * wide / narrow)


def short_side(preprocessing: Preprocessing) -> int:
    """Shorter side of the resized image before it is cropped, pixels."""
    if preprocessing.resize in ("squash", WHOLE):
        return preprocessing.size
    return preprocessing.resize_to or usual_short_side(preprocessing.size)


def describe(preprocessing: Preprocessing) -> PreprocessingDocument:
    """The record of a preprocessing, ready for JSON."""
    size, resize = preprocessing.size, preprocessing.resize
    crops, drafts = resize == "crop", preprocessing.decoder == "pillow-draft"
    side = short_side(preprocessing)
    has_usual_margin = crops and preprocessing.resize_to is None
    return {
        "version": preprocessing.version,
        "decoder": preprocessing.decoder,
        "jpeg_scales": list(JPEG_SCALES) if drafts else [],
        "jpeg_min_side": side if drafts else None,
        "frame": 0,
        "exif_orientation": True,
        "colour_profiles": False,
        "grey_16": {"white": WHITE_16, "becomes": WHITE},
        "background": [WHITE] * 3,
        "resize": resize,
        "max_aspect": MAX_ASPECT if crops else None,
        "margin": list(CROP_MARGIN) if has_usual_margin else None,
        "short_side": side if crops else None,
        "rounding": {
            "short_side": "nearest",
            "long_side": "down",
            "crop_offset": "nearest, half to even",
        },
        "interpolation": preprocessing.interpolation,
        "antialias": True,
        "size": size,
        "divide_by": WHITE,
        "channels": preprocessing.channels,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
