"""The index of a feature store: image id to place. Derived, disposable, rebuilt when stale."""

from __future__ import annotations

import contextlib
import io
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featpipe.errors import StorageError
from featpipe.space import FeatureSpace
from featpipe.disk import write_atomically
from featpipe.store.segments import DIGEST_BYTES, read_segment

INDEX_NAME = "index.npz"
_ARRAYS = ("ids", "segment", "row", "crc32", "names", "offsets", "counts")


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
        mine, wanted = _sortable(self.ids), _sortable(ids)
        place = np.minimum(np.searchsorted(mine, wanted), len(mine) - 1)
        return np.where(mine[place] == wanted, place, -1)


def load_index(folder: Path, space: FeatureSpace) -> Index:
    """Index of the segments now in ``folder``; only segments not yet indexed are opened."""
    segments = folder / "segments"
    try:
        present = sorted(path.stem for path in segments.glob("*.h5"))
    except OSError as error:
        raise StorageError(f"expected to list {segments}, but: {error.strerror}") from error
    index = _read(folder / INDEX_NAME)
    known = [name.decode() for name in index.names]
    if known == present:
        return index
    index = _updated(index, known, present, segments, space)
    # Read-only caches are read without an index on disk.
    with contextlib.suppress(StorageError):
        _write(folder / INDEX_NAME, index)
    return index


def _updated(
    index: Index, known: list[str], present: list[str], folder: Path, space: FeatureSpace
) -> Index:
    number_of = {name: number for number, name in enumerate(present)}
    renumber = np.array([number_of.get(name, -1) for name in known], np.int64)
    kept = renumber[index.segment] >= 0 if len(known) else np.zeros(len(index.ids), bool)
    ids, row, crc32 = [index.ids[kept]], [index.row[kept]], [index.crc32[kept]]
    segment = [renumber[index.segment[kept]]] if len(known) else [index.segment]
    offsets, counts = np.zeros(len(present), np.int64), np.zeros(len(present), np.int64)
    for old, name in enumerate(known):
        if name in number_of:
            offsets[number_of[name]] = index.offsets[old]
            counts[number_of[name]] = index.counts[old]
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
    _, first = np.unique(_sortable(every), return_index=True)
    return Index(
        ids=every[first],
        segment=np.concatenate(segment)[first],
        row=np.concatenate(row)[first],
        crc32=np.concatenate(crc32)[first],
        names=np.array([name.encode() for name in present], "S64"),
        offsets=offsets,
        counts=counts,
    )


def _sortable(ids: np.ndarray) -> np.ndarray:
    """Image ids (n, 32) uint8 as (n,) fixed-width bytes that NumPy can sort."""
    return np.ascontiguousarray(ids).view(f"S{DIGEST_BYTES}").reshape(-1)


def _read(path: Path) -> Index:
    # The zip container carries a CRC of each array: a damaged index is simply made anew.
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Index(**{name: arrays[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return Index()


def _write(path: Path, index: Index) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in _ARRAYS})
    write_atomically(path, buffer.getvalue())
