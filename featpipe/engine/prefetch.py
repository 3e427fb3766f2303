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
_GROUPS = 4
"""Items pass between the threads in groups of up to ``limit`` by this: each change of threads takes
as long as decoding a small picture."""


class _GroupQueue(queue.Queue[list[T] | BaseException | None]):
    """A queue of groups, full by the number of items in them."""

    _items = 0

    def _qsize(self) -> int:
        return self._items

    def _put(self, item: list[T] | BaseException | None) -> None:
        self._items += len(item) if isinstance(item, list) else 1
        super()._put(item)

    def _get(self) -> list[T] | BaseException | None:
        item: list[T] | BaseException | None = super()._get()
        self._items -= len(item) if isinstance(item, list) else 1
        return item


@contextmanager
def prefetch(items: Iterator[T | None], limit: int) -> Iterator[Iterator[T | None]]:
    """Run an iterator in a thread, about ``limit`` items ahead; what it raises is raised here.

    Nones of the iterator are left out; it should give one before it waits, because items may be
    held back until then. While the next item takes long, None comes once a second.
    """
    waiting: _GroupQueue[T] = _GroupQueue(limit)
    stop = threading.Event()

    def put(group: list[T] | BaseException | None) -> None:
        while not stop.is_set():
            try:
                waiting.put(group, timeout=_PUT_S)
                return
            except queue.Full:
                continue

    def produce() -> None:
        group: list[T] = []
        try:
            for item in items:
                if stop.is_set():
                    return
                if item is not None:
                    group.append(item)
                if group and (item is None or len(group) >= limit // _GROUPS):
                    put(group)
                    group = []
            if group:
                put(group)
            put(None)
        except BaseException as error:
            if group:
                put(group)
            put(error)

    def consume() -> Iterator[T | None]:
        while True:
            try:
                group = waiting.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            if group is None:
                return
            if isinstance(group, BaseException):
                raise group
            yield from group

    thread = threading.Thread(target=produce, name="featpipe-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
