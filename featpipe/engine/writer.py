"""Finished rows wait here until there are enough, or they are old enough, for a segment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from featpipe.store.feature_store import FeatureStore

COMMIT_BYTES = 64 * 2**20
COMMIT_SECONDS = 30.0


class SegmentWriter:
    """Commits rows of several stores in the background, one commit at a time.

    A commit happens when ``COMMIT_BYTES`` are waiting, or the oldest row has waited
    ``COMMIT_SECONDS``. Memory holds at most the waiting rows and those being written.
    """

    def __init__(self, stores: Sequence[FeatureStore], provenance: dict[str, str]) -> None:
        self._stores = list(stores)
        self._provenance = provenance
        self._ids: list[list[bytes]] = [[] for _ in self._stores]
        self._rows: list[list[np.ndarray]] = [[] for _ in self._stores]
        self._bytes = 0
        self._oldest = 0.0
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="featpipe-writer")
        self._running: Future[None] | None = None
        self.write_seconds = 0.0
        self.wait_seconds = 0.0
        self.segments = 0

    def add(self, store: int, image_id: bytes, row: np.ndarray) -> None:
        """Take one row of one store."""
        if not self._bytes:
            self._oldest = time.monotonic()
        self._ids[store].append(image_id)
        self._rows[store].append(row)
        self._bytes += row.nbytes

    def poll(self) -> None:
        """Commit if it is time."""
        age = time.monotonic() - self._oldest
        if self._bytes and (self._bytes >= COMMIT_BYTES or age >= COMMIT_SECONDS):
            self._commit()

    def finish(self) -> None:
        """Commit everything and wait until it is on disk."""
        try:
            if self._bytes:
                self._commit()
            self._wait()
        finally:
            self._executor.shutdown()

    def _commit(self) -> None:
        self._wait()
        batches = [
            (store, ids, rows)
            for store, ids, rows in zip(self._stores, self._ids, self._rows, strict=True)
            if ids
        ]
        self._ids = [[] for _ in self._stores]
        self._rows = [[] for _ in self._stores]
        self._bytes = 0
        self._running = self._executor.submit(self._write, batches)

    def _write(self, batches: list[tuple[FeatureStore, list[bytes], list[np.ndarray]]]) -> None:
        started = time.perf_counter()
        for store, ids, rows in batches:
            id_rows = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), -1)
            store.append(id_rows, np.stack(rows), self._provenance)
            self.segments += 1
        self.write_seconds += time.perf_counter() - started

    def _wait(self) -> None:
        if self._running is not None:
            started = time.perf_counter()
            running, self._running = self._running, None
            running.result()
            self.wait_seconds += time.perf_counter() - started
