"""Augmented views of pictures: their pixels.

All views of a picture come from one decoding of it. Pillow defines the pixels, as it does for the
picture itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.base.preprocessing import short_side
from featpipe.base.space import Augmentation, Preprocessing
from featpipe.decoding.augmentation import POLICIES, Transform, draw
from featpipe.decoding.pixels import FILTERS, cap_aspect, decode_rgb, fit, scale
from featpipe.decoding.reasons import unreadable
from featpipe.specs.extract import DEFAULT_MAX_PIXELS

_FINER = 2
"""A picture is turned with so many times the pixels in each direction, which are then averaged."""
_GREY = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R 601), as Pillow has them."""


def load_views(
    data: bytes,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    views: Sequence[int],
    image_id: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_view: Callable[[], None] = lambda: None,
) -> NDArray[np.uint8]:
    """Decode a picture once and make views of it.

    Parameters
    ----------
    data : bytes
        The image file's content.
    preprocessing : Preprocessing
    augmentation : Augmentation
    views : sequence of int
        Their numbers, 1 or more.
    image_id : bytes
        SHA-256 of ``data``.
    max_pixels : int
        An image with more pixels is bad.
    on_view : callable
        Called after each view.

    Returns
    -------
    ndarray of uint8, shape (views, size, size, 3)
        RGB, 0..255.

    Raises
    ------
    BadImageError, MemoryError
        See :func:`featpipe.decoding.pixels.load_pixels`.
    """
    smallest = math.ceil(short_side(preprocessing) * POLICIES[augmentation.policy].detail)
    drafted = smallest if preprocessing.decoder == "pillow-draft" else None
    image = decode_rgb(data, max_pixels=max_pixels, smallest=drafted)
    pixels = np.empty((len(views), preprocessing.size, preprocessing.size, 3), np.uint8)
    try:
        picture = Picture(image, preprocessing, smallest)
        for place, view in enumerate(views):
            pixels[place] = picture.transformed(draw(augmentation, view, image_id))
            on_view()
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable("resize", error, data) from error
    return pixels


class Picture:
    """A decoded picture, and what several of its views are made from.

    Parameters
    ----------
    image : Image
        Upright, mode RGB.
    preprocessing : Preprocessing
    smallest : int
        Pixels of the shorter side that suffice for every view.
    """

    def __init__(self, image: Image.Image, preprocessing: Preprocessing, smallest: int) -> None:
        self._image = image
        self._preprocessing, self._smallest = preprocessing, smallest

    def transformed(self, transform: Transform) -> NDArray[np.uint8]:
        """Pixels of a transformed picture: (size, size, 3) uint8, RGB.

        The transform that does nothing gives the pixels of the picture itself.
        """
        if transform.crop is not None:
            image = self._cut_out(transform.crop)
        elif (transform.degrees, transform.zoom) != (0.0, 1.0):
            image = self._turned(transform)
        else:
            image = fit(self._image, self._preprocessing)
        if transform.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(_coloured(image, transform.colours))

    @cached_property
    def _reduced(self) -> Image.Image:
        """The picture with whole blocks of pixels averaged, as far as no view needs them all."""
        image = self._image
        if self._preprocessing.resize == "crop":
            image = cap_aspect(image)
        factor = min(image.size) // self._smallest
        return image.reduce(factor) if factor > 1 else image

    @cached_property
    def _finer(self) -> Image.Image:
        """The picture resized to ``_FINER`` times the pixels that the backbone sees."""
        prep = self._preprocessing
        finer = dataclasses.replace(
            prep, size=_FINER * prep.size, resize_to=_FINER * short_side(prep)
        )
        image = self._image
        return fit(image, finer) if prep.resize == "squash" else scale(image, finer)

    def _cut_out(self, crop: tuple[float, float, float, float]) -> Image.Image:
        """A part of the picture, resized to the square.

        ``squash`` takes the part of the square that the picture becomes, ``crop`` of the picture.
        What is larger than it in one direction is made smaller in both, where torchvision draws
        again.
        """
        share, ratio, across, down = crop
        image, prep = self._reduced, self._preprocessing
        frame = (1.0, 1.0) if prep.resize == "squash" else (*map(float, image.size),)
        area = share * frame[0] * frame[1]
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        shrunk = min(1.0, frame[0] / width, frame[1] / height)
        width = width * shrunk * image.width / frame[0]
        height = height * shrunk * image.height / frame[1]
        # A part as large as the picture may be rounded to a hair more.
        width, height = min(width, image.width), min(height, image.height)
        left, top = across * (image.width - width), down * (image.height - height)
        box = (left, top, min(left + width, image.width), min(top + height, image.height))
        return image.resize((prep.size, prep.size), FILTERS[prep.interpolation], box)

    def _turned(self, transform: Transform) -> Image.Image:
        """The picture turned and enlarged about the centre of what the backbone sees of it.

        Nearest pixels of a finer picture, averaged, are as smooth as bicubic interpolation and six
        times as fast. What lies outside is a reflection: corners without picture would be the same
        in all pictures, and learned.
        """
        image, side = self._finer, _FINER * self._preprocessing.size
        left, top = round((image.width - side) / 2.0), round((image.height - side) / 2.0)
        angle = math.radians(transform.degrees)
        cos, sin = math.cos(angle) / transform.zoom, math.sin(angle) / transform.zoom
        edge = max(math.ceil(side / 2 * (abs(cos) + abs(sin) - 1)) + 1, 0)
        around = _with_reflection(image, left - edge, top - edge, side + 2 * edge)
        centre, middle = side / 2, side / 2 + edge
        # From a place (x, y) of the result to one of the picture: turned back about the centre.
        back = (
            *(cos, -sin, middle - centre * (cos - sin)),
            *(sin, cos, middle - centre * (sin + cos)),
        )
        turned = around.transform(
            (side, side), Image.Transform.AFFINE, back, resample=Image.Resampling.NEAREST
        )
        return turned.reduce(_FINER)


def _with_reflection(image: Image.Image, left: int, top: int, side: int) -> Image.Image:
    """A square of an image, continued by reflection where it reaches beyond."""
    right, bottom = left + side, top + side
    inner = image.crop(
        (max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height))
    )
    rows = max(-top, 0), max(bottom - image.height, 0)
    columns = max(-left, 0), max(right - image.width, 0)
    if not any((*rows, *columns)):
        return inner
    return Image.fromarray(np.pad(np.asarray(inner), (rows, columns, (0, 0)), "symmetric"))


def _coloured(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    """An image with other brightness, contrast (about its mean grey) and saturation.

    All three are linear, so they are one matrix, and values are cut off once.
    """
    if factors == (1.0, 1.0, 1.0):
        return image
    brightness, contrast, saturation = factors
    grey = float(np.asarray(image.convert("L")).mean())
    lift = (1 - contrast) * brightness * grey
    rows = []
    for channel in range(3):
        own = [saturation if channel == other else 0.0 for other in range(3)]
        mixed = [mine + (1 - saturation) * share for mine, share in zip(own, _GREY, strict=True)]
        rows += [*(brightness * contrast * part for part in mixed), lift]
    return image.convert("RGB", tuple(rows))
