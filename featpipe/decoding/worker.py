"""The worker process: reads, hashes and decodes one image after another.

The pool starts it as ``python -m featpipe.decoding.worker``, so that it imports neither the
caller's main module nor torch. It writes pixels into shared memory and all else to stdout, as
frames. A frame may hold several tasks, and one the replies to several: messages cost more time
than small images do. Which image it is at stands in shared memory too, so that the pool blames the
right one if the process dies before it replies.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import file_fingerprint, read_regular
from featpipe.base.errors import BadImageError
from featpipe.base.space import Augmentation, Preprocessing
from featpipe.decoding import messages
from featpipe.decoding.pixels import load_pixels
from featpipe.decoding.views import load_views

PROGRESS_BYTES = 64
"""Of the shared memory, before the pixels: see :func:`progress_in`."""
_REPLY_AFTER_S = 0.02
"""Replies wait at most this long for those to the other tasks of their frame, seconds."""


Load = Callable[[bytes, bytes, list[int] | None], NDArray[np.uint8]]


def progress_in(memory: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """What the worker process says while it works, in shared memory.

    Returns
    -------
    begun : ndarray of int64, shape (1,)
        How many images it has begun.
    since : ndarray of float64, shape (1,)
        When it began the last one, by :func:`time.monotonic`, the same clock in all processes.
    """
    return np.frombuffer(memory, np.int64, 1), np.frombuffer(memory, np.float64, 1, offset=8)


def main() -> None:
    """Answer the tasks of each frame on stdin with replies on stdout, until stdin ends."""
    # Ctrl-C and batch systems signal the whole process group, but the parent decides when to
    # stop. If the parent dies, stdin ends and so does this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # A decoder may print, in Python or C: its output must not mix with the frames.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    first = messages.read(stdin)
    if first is None:
        return
    setup, _ = first
    _cap_memory(setup["memory_bytes"])
    load = _loader(setup, lambda: since.__setitem__(0, time.monotonic()))
    shape = setup["slots"]
    memory = mmap.mmap(setup["pixels_fd"], PROGRESS_BYTES + math.prod(shape))
    begun, since = progress_in(memory)
    slots = np.frombuffer(memory, np.uint8, offset=PROGRESS_BYTES).reshape(shape)
    known = np.empty(0, "S32")
    if setup["known_count"]:
        known_bytes = mmap.mmap(setup["known_fd"], setup["known_count"] * 32, prot=mmap.PROT_READ)
        known = np.frombuffer(known_bytes, "S32")
    _send(stdout, {"kind": "ready"})
    # From here on only C libraries write to stderr. Replies carry the errors, so drop that output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (frame := messages.read(stdin)) is not None:
        header, payloads = frame
        replies, start = [], 0
        replied = time.monotonic()
        for task in header["tasks"]:
            since[0] = time.monotonic()
            begun[0] += 1
            payload = payloads[start : start + task["size"]]
            start += task["size"]
            slot = slots[task["slot"]]
            replies.append(_process(task, payload, known, slot, load))
            if time.monotonic() - replied > _REPLY_AFTER_S:
                _send(stdout, {"kind": "replies", "replies": replies})
                replies, replied = [], time.monotonic()
        if replies:
            _send(stdout, {"kind": "replies", "replies": replies})


def _send(stream: BinaryIO, header: dict[str, Any]) -> None:
    stream.write(messages.pack(header))
    stream.flush()


def _loader(setup: dict[str, Any], on_view: Callable[[], None]) -> Load:
    """From an image's bytes, its id and the numbers of views to pixels (views, h, w, 3)."""
    preprocessing, max_pixels = Preprocessing(**setup["preprocessing"]), setup["max_pixels"]
    if setup["augmentation"] is None:
        return lambda data, *_: load_pixels(data, preprocessing, max_pixels=max_pixels)[None]
    augmentation = Augmentation(**setup["augmentation"])
    return lambda data, image_id, views: load_views(
        data,
        preprocessing,
        augmentation,
        views or setup["views"],
        image_id,
        max_pixels=max_pixels,
        on_view=on_view,
    )


def _process(
    task: dict[str, Any],
    payload: bytes,
    known: NDArray[np.bytes_],
    slot: NDArray[np.uint8],
    load: Load,
) -> dict[str, Any]:
    reply: dict[str, Any] = {"id": None}
    started = time.perf_counter()
    try:
        data = payload if task["path"] is None else _read(task["path"], task["part"], reply)
        image_id = hashlib.sha256(data).digest()
        reply["id"] = image_id.hex()
        reply["read_s"] = time.perf_counter() - started
        if _is_known(known, image_id):
            return {**reply, "kind": "known"}
        if task["image_id"] not in (None, reply["id"]):
            raise BadImageError("read", "its content has changed")
        started = time.perf_counter()
        pixels = load(data, image_id, task["views"])
        slot[: pixels.size] = pixels.reshape(-1)
        reply["shape"] = pixels.shape
        return {**reply, "kind": "pixels", "decode_s": time.perf_counter() - started}
    except BadImageError as error:
        said = {"stage": error.stage, "reason": error.reason, "detail": error.detail}
        return {**reply, "kind": "bad", **said}
    except MemoryError:
        reason = "needs more memory than one image may take"
        return {**reply, "kind": "bad", "stage": "decode", "reason": reason}


def _read(path: str, part: list[int] | None, reply: dict[str, Any]) -> bytes:
    """The file's bytes, or a part of them.

    Also adds the file's fingerprint, taken before reading, to the reply.
    """
    try:
        status = os.stat(path)
        if not os.path.isfile(path):
            raise BadImageError("read", "not a regular file")
        reply["stat"] = file_fingerprint(status)
        offset, length = part or (0, None)
        return read_regular(Path(path), offset=offset, length=length)
    except OSError as error:
        raise BadImageError("read", error.strerror or str(error)) from error


def _is_known(known: NDArray[np.bytes_], image_id: bytes) -> bool:
    position = int(np.searchsorted(known, np.bytes_(image_id))) if len(known) else 0
    # Compare a slice, not an element: NumPy strips trailing zero bytes from an element, and an
    # id may end in one.
    return known[position : position + 1].tobytes() == image_id


def _cap_memory(limit: int) -> None:
    # Some systems do not let a process limit its own address space.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    main()
