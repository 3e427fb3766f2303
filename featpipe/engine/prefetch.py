"""Running an iterator ahead of whoever consumes it, so that both work at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 1.0
"""Silence after which the consumer is given a None, to look after other things."""


@contextmanager
def ahead(results: Iterator[T | None], limit: int) -> Iterator[Iterator[T | None]]:
    """Run an iterator in a thread, at most ``limit`` items ahead; what it raises is raised here.

    Its own Nones are left out; while the next item takes long, None comes once a second instead.
    """
    waiting: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(limit)
    stop = threading.Event()

    def put(item: tuple[str, T | BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def feed() -> None:
        try:
            for result in results:
                if stop.is_set() or (result is not None and not put(("item", result))):
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    def consume() -> Iterator[T | None]:
        while True:
            try:
                kind, item = waiting.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            if kind == "end":
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=feed, name="featpipe-feeder", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
