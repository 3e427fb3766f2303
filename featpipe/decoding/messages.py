"""Messages between the pool and a worker process: a JSON header and raw bytes, never a pickle."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_LENGTHS = struct.Struct("<II")


def pack(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame: two lengths, the header as ASCII JSON, the payload.

    ASCII JSON escapes undecodable bytes in file names, so every file name survives.
    """
    text = json.dumps(header).encode("ascii")
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame of a blocking stream; None at the end of the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_size, payload_size = _LENGTHS.unpack(lengths)
    body = stream.read(header_size + payload_size)
    if len(body) < header_size + payload_size:
        return None
    return json.loads(body[:header_size]), body[header_size:]


class Splitter:
    """Assembles frames without payload from the pieces of bytes that partial reads return."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """Headers of all frames that ``piece`` completes."""
        self._buffer += piece
        headers = []
        while len(self._buffer) >= _LENGTHS.size:
            header_size, payload_size = _LENGTHS.unpack_from(self._buffer)
            end = _LENGTHS.size + header_size + payload_size
            if len(self._buffer) < end:
                break
            headers.append(json.loads(self._buffer[_LENGTHS.size : _LENGTHS.size + header_size]))
            del self._buffer[:end]
        return headers
