"""Tensors in the safetensors format, written and read one block at a time.

The library ``safetensors`` builds a whole file in memory to write it, and holds the file beside its
tensors to read it: three copies of a network of 120 million parameters. Here a file is written from
the tensors' own memory and read into it, and its digest is computed on the way. The bytes are those
that the library writes; a test compares them.

Format: 8 bytes little-endian length of the header, the header (JSON: for each tensor its dtype,
shape and where its bytes begin and end), then the tensors' bytes without gaps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.base.disk import open_regular, writing_atomically

BLOCK_BYTES = 8 * 2**20
"""What is written, read or hashed at once."""
_DTYPES = {
    # Wider types first: safetensors orders tensors so, which keeps each aligned.
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "F16": "<f2",
    "U16": "<u2",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_RANK = {np.dtype(spelling): number for number, spelling in enumerate(_DTYPES.values())}
_NAME = {np.dtype(spelling): name for name, spelling in _DTYPES.items()}
_MAX_HEADER = 100_000_000
"""Bytes; the limit of safetensors."""


@dataclass(frozen=True)
class StoredTensors:
    """Tensors as read from a file, each in memory of its own, and the SHA-256 (hex) of the file."""

    tensors: dict[str, np.ndarray]
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> str:
    """Write tensors as a safetensors file, atomically; returns the SHA-256 (hex) of its bytes.

    Raises
    ------
    StorageError
    TypeError
        A tensor has a dtype that the format does not have.
    """
    arrays = {name: _little_endian(tensor) for name, tensor in tensors.items()}
    order = sorted(arrays, key=lambda name: (_RANK[arrays[name].dtype], name))
    header = _header({name: arrays[name] for name in order})
    digest = hashlib.sha256()
    size = len(header) + sum(array.nbytes for array in arrays.values())
    parts: list[bytes | np.ndarray] = [header, *(arrays[name] for name in order)]
    with writing_atomically(path, size=size) as stream:
        for part in parts:
            for block in _blocks_of(part):
                digest.update(block)
                stream.write(block)
    return digest.hexdigest()


def _little_endian(tensor: np.ndarray) -> np.ndarray:
    array = np.asarray(tensor)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype not in _RANK:
        raise TypeError(f"expected numbers that safetensors has, found {array.dtype}")
    return array


def _header(arrays: Mapping[str, np.ndarray]) -> bytes:
    document, end = {}, 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        document[name] = {
            "dtype": _NAME[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks_of(part: bytes | np.ndarray) -> Iterator[memoryview]:
    # A tensor that is not contiguous is copied when its turn comes, so that one copy exists.
    if isinstance(part, np.ndarray):
        part = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
    whole = memoryview(part)  # type: ignore[arg-type]
    for start in range(0, len(whole), BLOCK_BYTES):
        yield whole[start : start + BLOCK_BYTES]


def read_tensors(path: Path) -> StoredTensors:
    """Read all tensors of a safetensors file.

    Raises
    ------
    OSError
        The file cannot be read, or is no regular file.
    ValueError
        It does not have the format; no more memory than the file's size was taken.
    """
    with open_regular(path) as file:
        digest = hashlib.sha256()
        size = os.fstat(file.fileno()).st_size
        start = _read(file, min(8, size), digest)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
            raise ValueError(f"expected the header of a safetensors file of {size} bytes")
        layout = _layout(_read(file, length, digest), size - 8 - length)
        tensors = {}
        for name, dtype, shape in layout:
            tensors[name] = np.empty(shape, dtype)
            _fill(file, tensors[name], digest)
    return StoredTensors(tensors, digest.hexdigest())


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a regular file, read in blocks; raises ``OSError``."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(file: BufferedReader, length: int, digest: Any) -> bytes:
    data = file.read(length)
    if len(data) < length:
        raise OSError(errno.EIO, "the file ends too early", str(file.name))
    digest.update(data)
    return data


def _fill(file: BufferedReader, array: np.ndarray, digest: Any) -> None:
    for block in _blocks_of(array):
        at = 0
        while at < len(block):
            got = file.readinto(block[at:])
            if not got:
                raise OSError(errno.EIO, "the file ends too early", str(file.name))
            at += got
        digest.update(block)


def _layout(header: bytes, size: int) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Name, dtype and shape of each tensor, in the order of their bytes.

    Raises
    ------
    ValueError
        The header is none, or its tensors do not fill ``size`` bytes without gaps and overlaps.
    """
    try:
        document: Any = json.loads(header)
        document.pop("__metadata__", None)
        entries = sorted(
            (*one["data_offsets"], name, one["dtype"], tuple(one["shape"]))
            for name, one in document.items()
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"expected the header of a safetensors file: {error}") from error
    layout, end = [], 0
    for begin, stop, name, dtype, shape in entries:
        is_shape = all(type(side) is int and side >= 0 for side in shape)
        spelling = _DTYPES.get(dtype) if isinstance(dtype, str) else None
        if spelling is None or not is_shape:
            raise ValueError(f"expected a tensor of numbers, found {name!r} {dtype} {shape}")
        found: np.dtype[Any] = np.dtype(spelling)
        if (begin, stop) != (end, end + found.itemsize * math.prod(shape)):
            raise ValueError(f"expected the bytes of {name!r} at {end}, found {begin} to {stop}")
        layout.append((name, found, shape))
        end = stop
    if end != size:
        raise ValueError(f"expected {end} bytes of tensors, found {size}")
    return layout
