"""Collects finished feature rows and writes them to the stores as segments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from featpipe.store.feature_store import FeatureStore

COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 30.0


class SegmentWriter:
    """Commits rows of several stores in a background thread, one commit at a time.

    It commits when ``COMMIT_BYTES`` are waiting, or when the oldest row has waited
    ``COMMIT_SECONDS``. Memory holds at most the waiting rows and those being written.

    Parameters
    ----------
    stores : sequence of FeatureStore
    provenance : dict of str to str
        Stored with every segment.

    Attributes
    ----------
    write_seconds : float
        Time the background thread spent writing.
    wait_seconds : float
        Time the caller waited for a commit to end.
    segments : int
        Segments written.
    """

    def __init__(self, stores: Sequence[FeatureStore], provenance: dict[str, str]) -> None:
        self._stores = list(stores)
        self._provenance = provenance
        # Ids and rows share one list, because an interrupt between two appends would leave two
        # lists of different lengths.
        self._waiting: list[list[tuple[bytes, np.ndarray]]] = [[] for _ in self._stores]
        self._bytes = 0
        self._oldest = 0.0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="featpipe-writer")
        self._running: Future[None] | None = None
        self.write_seconds = 0.0
        self.wait_seconds = 0.0
        self.segments = 0

    def add(self, store: int, image_id: bytes, row: np.ndarray) -> None:
        """Add one row for the store of that index."""
        if not self._bytes:
            self._oldest = time.monotonic()
        self._bytes += row.nbytes
        self._waiting[store].append((image_id, row))

    def poll(self) -> None:
        """Commit if enough bytes are waiting, or if the oldest row has waited long enough."""
        age = time.monotonic() - self._oldest
        if self._bytes and (self._bytes >= COMMIT_BYTES or age >= COMMIT_SECONDS):
            self._commit()

    def flush(self) -> None:
        """Commit all waiting rows and return once they are on disk."""
        if self._bytes:
            self._commit()
        self._wait()

    def finish(self) -> None:
        """Flush, then end the background thread."""
        try:
            self.flush()
        except KeyboardInterrupt:
            # The interrupt may have come before the waiting rows were submitted.
            self.flush()
            raise
        finally:
            self._executor.shutdown()

    def _commit(self) -> None:
        self._wait()
        batches = [
            (store, waiting)
            for store, waiting in zip(self._stores, self._waiting, strict=True)
            if waiting
        ]
        # Submit the rows before clearing the list: an interrupt in between then writes them twice,
        # which is harmless, instead of losing them.
        self._running = self._executor.submit(self._write, batches)
        self._waiting = [[] for _ in self._stores]
        self._bytes = 0

    def _write(self, batches: list[tuple[FeatureStore, list[tuple[bytes, np.ndarray]]]]) -> None:
        started = time.perf_counter()
        for store, waiting in batches:
            ids = np.frombuffer(b"".join(image_id for image_id, _ in waiting), np.uint8)
            rows = np.stack([row for _, row in waiting])
            store.append(ids.reshape(len(waiting), -1), rows, self._provenance)
            self.segments += 1
        self.write_seconds += time.perf_counter() - started

    def _wait(self) -> None:
        if self._running is not None:
            started = time.perf_counter()
            running, self._running = self._running, None
            running.result()
            self.wait_seconds += time.perf_counter() - started
