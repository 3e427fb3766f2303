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
_QUALITY = 80


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
        None if the picture is gone, changed or unreadable.
    """
    try:
        data = read(path)
        if hashlib.sha256(data).digest() != image_id:
            return None
        image = decode_rgb(data)
        if max(image.size) < SIDE:
            factor = SIDE // max(image.size)
            size = (image.width * factor, image.height * factor)
            image = image.resize(size, Image.Resampling.NEAREST)
        image.thumbnail((SIDE, SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
    # Decoders raise all kinds of errors; none of them may prevent the page.
    except Exception:
        return None
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Markup(f"data:image/jpeg;base64,{encoded}")
