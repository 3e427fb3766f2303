"""A decoding process as the pool sees it: tasks go in, what became of them comes out."""

from __future__ import annotations

import contextlib
import enum
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, BinaryIO, Self, cast

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import StorageError
from featpipe.base.locations import Encoded, Location, Slice
from featpipe.decoding import messages
from featpipe.decoding.worker import SLOTS


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
    """

    key: int
    path: str | None
    payload: bytes = b""
    part: tuple[int, int] | None = None

    @classmethod
    def at(cls, key: int, location: Location) -> Self:
        """The task to decode the image at a location."""
        if isinstance(location, Encoded):
            return cls(key, None, location.data)
        if isinstance(location, Slice):
            return cls(key, location.path, part=(location.offset, location.length))
        return cls(key, location.path)


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


class WorkerProcess:
    """One decoding process, its tasks, and the memory it shares pixels in.

    Parameters
    ----------
    setup : dict
        First message to the process: preprocessing, limits, known ids.
    slot_shape : tuple of int
        Shape of one picture's pixels.

    Attributes
    ----------
    pending : deque of (Task, int)
        Tasks given and not answered, oldest first, each with its slot of shared memory.
    free : list of int
        Slots without a task.
    working_since : float
        When the oldest task began, by :func:`time.monotonic`.
    is_ready : bool
        Whether the process has finished its imports.
    """

    def __init__(self, setup: dict[str, Any], slot_shape: tuple[int, ...]) -> None:
        with shared_memory(SLOTS * math.prod(slot_shape)) as shared:
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
        """What the process says in a piece of its output."""
        results = []
        for header in self.splitter.feed(piece):
            self.working_since = time.monotonic()
            if header["kind"] == "ready":
                self.is_ready = True
            else:
                results.append(self._finish(header))
        return results

    def give(self, task: Task) -> None:
        """Send a task into a free slot."""
        slot = self.free.pop()
        if not self.pending:
            self.working_since = time.monotonic()
        self.pending.append((task, slot))
        header = {"key": task.key, "path": task.path, "slot": slot, "part": task.part}
        self._send(messages.pack(header, task.payload))

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
        """Kill the process; its exit code."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        return self.process.wait()
