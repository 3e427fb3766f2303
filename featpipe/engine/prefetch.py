"""Running an iterator in a thread, so that producer and consumer work at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 1.0
"""Seconds without an item after which the consumer gets a None, to do other work."""
_PUT_S = 0.1
"""Seconds between two looks whether the consumer has stopped, while the queue is full."""


@contextmanager
def prefetch(items: Iterator[T | None], limit: int) -> Iterator[Iterator[T | None]]:
    """Run an iterator in a thread, at most ``limit`` items ahead; what it raises is raised here.

    Nones of the iterator are left out. While the next item takes long, None comes once a second.
    """
    waiting: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(limit)
    stop = threading.Event()

    def put(item: tuple[str, T | BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=_PUT_S)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if stop.is_set() or (item is not None and not put(("item", item))):
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

    thread = threading.Thread(target=produce, name="featpipe-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
