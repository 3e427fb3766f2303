"""Threads that run the network over several batches at once; results come in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Inference
from featpipe.engine.lanes import lanes_for

T = TypeVar("T")

_BATCHES_PER_THREAD = 2
"""Batches under way per thread before :meth:`InferencePool.results` waits."""


class InferencePool(Generic[T]):
    """Calls a network from several threads, each with a batch of its own.

    On a CPU, threads that share one batch wait for the slowest of them after every operation, the
    more so while a decoding process takes one core away; so each thread of this pool computes a
    whole batch with its share of the cores, usually one. On a GPU there are two threads, each with
    a stream of its own, so that one batch is copied while the other is computed. Every thread
    gives the same bits.

    Parameters
    ----------
    network : callable
        Pixels (n, size, size, 3) uint8 → arrays, one per space. It must release Python's lock.
    device : str
    batch_bytes : int
        Memory that a thread takes for a batch; 0 of a function that is not torch's: so little is
        computed there that one thread will do.

    Attributes
    ----------
    count : int
        Number of threads.
    busy_seconds : float
        Time in the network so far, of an average thread.
    """

    def __init__(self, network: Inference, *, device: str, batch_bytes: int) -> None:
        self._network: Inference | None = network
        self._lanes = lanes_for(device, batch_bytes)
        self.count = self._lanes.count
        self.busy_seconds = 0.0
        self._waiting: deque[tuple[T, Future[tuple[list[np.ndarray], float]]]] = deque()
        self._executor = ThreadPoolExecutor(
            self.count, "featpipe-inference", self._lanes.set_up_thread
        )

    def __enter__(self) -> InferencePool[T]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)
        self._network = None  # its memory is free before the lanes hand the rest back
        self._lanes.close()

    def submit(self, pixels: NDArray[np.uint8], label: T) -> None:
        """Queue a batch; ``label`` comes back with its result."""
        self._waiting.append((label, self._executor.submit(self._timed, pixels)))

    def results(self, leave: int | None = None) -> Iterator[tuple[T, list[np.ndarray]]]:
        """Results in the order of submission; an error of the network is raised here.

        Those that are finished come at once. Then it waits until at most ``leave`` batches, by
        default two per thread, are under way.
        """
        leave = _BATCHES_PER_THREAD * self.count if leave is None else leave
        while self._waiting and (len(self._waiting) > leave or self._waiting[0][1].done()):
            label, future = self._waiting.popleft()
            arrays, seconds = future.result()
            self.busy_seconds += seconds / self.count
            yield label, arrays

    def cancel(self) -> None:
        """Drop the batches that no thread has begun; nothing more can be submitted."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def leftovers(self) -> Iterator[tuple[T, list[np.ndarray]]]:
        """After the pool is closed: results that nobody took, without failures."""
        for label, future in self._waiting:
            if not future.cancelled() and future.exception() is None:
                yield label, future.result()[0]
        self._waiting.clear()

    def _timed(self, pixels: NDArray[np.uint8]) -> tuple[list[np.ndarray], float]:
        assert self._network is not None, "the pool is open"
        started = time.perf_counter()
        arrays = self._network(pixels)
        return arrays, time.perf_counter() - started
