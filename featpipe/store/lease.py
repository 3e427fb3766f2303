"""Who may take rows away, and when: the lock of a cache.

Whoever relies on rows that no data set names yet (an extraction, a prediction) holds a *shared
lease* from before it first looks for rows until its data set is saved, or its rows are used.
Whoever takes rows away holds the *sole lease*. The two exclude each other, so no row that was
counted as present goes before the lease ends; and then a data set names it.

Readers need no lease: rows that a data set names are not taken away, and where their segment
is replaced, :class:`~featpipe.store.rows.FeatureRows` finds them again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from featpipe.base.disk import exclusive_lock, shared_lock
from featpipe.base.errors import InUseError

LOCK_NAME = ".lock"
"""An empty file in the cache, hidden, so that verification passes it over."""

log = logging.getLogger("featpipe")


@contextlib.contextmanager
def shared_lease(cache: Path) -> Iterator[None]:
    """Rely on rows of a cache; waits while another process takes rows away.

    Raises
    ------
    StorageError
        The lock file cannot be made.
    """

    def on_wait() -> None:
        log.info("waiting until a 'featpipe cache gc' or 'cache remove' in %s has ended", cache)

    with shared_lock(cache / LOCK_NAME, on_wait=on_wait):
        yield


@contextlib.contextmanager
def sole_lease(cache: Path) -> Iterator[None]:
    """Take rows of a cache away; does not wait.

    Raises
    ------
    InUseError
        A process relies on rows, or takes some away.
    StorageError
        The lock file cannot be made, or the file system has no locks.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(cache / LOCK_NAME))
        except BlockingIOError:
            raise InUseError(
                f"expected nobody to be using {cache}, found a process that extracts, predicts, "
                "collects or removes; run the same command again when it has ended"
            ) from None
        yield
