"""Pixels as PNG, always to the same bytes, so that their SHA-256 can serve as image id."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray


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
    colour_type = 0 if pixels.ndim == 2 else 2
    rows = pixels.reshape(height, -1)
    raw = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", _stored_deflate(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _stored_deflate(raw: bytes) -> bytes:
    # RFC 1950 and 1951: blocks of at most 65,535 bytes, the last one flagged.
    blocks = [raw[i : i + 65535] for i in range(0, len(raw), 65535)] or [b""]
    body = b"".join(
        struct.pack("<BHH", i == len(blocks) - 1, len(block), len(block) ^ 0xFFFF) + block
        for i, block in enumerate(blocks)
    )
    return b"\x78\x01" + body + struct.pack(">I", zlib.adler32(raw))
