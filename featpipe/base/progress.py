"""Progress of long-running stages. The library shows none unless asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Bar(Protocol):
    """Progress of one piece of work."""

    def advance(self, steps: int = 1, *, is_work: bool = True, **notes: object) -> None:
        """Add finished steps.

        Parameters
        ----------
        steps : int
        is_work : bool
            False for steps that were done before: they do not count for rate and time left.
        **notes : object
            Named values to show beside the bar.
        """


class Progress(Protocol):
    """Opens a bar: ``with progress("extract", total) as bar``."""

    def __call__(self, what: str, total: int) -> AbstractContextManager[Bar]: ...


class _SilentBar:
    def advance(self, steps: int = 1, *, is_work: bool = True, **notes: object) -> None:
        pass


@contextmanager
def no_progress(what: str, total: int) -> Iterator[Bar]:
    """Show no progress: the default of every stage."""
    yield _SilentBar()
