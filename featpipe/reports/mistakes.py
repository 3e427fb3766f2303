"""Thumbnails of wrong predictions, made from the very bytes that were scored, or not at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from featpipe.decoding.pixels import decode_rgb

THUMBNAIL_PIXELS = 160


@dataclass(frozen=True)
class Mistake:
    """One wrong prediction.

    Attributes
    ----------
    path, truth, predicted : str
    probability : float
        Given to the predicted class.
    image_id : bytes
    read : callable
        Path to the picture's bytes.
    """

    path: str
    truth: str
    predicted: str
    probability: float
    image_id: bytes
    read: Callable[[str], bytes]

    def thumbnail(self) -> bytes | None:
        """PNG bytes, at most 160 px; None where the picture is gone, changed or unreadable."""
        try:
            data = self.read(self.path)
            if hashlib.sha256(data).digest() != self.image_id:
                return None
            image = decode_rgb(data)
            if max(image.size) < THUMBNAIL_PIXELS:
                factor = THUMBNAIL_PIXELS // max(image.size)
                size = (image.width * factor, image.height * factor)
                image = image.resize(size, Image.Resampling.NEAREST)
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return buffer.getvalue()
        # A page without one thumbnail is better than no page; any decoder error counts.
        except Exception:
            return None
