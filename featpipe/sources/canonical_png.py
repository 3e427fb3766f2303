"""Pixels as PNG, always to the same bytes, so that their SHA-256 can serve as image id."""

from __future__ import annotations

import functools
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_BLOCK = 65535
"""Most bytes of a stored deflate block."""


def canonical_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode pixels as PNG, always to the same bytes, so that their SHA-256 can serve as image id.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width) or (height, width, 3)
        Grey or RGB.

    Returns
    -------
    bytes
        8-bit PNG without filters, in stored (uncompressed) deflate blocks, because compressed
        bytes may differ between zlib versions.
    """
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    raw = np.zeros((height, rows.shape[1] + 1), np.uint8)  # a row begins with its filter, 0: none
    raw[:, 1:] = rows
    data = _chunk(b"IDAT", _stored_deflate(raw.tobytes()))
    return _head(height, width, 0 if pixels.ndim == 2 else 2) + data + _END


@functools.lru_cache
def _head(height: int, width: int, colour_type: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)


def _chunk(kind: bytes, data: bytes) -> bytes:
    named = kind + data
    return struct.pack(">I", len(data)) + named + struct.pack(">I", zlib.crc32(named))


_END = _chunk(b"IEND", b"")


def _stored_deflate(raw: bytes) -> bytes:
    # RFC 1950 and 1951: blocks of at most 65,535 bytes, the last one flagged.
    blocks = [raw[i : i + _BLOCK] for i in range(0, len(raw), _BLOCK)] or [b""]
    body = b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(raw))
