"""Wrong predictions and their thumbnails, made only from the same bytes that were scored."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from featpipe.decoding.pixels import decode_rgb

THUMBNAIL_PIXELS = 160
PAGE_THUMBNAIL_BYTES = 8_000_000
"""What all thumbnails of one page may take, as text in the page."""
THUMBNAIL_SECONDS = 30.0
"""After this time no more thumbnails are made: large pictures on a slow disk must not hold up an
evaluation. Only then do two pages of one evaluation differ."""
FIRST_SHOWN = 24
"""How many mistakes a page shows before it is asked for more."""
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

    def thumbnail(self) -> Thumbnail | None:
        """At most 160 px a side; None if the picture is gone, changed or unreadable."""
        try:
            data = self.read(self.path)
            if hashlib.sha256(data).digest() != self.image_id:
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


def thumbnails(
    mistakes: Sequence[Mistake], *, budget: int = PAGE_THUMBNAIL_BYTES
) -> dict[int, Thumbnail | None]:
    """Thumbnails of as many mistakes as a page has room for.

    Parameters
    ----------
    mistakes : sequence of Mistake
        Worst first.
    budget : int
        What all addresses together may take, bytes.

    Returns
    -------
    dict of int to Thumbnail or None
        By index into ``mistakes``; None where the picture is gone, changed or unreadable. An index
        is missing where there was no room.
    """
    stop = time.monotonic() + THUMBNAIL_SECONDS
    made: dict[int, Thumbnail | None] = {}
    for i in _turns(mistakes):
        if time.monotonic() > stop:
            break
        thumbnail = mistakes[i].thumbnail()
        budget -= len(thumbnail.uri) if thumbnail is not None else 0
        if budget < 0:
            break
        made[i] = thumbnail
    return made


def _turns(mistakes: Sequence[Mistake]) -> list[int]:
    """The order in which mistakes get a thumbnail.

    The worst come first, as the page opens with them. Then pairs of classes take turns, so that a
    rare confusion has pictures too: when all have one, a pair that is confused n times has √n.
    """
    pairs = [(mistake.truth, mistake.predicted) for mistake in mistakes]
    counts, seen = Counter(pairs), Counter[tuple[str, str]]()
    turn: list[float] = []
    for i, pair in enumerate(pairs):
        seen[pair] += 1
        turn.append(0 if i < FIRST_SHOWN else seen[pair] ** 2 / counts[pair])
    return sorted(range(len(mistakes)), key=turn.__getitem__)
