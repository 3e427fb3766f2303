"""The index of a feature store: which segment and row hold the feature of each image id.

It is derived from the segments, may be deleted at any time and is rebuilt when stale.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import names_in, read_regular, write_atomically
from featpipe.base.errors import StorageError
from featpipe.base.ids import DIGEST_BYTES, sortable
from featpipe.base.space import FeatureSpace
from featpipe.store.segments import Segment, read_segment

INDEX_NAME = "index.npz"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROW_ARRAYS = ("ids", "segment", "row", "crc32")
_SEGMENT_ARRAYS = ("names", "offsets", "counts")


@dataclass
class Index:
    """Where every row of a store lies, sorted by image id.

    Attributes
    ----------
    ids : ndarray of uint8, shape (n, 32)
        Image ids, sorted, each once.
    segment, row : ndarray of int64, shape (n,)
        For each id, the position of its segment in ``names`` and its row in that segment.
    crc32 : ndarray of uint32, shape (n,)
        Checksum of each row's bytes.
    names : ndarray of "S64", shape (m,)
        Digests (hex) of the segments, sorted.
    offsets, counts : ndarray of int64, shape (m,)
        Where each segment's features begin (bytes) and how many rows it holds.
    """

    ids: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, DIGEST_BYTES), np.uint8))
    segment: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    row: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    crc32: NDArray[np.uint32] = field(default_factory=lambda: np.empty(0, np.uint32))
    names: NDArray[np.bytes_] = field(default_factory=lambda: np.empty(0, "S64"))
    offsets: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def find(self, ids: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Positions in this index of image ids (n, 32), -1 where absent: (n,) int64."""
        if not len(self.ids) or not len(ids):
            return np.full(len(ids), -1, np.int64)
        indexed, wanted = sortable(self.ids), sortable(ids)
        position = np.minimum(np.searchsorted(indexed, wanted), len(indexed) - 1)
        return np.where(indexed[position] == wanted, position, -1)


def load_index(folder: Path, space: FeatureSpace) -> Index:
    """Index of the segments now in ``folder``; reads only segments that are not indexed yet."""
    while True:
        present = segment_names(folder)
        try:
            return _up_to_date(folder, present, space)
        except StorageError:
            # Another process may move a segment away after it was listed and before it is read.
            if set(present) <= set(segment_names(folder)):
                raise


def segment_names(folder: Path) -> list[str]:
    """Digests (hex) of the segments that are now in a store's folder, sorted."""
    names = names_in(folder / "segments")
    stems = [name.removesuffix(".h5") for name in names if name.endswith(".h5")]
    # A file whose name is not a digest is not a segment; 'cache verify' reports it.
    return [stem for stem in stems if _DIGEST.fullmatch(stem)]


def _up_to_date(folder: Path, present: list[str], space: FeatureSpace) -> Index:
    index = _read(folder / INDEX_NAME)
    known = [name.decode() for name in index.names]
    if known == present:
        return index
    # A row stored in two segments is indexed in only one of them. If that segment is gone, the
    # index has lost the row, so it is rebuilt from all segments.
    if not set(known) <= set(present):
        index, known = Index(), []
    index = _extended(index, known, present, folder / "segments", space)
    # In a read-only cache the index stays in memory.
    with contextlib.suppress(StorageError):
        _write(folder / INDEX_NAME, index)
    return index


def _extended(
    index: Index, known: list[str], present: list[str], folder: Path, space: FeatureSpace
) -> Index:
    """``index``, which covers the ``known`` segments, extended to all ``present`` ones."""
    number_of = {name: number for number, name in enumerate(present)}
    new_numbers = np.array([number_of[name] for name in known], np.int64)
    ids, row, crc32 = [index.ids], [index.row], [index.crc32]
    segment = [new_numbers[index.segment]]
    offsets, counts = np.zeros(len(present), np.int64), np.zeros(len(present), np.int64)
    offsets[new_numbers], counts[new_numbers] = index.offsets, index.counts
    for name in sorted(set(present) - set(known)):
        added = read_segment(folder / f"{name}.h5", space)
        number, n = number_of[name], len(added.ids)
        offsets[number], counts[number] = added.offset, n
        ids.append(added.ids)
        segment.append(np.full(n, number, np.int64))
        row.append(np.arange(n, dtype=np.int64))
        crc32.append(added.crc32)
    all_ids = np.concatenate(ids)
    # Two writers may store the same row; either copy serves.
    _, first = np.unique(sortable(all_ids), return_index=True)
    return Index(
        ids=all_ids[first],
        segment=np.concatenate(segment)[first],
        row=np.concatenate(row)[first],
        crc32=np.concatenate(crc32)[first],
        names=np.array([name.encode() for name in present], "S64"),
        offsets=offsets,
        counts=counts,
    )


def index_problem(folder: Path, segments: Mapping[str, Segment]) -> str | None:
    """The problem with the index on disk, or None.

    An index that lacks a segment or lists a deleted one is stale, which is no problem.

    Parameters
    ----------
    folder : Path
        Folder of the store.
    segments : mapping of str to Segment
        The undamaged segments by digest (hex).

    Raises
    ------
    OSError
        The index exists and cannot be read.
    """
    try:
        index = _parsed(read_regular(folder / INDEX_NAME))
    except FileNotFoundError:
        return None
    if index is None:
        return "its bytes are not those of a whole index"
    for number, name in enumerate(index.names):
        segment = segments.get(name.decode(errors="replace"))
        if segment is None:
            continue
        in_segment = index.segment == number
        row = index.row[in_segment]
        agrees = (
            (index.offsets[number], index.counts[number]) == (segment.offset, len(segment.ids))
            and ((row >= 0) & (row < len(segment.ids))).all()
            and np.array_equal(segment.ids[row], index.ids[in_segment])
            and np.array_equal(segment.crc32[row], index.crc32[in_segment])
            and (index.find(segment.ids) >= 0).all()
        )
        if not agrees:
            return f"it contradicts the segment {segment.path.name}"
    return None


def _read(path: Path) -> Index:
    """The index on disk; an empty one if the file is missing, unreadable or damaged."""
    try:
        return _parsed(read_regular(path)) or Index()
    except OSError:
        return Index()


def _sealed(data: bytes) -> bytes:
    """``data`` followed by its SHA-256."""
    return data + hashlib.sha256(data).digest()


def _parsed(sealed: bytes) -> Index | None:
    """The index in the bytes of an index file; None if they are damaged."""
    data = sealed[:-DIGEST_BYTES]
    if _sealed(data) != sealed:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(data):
                return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in _ROW_ARRAYS + _SEGMENT_ARRAYS})
    # A matching digest does not make the data a valid archive, and for other data zipfile and
    # NumPy raise many kinds of error (zlib.error, NotImplementedError, struct.error, …).
    # The caller then rebuilds the index.
    except Exception:
        return None
    return index if _is_consistent(index) else None


def _is_consistent(index: Index) -> bool:
    """Whether dtypes, shapes, order and ranges of the arrays are those of an index."""
    empty = Index()
    for length, names in (len(index.ids), _ROW_ARRAYS), (len(index.names), _SEGMENT_ARRAYS):
        for name in names:
            array, model = getattr(index, name), getattr(empty, name)
            if array.dtype != model.dtype or array.shape != (length, *model.shape[1:]):
                return False
    if not all(_DIGEST.fullmatch(name.decode("latin-1")) for name in index.names.tolist()):
        return False
    if not ((index.segment >= 0) & (index.segment < len(index.names))).all():
        return False
    ids = sortable(index.ids)
    if not (ids[:-1] < ids[1:]).all():
        return False
    if not ((index.offsets >= 0).all() and (index.counts > 0).all()):
        return False
    return bool(((index.row >= 0) & (index.row < index.counts[index.segment])).all())


def _write(path: Path, index: Index) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in _ROW_ARRAYS + _SEGMENT_ARRAYS})
    write_atomically(path, _sealed(buffer.getvalue()))
