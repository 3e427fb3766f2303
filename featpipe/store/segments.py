"""Segments: immutable HDF5 files of finished rows, named by the SHA-256 of their bytes.

A segment is built in memory and written in one piece, so HDF5 never meets a full disk or a
half-written file. Readers check the layout before they use any offset from the file: each data
set is contiguous, inside the file, and not a link, filtered or virtual.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import is_regular, write_atomically
from featpipe.base.errors import DamageError, StorageError, other_version
from featpipe.base.hdf5 import read_number, read_text, write_text
from featpipe.base.ids import DIGEST_BYTES
from featpipe.base.space import FORMAT_VERSION, FeatureSpace


@dataclass(frozen=True)
class Segment:
    """What a reader needs to memory-map one segment.

    Attributes
    ----------
    path : Path
    ids : ndarray of uint8, shape (n, 32)
        Image ids, one per row.
    crc32 : ndarray of uint32, shape (n,)
        Checksum of each row's bytes.
    offset : int
        Where the features begin in the file, bytes.
    """

    path: Path
    ids: NDArray[np.uint8]
    crc32: NDArray[np.uint32]
    offset: int


def row_checksums(rows: np.ndarray) -> NDArray[np.uint32]:
    """CRC-32 of each row's bytes: (n, …) any dtype → (n,) uint32."""
    rows = np.ascontiguousarray(rows)
    flat = rows.reshape(len(rows), -1).view(np.uint8)
    return np.fromiter((zlib.crc32(row.data) for row in flat), dtype=np.uint32, count=len(rows))


def build_segment(
    space: FeatureSpace, ids: NDArray[np.uint8], rows: np.ndarray, provenance: dict[str, str]
) -> bytes:
    """Bytes of a segment file.

    Parameters
    ----------
    space : FeatureSpace
    ids : ndarray of uint8, shape (n, 32)
        Image ids, one per row.
    rows : ndarray of ``space.dtype``, shape (n, *space.shape)
        Features of the images.
    provenance : dict of str to str
        Versions, device, host and time, as information for people; not part of the space.

    Raises
    ------
    ValueError
        The arrays do not fit the space or each other.
    """
    if rows.shape[1:] != space.shape or rows.dtype != space.dtype or len(ids) != len(rows):
        raise ValueError(f"rows {rows.shape} {rows.dtype} do not fit {space.shape} {space.dtype}")
    buffer = io.BytesIO()
    # Old readers need the file layout of HDF5 1.8.
    with h5py.File(buffer, "w", libver=("earliest", "v108")) as file:
        file.attrs["format_version"] = FORMAT_VERSION
        write_text(file, "space", space.canonical_json)
        write_text(file, "space_id", space.id)
        write_text(file, "provenance", json.dumps(provenance, sort_keys=True))
        file.create_dataset("image_sha256", data=ids, dtype=np.uint8)
        file.create_dataset("crc32", data=row_checksums(rows), dtype=np.uint32)
        file.create_dataset("features", data=rows)
    return buffer.getvalue()


def write_segment(folder: Path, data: bytes) -> Path:
    """Store a segment under the SHA-256 of its bytes; equal segments become one file."""
    path = folder / f"{hashlib.sha256(data).hexdigest()}.h5"
    # An existing file of this name may be damaged, so its digest is verified.
    if not path.exists() or file_digest(path) != path.stem:
        write_atomically(path, data, mode=0o444)
    return path


def read_segment(path: Path, space: FeatureSpace) -> Segment:
    """Read a segment's ids, checksums and layout, and verify that they fit the space.

    Raises
    ------
    DamageError
        The file is not a segment of this space, or refers to data outside itself.
    StorageError
        The file cannot be read.
    """
    try:
        if not is_regular(path):
            raise _damaged(path, "something that is no regular file")
        with h5py.File(path, "r", locking=False) as file:
            return _read_checked(file, path, space)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        # Errors of the operating system have an errno; HDF5's errors about the content have none.
        if isinstance(error, OSError) and error.errno:
            raise _unreadable(path, error) from error
        raise _damaged(path, str(error).split("\n")[0]) from error


def whole_rows(segment: Segment, space: FeatureSpace) -> Iterator[np.ndarray | None]:
    """Each row of a segment, shape ``space.shape``; None if its checksum does not match.

    Rows are read, not memory-mapped: a bad sector gives None; in a mapping it kills the process.

    Raises
    ------
    StorageError
        The file cannot be opened.
    """
    dtype = np.dtype(space.dtype)
    nbytes = dtype.itemsize * math.prod(space.shape)
    try:
        file = open(segment.path, "rb")  # noqa: SIM115
    except OSError as error:
        raise _unreadable(segment.path, error) from error
    with file:
        for number, checksum in enumerate(segment.crc32):
            try:
                file.seek(segment.offset + number * nbytes)
                data = file.read(nbytes)
            except OSError:
                data = b""
            is_intact = len(data) == nbytes and zlib.crc32(data) == checksum
            yield np.frombuffer(data, dtype).reshape(space.shape) if is_intact else None


def stored_space(path: Path) -> FeatureSpace:
    """The feature space that a segment records.

    Raises
    ------
    DamageError
        The file cannot be read, or records no valid feature space.
    """
    try:
        if not is_regular(path):
            raise _damaged(path, "something that is no regular file")
        with h5py.File(path, "r", locking=False) as file:
            return FeatureSpace.from_json(read_text(file, "space"))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, str(error).split("\n")[0]) from error


def stored_provenance(path: Path) -> dict[str, str]:
    """Where a segment's rows come from; raises as :func:`stored_space`."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return dict(json.loads(read_text(file, "provenance")))
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _damaged(path, str(error).split("\n")[0]) from error


def _read_checked(file: h5py.File, path: Path, space: FeatureSpace) -> Segment:
    version = read_number(file, "format_version")
    if version != FORMAT_VERSION:
        raise _damaged(path, other_version("format version", version, FORMAT_VERSION))
    recorded = read_text(file, "space_id"), read_text(file, "space")
    if recorded != (space.id, space.canonical_json):
        raise _damaged(path, f"it belongs to another feature space than {space.name}")
    size = path.stat().st_size
    features = _plain_dataset(file, "features", path, size)
    n = features.shape[0] if features.shape else 0
    if not n or features.shape != (n, *space.shape) or features.dtype != np.dtype(space.dtype):
        raise _damaged(path, f"features are {features.dtype} {features.shape}")
    ids = _plain_dataset(file, "image_sha256", path, size)
    crc32 = _plain_dataset(file, "crc32", path, size)
    if ids.shape != (n, DIGEST_BYTES) or ids.dtype != np.uint8:
        raise _damaged(path, f"image ids are {ids.dtype} {ids.shape}")
    if crc32.shape != (n,) or crc32.dtype != np.uint32:
        raise _damaged(path, f"checksums are {crc32.dtype} {crc32.shape}")
    return Segment(path, ids[()], crc32[()], features.id.get_offset() or 0)


def _plain_dataset(file: h5py.File, name: str, path: Path, file_size: int) -> h5py.Dataset:
    """A data set that is stored in this file itself, uncompressed and contiguous."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise _damaged(path, f"'{name}' is missing or a link to somewhere else")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise _damaged(path, f"'{name}' is not a data set")
    plain = not (dataset.is_virtual or dataset.external or dataset.chunks)
    plain = plain and dataset.id.get_create_plist().get_nfilters() == 0
    if not plain or dataset.dtype.kind not in "uif" or not dataset.dtype.isnative:
        raise _damaged(path, f"'{name}' is not one plain, contiguous block of numbers")
    offset = dataset.id.get_offset()
    nbytes = dataset.dtype.itemsize * int(np.prod(dataset.shape, dtype=object))
    if nbytes and (offset is None or offset + nbytes > file_size):
        raise _damaged(path, f"'{name}' declares {nbytes} bytes, more than the file holds")
    return dataset


def _damaged(path: Path, why: str) -> DamageError:
    return DamageError(
        f"expected a whole segment in {path}, found: {why}; "
        "run 'featpipe cache verify' to see the extent, or remove the file and extract again"
    )


def _unreadable(path: Path, error: OSError) -> StorageError:
    reason = os.strerror(error.errno or 0)
    return StorageError(
        f"expected to read {path}, but: {reason}; run the same command again once that is mended"
    )


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes.

    Raises
    ------
    StorageError
        The file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
