"""What a pass over pictures reports: the outcome of each picture, and where the time went."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import Reason


class OutcomeKind(enum.Enum):
    """What became of a picture."""

    COMPUTED = enum.auto()
    """Its row was computed in this pass."""
    KNOWN = enum.auto()
    """Its row was there already, from before or from earlier in this pass."""
    BAD = enum.auto()
    """It could not be read."""


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes
    ----------
    key : int
        The task's own.
    kind : OutcomeKind
    image_id : bytes or None
        SHA-256 of the picture; None where the file could not even be read.
    stat : tuple of int or None
        See :func:`featpipe.base.disk.file_fingerprint`; taken just before reading.
    reason : Reason or None
        Why a bad picture is bad.
    detail : str
        What its decoder said itself: for debugging, not for people.
    """

    key: int
    kind: OutcomeKind
    image_id: bytes | None
    stat: tuple[int, ...] | None = None
    reason: Reason | None = None
    detail: str = ""


@dataclass
class ComputedIds:
    """What a pass found out about n pictures.

    Attributes
    ----------
    ids : ndarray of uint8, shape (n, 32)
        Image ids; zero where a file could not even be read.
    stat : ndarray of int64, shape (n, 3)
        Size, modification and change time (ns) of each file; -1 where they are not to be trusted.
    errors : dict of int to Reason
        Of the pictures that could not be read, by their number.
    computed : int
        How many rows were computed.
    """

    ids: NDArray[np.uint8]
    stat: NDArray[np.int64]
    errors: dict[int, Reason] = field(default_factory=dict)
    computed: int = 0


@dataclass
class Timings:
    """Where the time of a pass went, seconds.

    ``read`` and ``decode`` add up over decoding processes; ``backbone`` is that of an average
    inference thread.
    """

    read: float = 0.0
    decode: float = 0.0
    backbone: float = 0.0
    write: float = 0.0
    waited_for_pixels: float = 0.0
    waited_for_backbone: float = 0.0
    waited_for_writer: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The stage the others waited for: ``read``, ``decode``, ``backbone`` or ``write``."""
        loading = "read" if self.read > self.decode else "decode"
        waits = {
            loading: self.waited_for_pixels,
            "backbone": self.waited_for_backbone,
            "write": self.waited_for_writer,
        }
        return max(waits, key=waits.__getitem__)

    def as_dict(self) -> dict[str, float]:
        """The stages' seconds, rounded to milliseconds."""
        return {
            name: round(getattr(self, name), 3) for name in ("read", "decode", "backbone", "write")
        }
