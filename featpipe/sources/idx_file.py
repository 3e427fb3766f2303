"""One idx file: an array of bytes behind a header that says its shape, plain or in gzip."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import read_regular
from featpipe.base.errors import DataError, StorageError
from featpipe.base.hardware import free_memory
from featpipe.base.text import escape

_GZIP = b"\x1f\x8b"
_GZIP_RATIO = 1032
"""Deflate makes at most so many bytes of one."""
_MEMORY_DIVISOR = 2
_UNSIGNED_BYTE = 0x08
_TYPES = {
    _UNSIGNED_BYTE: "unsigned bytes",
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}
IMAGES, LABELS = 3, 1
"""Dimensions of a file of images (number, height, width) and of one of labels (number)."""
_WHAT = {IMAGES: "pictures (number, height, width)", LABELS: "labels (number)"}
_HINTS = {
    (IMAGES, LABELS): "a file of labels begins like that",
    (LABELS, IMAGES): "a file of pictures begins like that",
    (IMAGES, 4): "colours are not read from idx files: save the pictures as PNG",
}


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes.

    Whether it is gzip, its first bytes say and not its name: some programs unpack what they
    download and keep the name.

    Parameters
    ----------
    path : Path
    dimensions : {IMAGES, LABELS}
        What the header must say.

    Returns
    -------
    ndarray of uint8
        Read-only.

    Raises
    ------
    DataError
        The file is none of that kind, or holds fewer or more bytes than its header says.
    StorageError
        The file cannot be read.
    """
    shown = escape(str(path))
    try:
        _require_memory(path.stat().st_size, shown)
        data = read_regular(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    packed = data.startswith(_GZIP)
    stream: BinaryIO = io.BytesIO(data)
    if packed:
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]
    try:
        shape = _read_shape(stream, dimensions, shown)
        return _read_array(stream, shape, len(data) * (_GZIP_RATIO if packed else 1), shown)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"expected whole gzip data in {shown}, found damage ({error}); download or copy it "
            "again"
        ) from error


def _require_memory(nbytes: int, shown: str) -> None:
    free = free_memory() // _MEMORY_DIVISOR
    if nbytes > free:
        raise DataError(
            f"expected {shown} to fit into {free / 2**30:.1f} GiB, half of the free memory, found "
            f"{nbytes / 2**30:.1f} GiB in it; free some, or save its pictures as files"
        )


def _read_shape(stream: BinaryIO, dimensions: int, shown: str) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or not magic[3]:
        raise DataError(
            f"expected an idx file in {shown}, found none: it begins with "
            f"{magic.hex(' ') or 'nothing'} and not with 00 00 08 0{dimensions}; download or copy "
            "it again"
        )
    if magic[2] != _UNSIGNED_BYTE:
        raise DataError(
            f"expected {_TYPES[_UNSIGNED_BYTE]} in {shown}, found {_TYPES[magic[2]]}; only bytes "
            "are pixels and labels"
        )
    if magic[3] != dimensions:
        hint = _HINTS.get((dimensions, magic[3]), "it is not what its name says")
        raise DataError(
            f"expected {_WHAT[dimensions]} in {shown}, found an array of {magic[3]} dimensions; "
            f"{hint}"
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(
            f"expected the sizes of {dimensions} dimensions in {shown}, found its end; download or "
            "copy it again"
        )
    shape = struct.unpack(f">{dimensions}I", sizes)
    if not all(shape[1:]):
        raise DataError(
            f"expected pictures with pixels in {shown}, found {shape[1]} x {shape[2]}; download or "
            "copy it again"
        )
    return shape


def _read_array(
    stream: BinaryIO, shape: tuple[int, ...], most: int, shown: str
) -> NDArray[np.uint8]:
    """The bytes behind the header; ``most`` are as many as the file can hold."""
    expected = math.prod(shape)
    said = f"expected {expected} bytes ({' x '.join(map(str, shape))}) after the header of {shown}"
    # Before memory for them is asked for.
    if expected > most:
        raise DataError(
            f"{said}, found a file too small to hold them; it is cut short or damaged: download or "
            "copy it again"
        )
    _require_memory(expected, shown)
    body = stream.read(expected)
    if len(body) < expected:
        raise DataError(
            f"{said}, found {len(body)}; it is cut short or damaged: download or copy it again"
        )
    # Also lets gzip compare its checksum.
    if stream.read(1):
        raise DataError(f"{said}, found more; it is damaged: download or copy it again")
    return np.frombuffer(body, np.uint8).reshape(shape)
