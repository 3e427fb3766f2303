"""What a long stage tells while it runs. The library is silent unless a caller listens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, steps: int = 1, **notes: object) -> None:
        """Count finished steps; notes are shown beside them."""


class Progress(Protocol):
    """Opens a bar: ``with progress("extract", total) as bar``."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Bar]: ...


class _Silent:
    def advance(self, steps: int = 1, **notes: object) -> None:
        pass


@contextmanager
def no_progress(what: str, total: int) -> Iterator[Bar]:
    """Tell nobody."""
    yield _Silent()
