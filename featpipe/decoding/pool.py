"""A pool of worker processes that decode images, so that no image can end the job.

Each worker process holds at most two tasks, or more where images are small and in memory. If it
dies or exceeds the time limit, the pool blames the image it was decoding and gives the other tasks
to a new worker process. An image that took too long is reported as bad. An image whose worker
process died is tried once more, because something else may have caused the death, for example the
system's out-of-memory killer. If a second worker process dies on it, the image is reported as bad.
"""

from __future__ import annotations

import dataclasses
import math
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import file_fingerprint
from featpipe.base.errors import FeatpipeError
from featpipe.base.ids import sortable
from featpipe.base.preprocessing import largest_shape
from featpipe.base.space import Augmentation, Preprocessing
from featpipe.decoding.worker_process import (
    Decoded,
    DecodedKind,
    Task,
    WorkerProcess,
    shared_memory,
)
from featpipe.specs.extract import DEFAULT_MAX_PIXELS

DEFAULT_TIME_LIMIT_S = 60.0
DEFAULT_MEMORY_BYTES = 4 * 2**30
_START_LIMIT = 3
"""The pool gives up after this many worker processes in a row died before they were ready: they
had not been given an image yet, so no image is the cause."""

_TICK_S = 0.25
_TASK_BYTES = 64 * 2**20
"""Pixels of one task take no more, except for a single view."""


def views_at_once(preprocessing: Preprocessing, views: int) -> int:
    """How many of so many views one task may ask for."""
    return max(1, min(views, _TASK_BYTES // (math.prod(largest_shape(preprocessing)) * 3)))


def _exit_description(code: int) -> str:
    """How a process ended: ``exit N``, or the signal that killed it."""
    if code >= 0:
        return f"exit {code}"
    signal_names = {int(number): number.name for number in signal.Signals}
    return signal_names.get(-code, f"signal {-code}")


def _fingerprint(path: str | None) -> tuple[int, ...] | None:
    try:
        status = os.stat(path) if path is not None else None
    except OSError:
        return None
    return file_fingerprint(status) if status else None


class DecodePool:
    """Worker processes that read, hash and decode images.

    Parameters
    ----------
    preprocessing : Preprocessing
        Its ``size``, ``resize`` and ``decoder`` apply; the network normalises.
    workers : int
        Number of worker processes.
    known : ndarray of uint8, shape (n, 32)
        Ids of images that need no decoding; their results are ``KNOWN``.
    augmentation : Augmentation, optional
        What makes the views; default: none, and pixels are those of the picture itself.
    views : sequence of int
        Numbers of the views that tasks may ask for; an image is decoded once for those of a task.
    max_pixels : int
        An image with more pixels is bad.
    time_limit_s : float
        An image that takes longer, or a view of it, in seconds, is bad.
    memory_bytes : int
        Largest address space of one worker process.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        workers: int,
        known: NDArray[np.uint8],
        augmentation: Augmentation | None = None,
        views: Sequence[int] = (0,),
        max_pixels: int = DEFAULT_MAX_PIXELS,
        time_limit_s: float = DEFAULT_TIME_LIMIT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._setup: dict[str, Any] = {
            "preprocessing": dataclasses.asdict(preprocessing),
            "augmentation": dataclasses.asdict(augmentation) if augmentation else None,
            "views": tuple(views),
            "max_pixels": max_pixels,
            "memory_bytes": memory_bytes,
        }
        ids = np.sort(sortable(known))
        self._known = shared_memory(ids.nbytes)
        self._known.write(ids.tobytes())
        self._known.flush()
        self._setup |= {"known_fd": self._known.fileno(), "known_count": len(ids)}
        at_once = views_at_once(preprocessing, len(views))
        self._slot_bytes = at_once * math.prod(largest_shape(preprocessing)) * 3
        self._count = workers
        self._time_limit_s = time_limit_s
        self._workers: list[WorkerProcess] = []
        self._retry: deque[Task] = deque()
        self._suspects: set[int] = set()
        self._failed_starts = 0
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> DecodePool:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for worker in list(self._workers):
            self._stop(worker)
        self._selector.close()
        self._known.close()

    def decode(self, tasks: Iterable[Task]) -> Iterator[Decoded | None]:
        """One result per task, in order of completion.

        Yields None before it waits, and every quarter of a second without news, so that a slow
        image never keeps a caller from stopping.

        Raises
        ------
        FeatpipeError
            Several worker processes in a row did not start.
        """
        source = iter(tasks)
        exhausted = False
        while True:
            for worker in self._workers:
                while worker.free and not exhausted:
                    try:
                        task = self._retry.popleft() if self._retry else next(source, None)
                    except Exception:
                        # What is finished by now is not lost.
                        for other in self._readable(0):
                            yield from self._receive(other)[0]
                        raise
                    if task is None:
                        exhausted = True
                    elif not worker.take(task):
                        self._retry.appendleft(task)
                        break
                worker.send()
            if exhausted and not any(worker.pending for worker in self._workers):
                return
            readable = self._readable(0)
            if not readable:
                yield None
                readable = self._readable(_TICK_S)
            for worker in readable:
                results, alive = self._receive(worker)
                yield from results
                if not alive:
                    yield from self._replace(worker, None)
                    exhausted = exhausted and not self._retry
            for worker in self._overdue():
                yield from self._replace(worker, f"took longer than {self._time_limit_s:g} s")
                exhausted = exhausted and not self._retry

    def _readable(self, timeout_s: float) -> list[WorkerProcess]:
        return [key.data for key, _ in self._selector.select(timeout_s)]

    def _receive(self, worker: WorkerProcess) -> tuple[list[Decoded], bool]:
        assert worker.process.stdout is not None
        piece = os.read(worker.process.stdout.fileno(), 1 << 16)
        return worker.receive(piece), bool(piece)

    def _overdue(self) -> list[WorkerProcess]:
        latest_start = time.monotonic() - self._time_limit_s
        late = [w for w in self._workers if w.pending and w.working_since < latest_start]
        # A caller that was busy for long has not read the replies yet: a worker process that has
        # already replied is not late.
        replied = self._readable(0)
        return [worker for worker in late if worker not in replied]

    def _replace(self, worker: WorkerProcess, reason: str | None) -> Iterator[Decoded]:
        """Replace a worker process that died, or that must end for the given ``reason``."""
        code = self._stop(worker)
        exit_description = _exit_description(code)
        pending, current = [task for task, _ in worker.pending], worker.current
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts >= _START_LIMIT:
            raise FeatpipeError(
                f"expected decoding workers to start, but {_START_LIMIT} in a row did not "
                f"({exit_description}); see their messages above, or try fewer --workers"
            )
        if worker.is_ready and pending:
            suspect = pending[current]
            if reason is None and suspect.key in self._suspects:
                reason = f"its decoder died twice ({exit_description})"
            self._suspects.add(suspect.key)
            if reason is not None:
                stat = _fingerprint(pending.pop(current).path)
                yield Decoded(
                    suspect.key, DecodedKind.BAD, None, stage="worker", reason=reason, stat=stat
                )
        self._retry.extend(pending)
        self._start()

    def _start(self) -> None:
        worker = WorkerProcess(self._setup, self._slot_bytes)
        assert worker.process.stdout is not None
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        self._workers.append(worker)

    def _stop(self, worker: WorkerProcess) -> int:
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        self._workers.remove(worker)
        return worker.end()
