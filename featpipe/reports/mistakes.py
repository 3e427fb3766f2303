"""Wrong predictions, and the choice of those that get a thumbnail."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from featpipe.reports.thumbnails import thumbnail_uri

PAGE_THUMBNAIL_BYTES = 8_000_000
"""What all thumbnails of one page may take, as text in the page."""
THUMBNAIL_SECONDS = 30.0
"""After this time no more thumbnails are made: large pictures on a slow disk must not hold up an
evaluation. Only then do two pages of one evaluation differ."""
MAPPED = 12
"""How many of the worst mistakes get a score map, where such are asked for."""
FIRST_SHOWN = 24
"""How many mistakes a page shows before it is asked for more."""


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
    score_map : Markup or None
        An address that holds the score map of the predicted class; None where there is none.
    """

    path: str
    truth: str
    predicted: str
    probability: float
    image_id: bytes
    read: Callable[[str], bytes]
    score_map: Markup | None = None

    def thumbnail(self) -> Markup | None:
        """An address that holds the picture; None if it is gone, changed or unreadable."""
        return thumbnail_uri(self.read, self.path, self.image_id)


def thumbnails(
    mistakes: Sequence[Mistake], *, budget: int = PAGE_THUMBNAIL_BYTES
) -> dict[int, Markup | None]:
    """Thumbnails of as many mistakes as a page has room for.

    Parameters
    ----------
    mistakes : sequence of Mistake
        Worst first.
    budget : int
        What all addresses together may take, bytes.

    Returns
    -------
    dict of int to Markup or None
        By index into ``mistakes``; None where the picture is gone, changed or unreadable. An index
        is missing where there was no room.
    """
    stop = time.monotonic() + THUMBNAIL_SECONDS
    made: dict[int, Markup | None] = {}
    for i in _turns(mistakes):
        if time.monotonic() > stop:
            break
        thumbnail = mistakes[i].thumbnail()
        budget -= len(thumbnail or "")
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
