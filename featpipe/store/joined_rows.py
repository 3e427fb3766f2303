"""Rows of several feature stores side by side, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.space import FeatureSpace
from featpipe.store.feature_store import FeatureStore
from featpipe.store.row_array import RowArray
from featpipe.store.rows import FeatureRows


class JoinedRows(RowArray):
    """A read-only (n, d) array: the flattened rows of several arrays of n rows, side by side.

    Nothing is read before it is asked for. What is returned is a copy, in the widest dtype of the
    parts.

    Parameters
    ----------
    parts : sequence of FeatureRows
        At least one; the rows of one number belong to one picture.

    Attributes
    ----------
    widths : tuple of int
        Columns of each part, in order.
    """

    def __init__(self, parts: Sequence[FeatureRows]) -> None:
        self._parts = list(parts)
        self.widths = tuple(int(np.prod(part.shape[1:])) for part in parts)
        lengths = {len(part) for part in parts}
        if len(lengths) != 1:
            raise ValueError(f"expected parts of equal length, found {sorted(lengths)} rows")
        dtype = np.result_type(*(part.dtype for part in parts))
        super().__init__((lengths.pop(), sum(self.widths)), dtype)

    def __repr__(self) -> str:
        return f"JoinedRows(shape={self.shape}, dtype={self.dtype}, widths={self.widths})"

    def take(self, numbers: NDArray[np.int64]) -> np.ndarray:
        """See :meth:`RowArray.take`."""
        joined, start = np.empty((len(numbers), *self.shape[1:]), self.dtype), 0
        for part, width in zip(self._parts, self.widths, strict=True):
            columns = slice(start, start + width)
            joined[:, columns] = part.take(numbers).reshape(len(numbers), width)
            start += width
        return joined

    def select(self, index: np.ndarray) -> JoinedRows:
        """See :meth:`RowArray.select`."""
        return JoinedRows([part.select(index) for part in self._parts])


def open_rows(cache: Path, spaces: Sequence[FeatureSpace], ids: NDArray[np.uint8]) -> RowArray:
    """The rows of image ids (n, 32) in one feature space, or of several side by side.

    Returns
    -------
    RowArray
        ``FeatureRows`` of shape (n, *space.shape), or ``JoinedRows`` of shape (n, d).

    Raises
    ------
    NotFoundError
        An image has no row in one of the stores.
    """
    parts = [FeatureStore(cache, space).rows(ids) for space in spaces]
    return parts[0] if len(parts) == 1 else JoinedRows(parts)
