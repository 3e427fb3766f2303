"""One image's bytes to the RGB pixels a person sees, at the backbone's size.

Pillow defines the pixels. Any exception a decoder raises means the image is bad, never that
the job is.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from featpipe.base.errors import BadImageError
from featpipe.base.space import Preprocessing
from featpipe.specs.extract import DEFAULT_MAX_PIXELS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""Formats that are opened at all; none of their decoders starts another program."""
_MAX_ELONGATION = 8
_RESIZE_MARGIN = 256 / 224


def load_pixels(
    data: bytes, preprocessing: Preprocessing, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """Decode, rotate, convert to RGB, resize and crop.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        RGB, 0..255.

    Raises
    ------
    BadImageError
        With the stage at which it failed.
    MemoryError
        The picture needs more than the process may take.
    """
    smallest = None
    if preprocessing.decoder == "pillow-draft":
        smallest = _short_side(preprocessing.size, preprocessing.resize)
    image = decode_rgb(data, max_pixels=max_pixels, smallest=smallest)
    try:
        return np.asarray(fit(image, preprocessing.size, preprocessing.resize))
    except MemoryError:
        raise
    except Exception as error:
        raise BadImageError("resize", _one_line(error)) from error


def decode_rgb(
    data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, smallest: int | None = None
) -> Image.Image:
    """First frame as upright 8-bit RGB; transparency lies on white, 16 bits are scaled.

    Parameters
    ----------
    data : bytes
    max_pixels : int
    smallest : int, optional
        A JPEG may be scaled down by a power of two in decoding (libjpeg's scaled inverse DCT)
        as long as both sides keep this many pixels.

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
            _check_size(image, max_pixels)
            stage = "decode"
            if smallest is not None:
                image.draft(None, (smallest, smallest))
            image.load()
            stage = "convert"
            return _to_rgb(ImageOps.exif_transpose(image))
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        accepted = ", ".join(FORMATS[:-1]) + f" or {FORMATS[-1]}"
        raise BadImageError("open", f"not a {accepted} image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError("open", f"more than {max_pixels} pixels") from error
    # Decoders raise anything: struct.error, SyntaxError, IndexError, …
    except Exception as error:
        raise BadImageError(stage, _one_line(error)) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImageError("open", f"{width} x {height} is more than {max_pixels} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
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
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of up to 16 bits in modes I;16, I;16B and I, scaled to 8 bits, not clipped."""
    values = np.asarray(image).astype(np.int64)
    # A PNG may name one grey level transparent; it lies on white like all transparency.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        values[values == transparent] = 65535
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadImageError("convert", "32-bit integer pixels beyond 0..65535; save as 16 bit")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def fit(image: Image.Image, size: int, resize: str) -> Image.Image:
    """Bring an RGB image to size x size, bilinear with antialiasing.

    ``crop`` gives the very pixels of torchvision's ``Resize`` and ``CenterCrop``, except that
    a picture longer than 8:1 first loses its ends: resized whole it could fill the memory.
    """
    if resize == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    width, height = image.size
    longest = _MAX_ELONGATION * min(width, height)
    if max(width, height) > longest:
        width, height = min(width, longest), min(height, longest)
        image = _center_crop(image, width, height)
    short = _short_side(size, resize)
    if width <= height:
        scaled = (short, int(short * height / width))
    else:
        scaled = (int(short * width / height), short)
    return _center_crop(image.resize(scaled, Image.Resampling.BILINEAR), size, size)


def _short_side(size: int, resize: str) -> int:
    """Shorter side of the picture before it is cropped, pixels."""
    return size if resize == "squash" else round(size * _RESIZE_MARGIN)


def _center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left = round((image.width - width) / 2.0)
    top = round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:300]
