"""Several batches in the network at once, each in a thread of its own, results in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
import torch

from featpipe.base.hardware import free_memory

T = TypeVar("T")

_ACTIVATION_BYTES = 3 * 64 * 4
"""What a pixel of the input takes at its widest: three float32 maps of VGG's 64 channels."""
_MEMORY_SHARE = 4
"""Lanes take at most one part in so many of the memory that is free."""


class Lanes(Generic[T]):
    """Calls a network from several threads.

    On a processor each lane computes with its share of the cores, usually one: cores that share
    a batch wait for the slowest of them after each operation, above all when decoders take one
    away for a moment. On a GPU there are two, so that one batch travels while the other is
    computed. Every lane gives the same bits.

    Parameters
    ----------
    network : callable
        Pixels (n, size, size, 3) uint8 → arrays, one per space; released from Python's lock.
    device : str
    batch_size, size : int
        Pictures per call and their side, from which the memory of a lane is estimated.

    Attributes
    ----------
    busy_seconds : float
        Time in the network so far, of an average lane.
    """

    def __init__(
        self,
        network: Callable[[np.ndarray], list[np.ndarray]],
        *,
        device: str,
        batch_size: int,
        size: int,
    ) -> None:
        self._network = network
        self._threads = torch.get_num_threads()
        self.count = _count(device, self._threads, batch_size, size)
        self.busy_seconds = 0.0
        self._waiting: deque[tuple[T, Future[tuple[list[np.ndarray], float]]]] = deque()

        def prepare() -> None:
            if device.startswith("cuda"):
                torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            else:
                torch.set_num_threads(max(1, self._threads // self.count))

        if device.startswith("cuda"):
            torch.cuda.synchronize(device)  # the weights are there before another stream asks
        self._pool = ThreadPoolExecutor(self.count, "featpipe-lane", prepare)

    def __enter__(self) -> Lanes[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        # What a lane sets holds for threads to come, too.
        torch.set_num_threads(self._threads)

    def submit(self, pixels: np.ndarray, label: T) -> None:
        """Queue a batch; ``label`` comes back with its result."""
        self._waiting.append((label, self._pool.submit(self._timed, pixels)))

    def results(self, leave: int | None = None) -> Iterator[tuple[T, list[np.ndarray]]]:
        """Results in the order of submission, and what the network raised.

        Those that are there at once; then it waits until at most ``leave`` batches, by default
        two for each lane, are under way.
        """
        leave = 2 * self.count if leave is None else leave
        while self._waiting and (len(self._waiting) > leave or self._waiting[0][1].done()):
            label, future = self._waiting.popleft()
            arrays, seconds = future.result()
            self.busy_seconds += seconds / self.count
            yield label, arrays

    def leftovers(self) -> Iterator[tuple[T, list[np.ndarray]]]:
        """After the lanes are closed: results nobody took, but for failures."""
        for label, future in self._waiting:
            if not future.cancelled() and future.exception() is None:
                yield label, future.result()[0]
        self._waiting.clear()

    def _timed(self, pixels: np.ndarray) -> tuple[list[np.ndarray], float]:
        started = time.perf_counter()
        arrays = self._network(pixels)
        return arrays, time.perf_counter() - started


def _count(device: str, threads: int, batch_size: int, size: int) -> int:
    if device.startswith("cuda"):
        return 2
    if device != "cpu":
        return 1
    each = batch_size * size * size * _ACTIVATION_BYTES
    return int(np.clip(free_memory() // _MEMORY_SHARE // each, 1, threads))
