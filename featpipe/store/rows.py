"""Rows of a feature store as one read-only array, memory-mapped from many segments."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import is_regular
from featpipe.base.errors import DamageError, StorageError
from featpipe.store.row_array import RowArray

_WIDE_ROW_BYTES = 4096
"""Rows of at least this size are copied singly: gathering by segment copies each row twice."""


class _SegmentGoneError(StorageError):
    """A segment is not there any more; its rows may be in another one."""


class FeatureRows(RowArray):
    """A read-only (n, *shape) array whose rows lie in memory-mapped segments.

    Indexing follows NumPy and returns NumPy arrays: a view for consecutive rows of one segment,
    a copy for all others. Only the requested rows are read, unless the index begins with an
    ellipsis or a new axis. Each row's checksum is verified when the row is first read. Where a
    segment was replaced by another since the rows were looked up, they are looked up again.

    Parameters
    ----------
    paths : list of Path
        Segment files.
    offsets, counts : ndarray of int64, shape (m,)
        Where each segment's features begin (bytes) and how many rows it holds.
    segment, row : ndarray of int64, shape (n,)
        For each row of this array, the position of its segment in ``paths`` and its row in
        that segment.
    crc32 : ndarray of uint32, shape (n,)
        Expected checksum of each row's bytes.
    row_shape : tuple of int
    dtype : dtype
        Dtype of the stored features.
    ids : ndarray of uint8, shape (n, 32)
        Image ids of the rows.
    look_up : callable
        Gives the rows of image ids as they lie now; can be pickled.
    """

    def __init__(
        self,
        paths: list[Path],
        offsets: NDArray[np.int64],
        counts: NDArray[np.int64],
        *,
        segment: NDArray[np.int64],
        row: NDArray[np.int64],
        crc32: NDArray[np.uint32],
        row_shape: tuple[int, ...],
        dtype: np.dtype,
        ids: NDArray[np.uint8],
        look_up: Callable[[NDArray[np.uint8]], FeatureRows],
    ) -> None:
        super().__init__((len(row), *row_shape), np.dtype(dtype))
        self._ids, self._look_up = ids, look_up
        self._paths, self._offsets, self._counts = paths, offsets, counts
        self._segment, self._row, self._crc32 = segment, row, crc32
        self._checked = np.zeros(len(row), dtype=bool)
        self._maps: dict[int, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"FeatureRows(shape={self.shape}, dtype={self.dtype}, segments={len(self._paths)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def select(self, index: np.ndarray) -> FeatureRows:
        """See :meth:`RowArray.select`."""
        chosen = self._choose(index)
        rows = FeatureRows(
            self._paths,
            self._offsets,
            self._counts,
            segment=self._segment[chosen],
            row=self._row[chosen],
            crc32=self._crc32[chosen],
            row_shape=self.shape[1:],
            dtype=self.dtype,
            ids=self._ids[chosen],
            look_up=self._look_up,
        )
        rows._checked = self._checked[chosen]
        return rows

    def take(self, numbers: NDArray[np.int64]) -> np.ndarray:
        """See :meth:`RowArray.take`; verified, as a view or a copy."""
        if not len(numbers):
            return np.empty((0, *self.shape[1:]), self.dtype)
        try:
            return self._gather(numbers)
        except _SegmentGoneError:
            self._find_again()
            return self._gather(numbers)

    def _find_again(self) -> None:
        """Look all rows up as they lie now; views that were handed out stay what they are."""
        now = self._look_up(self._ids)
        self._paths, self._offsets, self._counts = now._paths, now._offsets, now._counts
        self._segment, self._row, self._crc32 = now._segment, now._row, now._crc32
        # Another copy of a row has been checked by nobody yet.
        self._checked, self._maps = now._checked, now._maps

    def _gather(self, index: NDArray[np.int64]) -> np.ndarray:
        self._check(index)
        segment, row = self._segment[index], self._row[index]
        first = int(segment[0])
        if (segment == first).all():
            block = self._map(first)
            if (np.diff(row) == 1).all():
                return block[row[0] : row[-1] + 1]
            gathered: np.ndarray = block[row]
            return gathered
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        if out[0].nbytes >= _WIDE_ROW_BYTES:
            for i, (number, r) in enumerate(zip(segment.tolist(), row.tolist(), strict=True)):
                out[i] = self._map(number)[r]
            return out
        for number in np.unique(segment):
            in_segment = segment == number
            out[in_segment] = self._map(int(number))[row[in_segment]]
        return out

    def _map(self, number: int) -> np.ndarray:
        """All rows of one segment, memory-mapped on first use."""
        if number not in self._maps:
            path = self._paths[number]
            shape = (int(self._counts[number]), *self.shape[1:])
            try:
                if not is_regular(path):
                    raise DamageError(
                        f"expected a segment in {path}, found something that is no regular file; "
                        "'featpipe cache repair' sets it aside"
                    )
                mapped = np.memmap(path, self.dtype, "r", int(self._offsets[number]), shape)
            except FileNotFoundError as error:
                raise _SegmentGoneError(
                    f"expected the segment {path}, found none: it was removed while in use; "
                    "run the same command again, after 'featpipe cache repair' if that persists"
                ) from error
            except ValueError as error:
                raise DamageError(
                    f"expected {shape[0]} rows in {path}, found a shorter file "
                    f"({os.path.getsize(path)} bytes); run 'featpipe cache verify'"
                ) from error
            except OSError as error:
                raise StorageError(f"expected to map {path}, but: {error.strerror}") from error
            self._maps[number] = mapped.view(np.ndarray)
        return self._maps[number]

    def _check(self, index: NDArray[np.int64]) -> None:
        """Verify the checksums of rows that have not been verified yet."""
        for i in index[~self._checked[index]]:
            number, row = int(self._segment[i]), int(self._row[i])
            block = self._map(number)
            if zlib.crc32(block[row]) != self._crc32[i]:
                raise DamageError(
                    f"expected checksum {self._crc32[i]:08x} for row {row} of "
                    f"{self._paths[number]}, found another: the row is damaged; "
                    "run 'featpipe cache verify' to see the extent"
                )
            self._checked[i] = True
