"""Small pictures for pages, made only from the very bytes a data set means."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from featpipe.decoding.pixels import decode_rgb

THUMBNAIL_PIXELS = 160
_LOSSLESS_PIXELS = 64
_JPEG_QUALITY = 75


@dataclass(frozen=True)
class Thumbnail:
    """A small picture for a page.

    Attributes
    ----------
    kind : {"png", "jpeg"}
        PNG for pictures of at most 64 px a side, pixel by pixel; JPEG for others.
    data : bytes
    """

    kind: str
    data: bytes

    @property
    def uri(self) -> Markup:
        """The picture as an address that holds it."""
        encoded = base64.b64encode(self.data).decode("ascii")
        return Markup(f"data:image/{self.kind};base64,{encoded}")


def thumbnail_of(read: Callable[[str], bytes], path: str, image_id: bytes) -> Thumbnail | None:
    """A picture of at most 160 px a side; None if it is gone, changed or unreadable.

    Parameters
    ----------
    read : callable
        Returns the bytes of the picture at a path.
    path : str
    image_id : bytes
        SHA-256 of the picture's bytes.
    """
    try:
        data = read(path)
        if hashlib.sha256(data).digest() != image_id:
            return None
        return _thumbnail(data)
    # Decoders raise all kinds of errors; none of them may prevent the page.
    except Exception:
        return None


def _thumbnail(data: bytes) -> Thumbnail:
    image = decode_rgb(data, smallest=THUMBNAIL_PIXELS)
    buffer = io.BytesIO()
    # A few pixels are exact and small as PNG; the browser enlarges them in whole pixels.
    if max(image.size) <= _LOSSLESS_PIXELS:
        image.save(buffer, "PNG", optimize=True)
        return Thumbnail("png", buffer.getvalue())
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Thumbnail("jpeg", buffer.getvalue())
