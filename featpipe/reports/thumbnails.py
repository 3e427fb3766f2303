"""Small pictures for pages, made only from the very bytes a data set means."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable

from markupsafe import Markup
from PIL import Image

from featpipe.decoding.pixels import decode_rgb

SIDE = 160
_LOSSLESS_SIDE = 64
_QUALITY = 75


def thumbnail_uri(read: Callable[[str], bytes], path: str, image_id: bytes) -> Markup | None:
    """A picture of at most 160 px a side, as an address that holds it.

    Parameters
    ----------
    read : callable
        Returns the bytes of the picture at a path.
    path : str
    image_id : bytes
        SHA-256 of the picture's bytes.

    Returns
    -------
    Markup or None
        A PNG, pixel by pixel, of a picture of at most 64 px a side; a JPEG of others. None if the
        picture is gone, changed or unreadable.
    """
    try:
        data = read(path)
        if hashlib.sha256(data).digest() != image_id:
            return None
        return image_uri(decode_rgb(data, smallest=SIDE))
    # Decoders raise all kinds of errors; none of them may prevent the page.
    except Exception:
        return None


def image_uri(image: Image.Image) -> Markup:
    """An RGB image, made no larger than 160 px a side, as an address that holds it."""
    kind, small = _encoded(image)
    return Markup(f"data:image/{kind};base64,{base64.b64encode(small).decode('ascii')}")


def _encoded(image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    # A few pixels are exact and small as PNG; the browser enlarges them in whole pixels.
    if max(image.size) <= _LOSSLESS_SIDE:
        image.save(buffer, "PNG", optimize=True)
        return "png", buffer.getvalue()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return "jpeg", buffer.getvalue()
