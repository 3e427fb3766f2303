"""A decoding process as the pool sees it: tasks go in, what became of them comes out."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import StorageError
from featpipe.base.locations import Encoded, Location, Slice
from featpipe.decoding import messages
from featpipe.decoding.worker import PROGRESS_BYTES, progress_in

_SLOTS = 2
"""Shared memory slots of every worker process: one for the current task, one for the next."""
_MAX_SLOTS = 32
_SLOT_BYTES = 2**20
"""Small pictures get more slots, up to ``_MAX_SLOTS``, as far as they fit into these bytes."""
_SMALL_BYTES = 4096
"""A payload of up to this many bytes fits into the pipe of a worker process that is busy."""


@dataclass(frozen=True)
class Task:
    """One image to decode.

    Attributes
    ----------
    key : int
        Chosen by the caller to recognise the result.
    path : str or None
        File to read; None where ``payload`` holds the bytes.
    payload : bytes
    part : tuple of int, optional
        Offset and length, in bytes, of the image within the file; default: all of it.
    views : tuple of int, optional
        Which of the pool's views are wanted; default: all of them.
    image_id : bytes, optional
        SHA-256 that the image must have; another content is bad.
    """

    key: int
    path: str | None
    payload: bytes = b""
    part: tuple[int, int] | None = None
    views: tuple[int, ...] | None = None
    image_id: bytes | None = None

    @classmethod
    def at(
        cls,
        key: int,
        location: Location,
        *,
        views: tuple[int, ...] | None = None,
        image_id: bytes | None = None,
    ) -> Self:
        """The task to decode the image at a location."""
        if isinstance(location, Encoded):
            return cls(key, None, location.data, None, views, image_id)
        part = (location.offset, location.length) if isinstance(location, Slice) else None
        return cls(key, location.path, b"", part, views, image_id)


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
    pixels : ndarray of uint8, shape (views, height, width, 3), or None
        RGB, 0..255; only for ``PIXELS``. Height and width are the size, except that with
        ``resize="whole"`` one of them is larger.
    views : tuple of int
        Which views the task asked for.
    stage, reason : str
        The step that failed and why; only for ``BAD``.
    detail : str
        What the decoder said itself, where it did.
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
    detail: str = ""
    stat: tuple[int, ...] | None = None
    read_s: float = 0.0
    decode_s: float = 0.0
    views: tuple[int, ...] = (0,)


def shared_memory(nbytes: int) -> BinaryIO:
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


def _half_of_pipe(stream: IO[bytes] | None) -> int:
    """Half of what the pipe of a process that reads nothing holds, bytes."""
    assert stream is not None
    if hasattr(fcntl, "F_GETPIPE_SZ"):
        return fcntl.fcntl(stream, fcntl.F_GETPIPE_SZ) // 2
    return _SMALL_BYTES


class WorkerProcess:
    """One decoding process, its tasks, and the memory it shares pixels in.

    Parameters
    ----------
    setup : dict
        First message to the process: preprocessing, views, limits, known ids.
    slot_bytes : int
        Most bytes that the pixels of one task take.

    Attributes
    ----------
    pending : deque of (Task, int)
        Tasks taken and not answered, oldest first, each with its slot of shared memory.
    free : list of int
        Slots without a task.
    is_ready : bool
        Whether the process has finished its imports.
    """

    def __init__(self, setup: dict[str, Any], slot_bytes: int) -> None:
        slots = int(np.clip(_SLOT_BYTES // slot_bytes, _SLOTS, _MAX_SLOTS))
        try:
            shared = shared_memory(PROGRESS_BYTES + slots * slot_bytes)
        except StorageError:
            # More slots save time only: a low limit on file sizes must not end the job for them.
            slots = _SLOTS
            shared = shared_memory(PROGRESS_BYTES + slots * slot_bytes)
        shape = (slots, slot_bytes)
        with shared:
            memory = mmap.mmap(shared.fileno(), PROGRESS_BYTES + math.prod(shape))
            self._begun, self._since = progress_in(memory)
            self.slots = np.frombuffer(memory, np.uint8, offset=PROGRESS_BYTES).reshape(shape)
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
            self.free = list(range(slots))
            self.splitter = messages.Splitter()
            self.is_ready = False
            self._views: tuple[int, ...] = setup["views"]
            self._unsent: list[tuple[Task, int]] = []
            self._batch = max(1, slots // 2)
            self._answered = 0
            self._payload_bytes = 0
            self._idle_until = time.monotonic()
            self._pipe_bytes = _half_of_pipe(self.process.stdin)
            self._send(messages.pack({**setup, "slots": shape, "pixels_fd": shared.fileno()}))

    @property
    def working_since(self) -> float:
        """When the process began what it is at, by :func:`time.monotonic`."""
        return max(self._idle_until, float(self._since[0]))

    @property
    def current(self) -> int:
        """Which of the pending tasks the process is at."""
        return min(max(0, int(self._begun[0]) - self._answered - 1), len(self.pending) - 1)

    def receive(self, piece: bytes) -> list[Decoded]:
        """What the process says in a piece of its output."""
        results = []
        for header in self.splitter.feed(piece):
            self._idle_until = time.monotonic()
            if header["kind"] == "ready":
                self.is_ready = True
            else:
                results += [self._finish(reply) for reply in header["replies"]]
        return results

    def take(self, task: Task) -> bool:
        """Put a task into a free slot; False where that must wait.

        Tasks are sent when they are as many as the process has, up to half of its slots, or by
        :meth:`send`: so one half waits for the process while it works on the other.
        """
        if not self._has_room(task):
            return False
        if not self.pending:
            self._idle_until = time.monotonic()
        given = (task, self.free.pop())
        self.pending.append(given)
        self._unsent.append(given)
        self._payload_bytes += len(task.payload)
        if len(self._unsent) >= min(self._batch, len(self.pending) - len(self._unsent)):
            self.send()
        return True

    def _has_room(self, task: Task) -> bool:
        if not self.free:
            return False
        if not self.pending:
            return True
        # Writing more than the pipe holds would block until the process has finished its current
        # image, and no time limit could be enforced meanwhile.
        if len(task.payload) > _SMALL_BYTES:
            return False
        if len(self.pending) < _SLOTS:
            return True
        # Files, which may be large, do not wait behind one another: another process is free first.
        return task.path is None and self._payload_bytes + len(task.payload) <= self._pipe_bytes

    def send(self) -> None:
        """Send the tasks that were taken and not yet sent, in one message."""
        if not self._unsent:
            return
        tasks = [
            {
                "path": task.path,
                "slot": slot,
                "part": task.part,
                "size": len(task.payload),
                "views": task.views,
                "image_id": task.image_id.hex() if task.image_id else None,
            }
            for task, slot in self._unsent
        ]
        payloads = b"".join(task.payload for task, _ in self._unsent)
        self._unsent = []
        self._send(messages.pack({"tasks": tasks}, payloads))

    def _finish(self, reply: dict[str, Any]) -> Decoded:
        task, slot = self.pending.popleft()
        self._answered += 1
        self._payload_bytes -= len(task.payload)
        kind = DecodedKind(reply.pop("kind"))
        image_id, stat = reply.pop("id"), reply.pop("stat", None)
        shape = reply.pop("shape", None)
        pixels = None if shape is None else self._pixels(slot, shape)
        self.free.append(slot)
        return Decoded(
            task.key,
            kind,
            bytes.fromhex(image_id) if image_id else None,
            pixels,
            stat=tuple(stat) if stat else None,
            views=task.views or self._views,
            **reply,
        )

    def _pixels(self, slot: int, shape: list[int]) -> NDArray[np.uint8]:
        """A copy of the pixels in a slot, which the process uses again."""
        return self.slots[slot, : math.prod(shape)].reshape(shape).copy()

    def _send(self, data: bytes) -> None:
        # The end of the worker process's stdout reports its death; see DecodePool.decode.
        with contextlib.suppress(BrokenPipeError):
            assert self.process.stdin is not None
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def end(self) -> int:
        """Kill the process; its exit code."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return self.process.wait()
