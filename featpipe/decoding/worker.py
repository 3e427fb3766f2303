"""The worker process: reads, hashes and decodes one image after another.

The pool starts it as ``python -m featpipe.decoding.worker``, so that it imports neither the
caller's main module nor torch. It writes pixels into shared memory and all else to stdout, as
frames.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import file_fingerprint, read_regular
from featpipe.base.errors import BadImageError
from featpipe.base.space import Preprocessing
from featpipe.decoding import messages
from featpipe.decoding.pixels import load_pixels

SLOTS = 2
"""Shared memory slots of a worker process: one for the current task, one for the next."""


def main() -> None:
    """Answer each frame on stdin with one on stdout, until stdin ends."""
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
    preprocessing = Preprocessing(**setup["preprocessing"])
    size = preprocessing.size
    memory = mmap.mmap(setup["pixels_fd"], SLOTS * size * size * 3)
    slots = np.frombuffer(memory, np.uint8).reshape(SLOTS, size, size, 3)
    known = np.empty(0, "S32")
    if setup["known_count"]:
        known_bytes = mmap.mmap(setup["known_fd"], setup["known_count"] * 32, prot=mmap.PROT_READ)
        known = np.frombuffer(known_bytes, "S32")
    _send(stdout, {"kind": "ready"})
    # From here on only C libraries write to stderr. Replies carry the errors, so drop that output.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while (frame := messages.read(stdin)) is not None:
        task, payload = frame
        slot = slots[task["slot"]]
        reply = _process(task, payload, known, slot, preprocessing, setup["max_pixels"])
        _send(stdout, reply)


def _send(stream: BinaryIO, header: dict[str, Any]) -> None:
    stream.write(messages.pack(header))
    stream.flush()


def _process(
    task: dict[str, Any],
    payload: bytes,
    known: NDArray[np.bytes_],
    slot: NDArray[np.uint8],
    preprocessing: Preprocessing,
    max_pixels: int,
) -> dict[str, Any]:
    reply: dict[str, Any] = {"key": task["key"], "id": None}
    started = time.perf_counter()
    try:
        data = payload if task["path"] is None else _read(task["path"], task["part"], reply)
        image_id = hashlib.sha256(data).digest()
        reply["id"] = image_id.hex()
        reply["read_s"] = time.perf_counter() - started
        if _is_known(known, image_id):
            return {**reply, "kind": "known"}
        started = time.perf_counter()
        slot[...] = load_pixels(data, preprocessing, max_pixels=max_pixels)
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
