"""Messages between the pool and a worker: a JSON header and raw bytes, nothing executable."""

from __future__ import annotations

import json
import struct
from typing import Any, BinaryIO

_LENGTHS = struct.Struct("<II")


def pack(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame: two lengths, the header as ASCII JSON (any file name survives), the payload."""
    text = json.dumps(header).encode("ascii")
    return _LENGTHS.pack(len(text), len(payload)) + text + payload


def read(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Next frame from a blocking stream; None at its end."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_size, payload_size = _LENGTHS.unpack(lengths)
    body = stream.read(header_size + payload_size)
    if len(body) < header_size + payload_size:
        return None
    return json.loads(body[:header_size]), body[header_size:]


class Splitter:
    """Cuts frames without payload out of the pieces a non-blocking read gives."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """Headers of the frames that ``piece`` completes."""
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
