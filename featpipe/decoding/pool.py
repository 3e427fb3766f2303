"""A pool of worker processes that decode images, so that no image can end the job.

Each worker process holds at most two tasks. If it dies or exceeds the time limit, the pool blames
the image it was decoding and gives the other task to a new worker process. An image that took too
long is reported as bad. An image whose worker process died is tried once more, because something
else may have caused the death, for example the system's out-of-memory killer. If a second worker
process dies on it, the image is reported as bad.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import file_fingerprint
from featpipe.base.errors import FeatpipeError, StorageError
from featpipe.base.ids import sortable
from featpipe.base.space import Preprocessing
from featpipe.decoding import messages
from featpipe.decoding.worker import SLOTS
from featpipe.specs.extract import DEFAULT_MAX_PIXELS

DEFAULT_TIME_LIMIT_S = 60.0
DEFAULT_MEMORY_BYTES = 4 * 2**30
_START_LIMIT = 3
"""The pool gives up after this many worker processes in a row died before they were ready: they
had not been given an image yet, so no image is the cause."""

_TICK_S = 0.25
_PIPE_BYTES = 4096
"""A payload of up to this many bytes fits into the pipe of a worker process that is busy."""


@dataclass(frozen=True)
class Task:
    """One image to decode.

    Attributes
    ----------
    key : int
        Chosen by the caller to recognise the result.
    path : str or None
        Image file to read; None where ``payload`` holds the bytes.
    payload : bytes
    """

    key: int
    path: str | None
    payload: bytes = b""


class DecodedKind(enum.StrEnum):
    """Outcome of a task, spelled as in the worker process's replies.

    ``PIXELS``: the image was decoded. ``KNOWN``: its id needs no decoding. ``BAD``: it failed.
    """

    PIXELS = "pixels"
    KNOWN = "known"
    BAD = "bad"


@dataclass(frozen=True)
class Decoded:
    """Result of one task.

    Attributes
    ----------
    key : int
        The task's key.
    kind : DecodedKind
    image_id : bytes or None
        SHA-256 of the image file; None where it could not be read or its worker process ended.
    pixels : ndarray of uint8, shape (size, size, 3), or None
        RGB, 0..255; only for ``PIXELS``.
    stage, reason : str
        The step that failed and why; only for ``BAD``.
    stat : tuple of int or None
        See :func:`featpipe.base.disk.file_fingerprint`; taken just before reading.
    read_s, decode_s : float
        Time the worker process took to read and hash, and to decode, seconds.
    """

    key: int
    kind: DecodedKind
    image_id: bytes | None
    pixels: NDArray[np.uint8] | None = None
    stage: str = ""
    reason: str = ""
    stat: tuple[int, ...] | None = None
    read_s: float = 0.0
    decode_s: float = 0.0


def _shared_memory(nbytes: int) -> BinaryIO:
    """An unnamed file in memory, which a child process can map by its file descriptor.

    Raises
    ------
    StorageError
    """
    file: BinaryIO
    try:
        if hasattr(os, "memfd_create"):
            file = os.fdopen(os.memfd_create("featpipe"), "r+b")
        else:
            file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the caller closes it)
        os.ftruncate(file.fileno(), max(nbytes, 1))
    except OSError as error:
        raise StorageError(
            f"expected {nbytes / 2**10:.1f} KiB of shared memory for decoding, but: "
            f"{error.strerror}; free some, or raise the limits on memory and file size"
        ) from error
    return file


class _Worker:
    def __init__(self, setup: dict[str, Any], slot_shape: tuple[int, ...]) -> None:
        with _shared_memory(SLOTS * math.prod(slot_shape)) as shared:
            self.slots = np.memmap(shared, np.uint8, "r+", shape=(SLOTS, *slot_shape))
            # The child inherits the blocked signals, so Ctrl-C cannot end it before it has
            # installed its own handlers.
            old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "featpipe.decoding.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(shared.fileno(), setup["known_fd"]),
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            self.pending: deque[tuple[Task, int]] = deque()
            self.free = list(range(SLOTS))
            self.splitter = messages.Splitter()
            self.working_since = time.monotonic()
            self.is_ready = False
            self._send(messages.pack({**setup, "pixels_fd": shared.fileno()}))

    def receive(self, piece: bytes) -> list[Decoded]:
        results = []
        for header in self.splitter.feed(piece):
            self.working_since = time.monotonic()
            if header["kind"] == "ready":
                self.is_ready = True
            else:
                results.append(self._finish(header))
        return results

    def give(self, task: Task) -> None:
        slot = self.free.pop()
        if not self.pending:
            self.working_since = time.monotonic()
        self.pending.append((task, slot))
        self._send(messages.pack({"key": task.key, "path": task.path, "slot": slot}, task.payload))

    def _finish(self, header: dict[str, Any]) -> Decoded:
        task, slot = self.pending.popleft()
        kind = DecodedKind(header["kind"])
        pixels = np.array(self.slots[slot]) if kind is DecodedKind.PIXELS else None
        self.free.append(slot)
        image_id = bytes.fromhex(header["id"]) if header["id"] else None
        stat = tuple(header["stat"]) if "stat" in header else None
        others = {k: v for k, v in header.items() if k not in ("key", "id", "stat", "kind")}
        return Decoded(task.key, kind, image_id, pixels, stat=stat, **others)

    def _send(self, data: bytes) -> None:
        # The end of the worker process's stdout reports its death; see DecodePool.decode.
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def end(self) -> int:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return self.process.wait()


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
    max_pixels : int
        An image with more pixels is bad.
    time_limit_s : float
        An image that takes longer, in seconds, is bad.
    memory_bytes : int
        Largest address space of one worker process.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        *,
        workers: int,
        known: NDArray[np.uint8],
        max_pixels: int = DEFAULT_MAX_PIXELS,
        time_limit_s: float = DEFAULT_TIME_LIMIT_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
    ) -> None:
        self._setup: dict[str, Any] = {
            "preprocessing": dataclasses.asdict(preprocessing),
            "max_pixels": max_pixels,
            "memory_bytes": memory_bytes,
        }
        ids = np.sort(sortable(known))
        self._known = _shared_memory(ids.nbytes)
        self._known.write(ids.tobytes())
        self._known.flush()
        self._setup |= {"known_fd": self._known.fileno(), "known_count": len(ids)}
        self._slot_shape = (preprocessing.size, preprocessing.size, 3)
        self._count = workers
        self._time_limit_s = time_limit_s
        self._workers: list[_Worker] = []
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

        Yields None every quarter of a second without news, so that a slow image never keeps a
        caller from stopping.

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
                    task = self._retry.popleft() if self._retry else next(source, None)
                    if task is None:
                        exhausted = True
                    elif worker.pending and len(task.payload) > _PIPE_BYTES:
                        # Writing it would block until the worker process has finished its
                        # current image, and no time limit could be enforced meanwhile.
                        self._retry.appendleft(task)
                        break
                    else:
                        worker.give(task)
            if exhausted and not any(worker.pending for worker in self._workers):
                return
            readable = self._readable()
            if not readable:
                yield None
            for worker in readable:
                results, alive = self._receive(worker)
                yield from results
                if not alive:
                    yield from self._replace(worker, None)
                    exhausted = exhausted and not self._retry
            for worker in self._overdue():
                yield from self._replace(worker, f"took longer than {self._time_limit_s:g} s")
                exhausted = exhausted and not self._retry

    def _readable(self) -> list[_Worker]:
        return [key.data for key, _ in self._selector.select(timeout=_TICK_S)]

    def _receive(self, worker: _Worker) -> tuple[list[Decoded], bool]:
        assert worker.process.stdout is not None
        piece = os.read(worker.process.stdout.fileno(), 1 << 16)
        return worker.receive(piece), bool(piece)

    def _overdue(self) -> list[_Worker]:
        latest_start = time.monotonic() - self._time_limit_s
        late = [w for w in self._workers if w.pending and w.working_since < latest_start]
        # A caller that was busy for long has not read the replies yet: a worker process that has
        # already replied is not late.
        replied = {key.data for key, _ in self._selector.select(timeout=0)}
        return [worker for worker in late if worker not in replied]

    def _replace(self, worker: _Worker, reason: str | None) -> Iterator[Decoded]:
        """Replace a worker process that died, or that must end for the given ``reason``."""
        code = self._stop(worker)
        exit_description = _exit_description(code)
        pending = [task for task, _ in worker.pending]
        self._failed_starts = 0 if worker.is_ready else self._failed_starts + 1
        if self._failed_starts >= _START_LIMIT:
            raise FeatpipeError(
                f"expected decoding workers to start, but {_START_LIMIT} in a row did not "
                f"({exit_description}); see their messages above, or try fewer --workers"
            )
        if worker.is_ready and pending:
            suspect = pending[0]
            if reason is None and suspect.key in self._suspects:
                reason = f"its decoder died twice ({exit_description})"
            self._suspects.add(suspect.key)
            if reason is not None:
                stat = _fingerprint(pending.pop(0).path)
                yield Decoded(
                    suspect.key, DecodedKind.BAD, None, stage="worker", reason=reason, stat=stat
                )
        self._retry.extend(pending)
        self._start()

    def _start(self) -> None:
        worker = _Worker(self._setup, self._slot_shape)
        assert worker.process.stdout is not None
        self._selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        self._workers.append(worker)

    def _stop(self, worker: _Worker) -> int:
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        self._workers.remove(worker)
        return worker.end()
