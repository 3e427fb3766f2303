"""Decodes one image's bytes to upright RGB pixels of the backbone's input size.

Pillow defines the pixels. Any exception from a decoder marks this image as bad; the job goes on.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from featpipe.base.errors import BadImageError
from featpipe.base.preprocessing import MAX_ASPECT, WHITE, WHITE_16, WHOLE, short_side
from featpipe.base.space import Preprocessing
from featpipe.decoding.reasons import too_many_pixels, unreadable
from featpipe.decoding.signatures import READ_FORMATS
from featpipe.specs.extract import DEFAULT_MAX_PIXELS

FORMATS = READ_FORMATS
"""The only formats that are opened; none of their decoders starts another program."""
DECODER_EDITION = 2
"""Raised whenever pictures that were refused can be read, or are refused in other words: data sets
then try their quarantined pictures once more. 2: premultiplied grey with alpha, plain words."""


def load_pixels(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode, rotate, convert to RGB, resize and crop.

    Parameters
    ----------
    data : bytes
        The image file's content.
    preprocessing : Preprocessing
        Its ``size``, ``resize`` and ``decoder`` apply; the network normalises.
    max_pixels : int
        An image with more pixels is bad.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        RGB, 0..255. With ``resize="whole"`` one side is longer, up to 8 times.

    Raises
    ------
    BadImageError
        The image is bad; ``stage`` names the step that failed.
    MemoryError
        The image needs more memory than the process may use.
    """
    smallest = None
    if preprocessing.decoder == "pillow-draft":
        smallest = short_side(preprocessing)
    image = decode_rgb(data, max_pixels=max_pixels, smallest=smallest)
    try:
        return np.asarray(fit(image, preprocessing))
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable("resize", error, data) from error


def decode_rgb(
    data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, smallest: int | None = None
) -> Image.Image:
    """First frame as upright 8-bit RGB: transparent parts become white, 16-bit values are scaled.

    Parameters
    ----------
    data : bytes
        The image file's content.
    max_pixels : int
        An image with more pixels is bad.
    smallest : int, optional
        Lets libjpeg scale a JPEG down by 2, 4 or 8 while decoding (scaled inverse DCT), as long
        as both sides keep at least this many pixels.

    Raises
    ------
    BadImageError
        Empty, unknown format, too many pixels, truncated or otherwise damaged.
    """
    if not data:
        raise BadImageError("read", "the file is empty")
    stage = "open"
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise too_many_pixels(data, max_pixels)
            stage = "decode"
            if smallest is not None:
                image.draft(None, (smallest, smallest))
            image.load()
            stage = "convert"
            ImageOps.exif_transpose(image, in_place=True)  # without a copy of the rest
            return _to_rgb(image)
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(data, max_pixels, str(error)) from error
    # A decoder may raise any exception on damaged data: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise unreadable(stage, error, data) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise BadImageError("convert", "32-bit float pixels have no defined white; save as 8 bit")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None
        return converted
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (WHITE, WHITE, WHITE, WHITE))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey (modes I;16, I;16B and I) to 8 bits; Pillow's conversion would clip it."""
    values = np.asarray(image).astype(np.int64)
    # A PNG may declare one grey level transparent; like all transparency it becomes white.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = WHITE_16
    if values.size and (values.min() < 0 or values.max() > WHITE_16):
        # The values, and no number of bits: signed 16-bit and 32-bit pixels arrive alike.
        raise BadImageError(
            "convert",
            f"integer pixels from {values.min()} to {values.max()} go beyond 0..65535, so nothing "
            "says what is black and white; save as unsigned 8 or 16 bit",
        )
    return Image.fromarray(((values * WHITE + WHITE_16 // 2) // WHITE_16).astype(np.uint8))


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize an RGB image to the input of the backbone, with antialiasing.

    ``crop`` gives exactly the pixels of torchvision's ``Resize`` and ``CenterCrop``, except that
    an image longer than 8:1 is first cropped to 8:1, because resizing it whole could exhaust the
    memory. ``whole`` does the same with the size as the shorter side, and leaves out the last crop.

    Parameters
    ----------
    image : Image
        Mode RGB.
    preprocessing : Preprocessing
        Its ``size``, ``resize``, ``resize_to`` and ``interpolation`` apply.
    """
    size, resampling = preprocessing.size, FILTERS[preprocessing.interpolation]
    if preprocessing.resize == "squash":
        return image if image.size == (size, size) else image.resize((size, size), resampling)
    scaled = scale(image, preprocessing)
    return scaled if preprocessing.resize == WHOLE else _center_crop(scaled, size, size)


def scale(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize an RGB image in proportion, before its central square is cut out.

    An image longer than 8:1 is first cropped to 8:1.
    """
    image = cap_aspect(image)
    width, height = image.size
    side = short_side(preprocessing)
    if width <= height:
        scaled_size = (side, int(side * height / width))
    else:
        scaled_size = (int(side * width / height), side)
    return image.resize(scaled_size, FILTERS[preprocessing.interpolation])


def cap_aspect(image: Image.Image) -> Image.Image:
    """Crop the ends off an image that is longer than ``MAX_ASPECT`` times its shorter side."""
    width, height = image.size
    max_side = MAX_ASPECT * min(width, height)
    if max(width, height) <= max_side:
        return image
    return _center_crop(image, min(width, max_side), min(height, max_side))


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))
