"""The index of a feature store: image id to place. Derived, disposable, rebuilt when stale."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featpipe.disk import names_in, read_regular, write_atomically
from featpipe.errors import StorageError
from featpipe.ids import DIGEST_BYTES, sortable
from featpipe.space import FeatureSpace
from featpipe.store.segments import read_segment

INDEX_NAME = "index.npz"
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
    return [name.removesuffix(".h5") for name in names if name.endswith(".h5")]


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


def _read(path: Path) -> Index:
    try:
        with np.load(io.BytesIO(read_regular(path)), allow_pickle=False) as arrays:
            index = Index(**{name: arrays[name] for name in _OF_ROWS + _OF_SEGMENTS})
    # The zip container carries a CRC of each array, and damage to the container itself raises
    # anything: zlib.error, NotImplementedError, struct.error, … The index is simply made anew.
    except Exception:
        return Index()
    return index if _fits_together(index) else Index()


def _fits_together(index: Index) -> bool:
    empty = Index()
    for length, names in (len(index.ids), _OF_ROWS), (len(index.names), _OF_SEGMENTS):
        for name in names:
            found, model = getattr(index, name), getattr(empty, name)
            if found.dtype != model.dtype or found.shape != (length, *model.shape[1:]):
                return False
    return bool(((index.segment >= 0) & (index.segment < len(index.names))).all())


def _write(path: Path, index: Index) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in _OF_ROWS + _OF_SEGMENTS})
    write_atomically(path, buffer.getvalue())
