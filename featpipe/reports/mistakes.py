"""Wrong predictions and their thumbnails, made only from the same bytes that were scored."""

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
        Path of the picture, and names of its true and predicted class.
    probability : float
        Probability of the predicted class, 0 to 1.
    image_id : bytes
        SHA-256 of the picture's bytes when it was scored.
    read : callable
        Returns the bytes of the picture at a path.
    """

    path: str
    truth: str
    predicted: str
    probability: float
    image_id: bytes
    read: Callable[[str], bytes]

    def thumbnail(self) -> bytes | None:
        """PNG bytes, at most 160 px a side; None if the picture is gone, changed or unreadable."""
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
        # Decoders raise all kinds of errors; none of them may prevent the page.
        except Exception:
            return None
