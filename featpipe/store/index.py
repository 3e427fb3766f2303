"""The index of a feature store: image id to place. Derived, disposable, rebuilt when stale."""

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

from featpipe.base.disk import names_in, read_regular, write_atomically
from featpipe.base.errors import StorageError
from featpipe.base.ids import DIGEST_BYTES, sortable
from featpipe.base.space import FeatureSpace
from featpipe.store.segments import Segment, read_segment

INDEX_NAME = "index.npz"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_OF_ROWS = ("ids", "segment", "row", "crc32")
_OF_SEGMENTS = ("names", "offsets", "counts")


@dataclass
class Index:
    """Where every row of a store lies, sorted by image id.

    Attributes
    ----------
    ids : ndarray of uint8, shape (n, 32)
    segment, row : ndarray of int64, shape (n,)
    crc32 : ndarray of uint32, shape (n,)
    names : ndarray of "S64", shape (m,)
        Digests of the segments, sorted.
    offsets, counts : ndarray of int64, shape (m,)
    """

    ids: np.ndarray = field(default_factory=lambda: np.empty((0, DIGEST_BYTES), np.uint8))
    segment: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    crc32: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    names: np.ndarray = field(default_factory=lambda: np.empty(0, "S64"))
    offsets: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Positions in this index of image ids (n, 32), -1 where absent: (n,) int64."""
        if not len(self.ids) or not len(ids):
            return np.full(len(ids), -1, np.int64)
        mine, wanted = sortable(self.ids), sortable(ids)
        place = np.minimum(np.searchsorted(mine, wanted), len(mine) - 1)
        return np.where(mine[place] == wanted, place, -1)


def load_index(folder: Path, space: FeatureSpace) -> Index:
    """Index of the segments now in ``folder``; only segments not yet indexed are opened."""
    while True:
        present = _segment_names(folder)
        try:
            return _up_to_date(folder, present, space)
        except StorageError:
            # Compaction may take a segment away between the listing and its turn.
            if set(present) <= set(_segment_names(folder)):
                raise


def _segment_names(folder: Path) -> list[str]:
    names = names_in(folder / "segments")
    stems = [name.removesuffix(".h5") for name in names if name.endswith(".h5")]
    # What has no digest for a name is no segment; 'cache verify' says so.
    return [stem for stem in stems if _DIGEST.fullmatch(stem)]


def _up_to_date(folder: Path, present: list[str], space: FeatureSpace) -> Index:
    index = _read(folder / INDEX_NAME)
    known = [name.decode() for name in index.names]
    if known == present:
        return index
    # A row that lies in two segments is indexed in one of them: when that one goes, only the
    # other still knows it.
    if not set(known) <= set(present):
        index, known = Index(), []
    index = _extended(index, known, present, folder / "segments", space)
    # Read-only caches are read without an index on disk.
    with contextlib.suppress(StorageError):
        _write(folder / INDEX_NAME, index)
    return index


def _extended(
    index: Index, known: list[str], present: list[str], folder: Path, space: FeatureSpace
) -> Index:
    number_of = {name: number for number, name in enumerate(present)}
    renumber = np.array([number_of[name] for name in known], np.int64)
    ids, row, crc32 = [index.ids], [index.row], [index.crc32]
    segment = [renumber[index.segment]]
    offsets, counts = np.zeros(len(present), np.int64), np.zeros(len(present), np.int64)
    offsets[renumber], counts[renumber] = index.offsets, index.counts
    for name in sorted(set(present) - set(known)):
        found = read_segment(folder / f"{name}.h5", space)
        number, n = number_of[name], len(found.ids)
        offsets[number], counts[number] = found.offset, n
        ids.append(found.ids)
        segment.append(np.full(n, number, np.int64))
        row.append(np.arange(n, dtype=np.int64))
        crc32.append(found.crc32)
    every = np.concatenate(ids)
    # The same row stored twice is harmless: either place will do.
    _, first = np.unique(sortable(every), return_index=True)
    return Index(
        ids=every[first],
        segment=np.concatenate(segment)[first],
        row=np.concatenate(row)[first],
        crc32=np.concatenate(crc32)[first],
        names=np.array([name.encode() for name in present], "S64"),
        offsets=offsets,
        counts=counts,
    )


def index_problem(folder: Path, segments: Mapping[str, Segment]) -> str | None:
    """What is wrong with the index on disk, given the whole segments by digest; None: nothing.

    An index that does not know all segments, or knows some that are gone, is only stale.

    Raises
    ------
    OSError
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
        mine = index.segment == number
        row = index.row[mine]
        agrees = (
            (index.offsets[number], index.counts[number]) == (segment.offset, len(segment.ids))
            and ((row >= 0) & (row < len(segment.ids))).all()
            and np.array_equal(segment.ids[row], index.ids[mine])
            and np.array_equal(segment.crc32[row], index.crc32[mine])
            and (index.find(segment.ids) >= 0).all()
        )
        if not agrees:
            return f"it contradicts the segment {segment.path.name}"
    return None


def _read(path: Path) -> Index:
    """The index on disk; an empty one where there is none, or no whole one."""
    try:
        return _parsed(read_regular(path)) or Index()
    except OSError:
        return Index()


def _sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def _parsed(sealed: bytes) -> Index | None:
    data = sealed[:-DIGEST_BYTES]
    if _sealed(data) != sealed:
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(data):
                return None
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in _OF_ROWS + _OF_SEGMENTS})
    # Anyone can write a matching digest, and what is no such archive raises anything:
    # zlib.error, NotImplementedError, struct.error, … The index is simply made anew.
    except Exception:
        return None
    return index if _fits_together(index) else None


def _fits_together(index: Index) -> bool:
    empty = Index()
    for length, names in (len(index.ids), _OF_ROWS), (len(index.names), _OF_SEGMENTS):
        for name in names:
            found, model = getattr(index, name), getattr(empty, name)
            if found.dtype != model.dtype or found.shape != (length, *model.shape[1:]):
                return False
    if not all(_DIGEST.fullmatch(name.decode("latin-1")) for name in index.names.tolist()):
        return False
    if not ((index.segment >= 0) & (index.segment < len(index.names))).all():
        return False
    ids = sortable(index.ids)
    if not (ids[:-1] < ids[1:]).all():
        return False
    limits = (index.offsets >= 0).all() and (index.counts > 0).all()
    return bool(limits and ((index.row >= 0) & (index.row < index.counts[index.segment])).all())


def _write(path: Path, index: Index) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in _OF_ROWS + _OF_SEGMENTS})
    write_atomically(path, _sealed(buffer.getvalue()))
