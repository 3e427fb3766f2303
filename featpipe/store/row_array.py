"""What read-only arrays of rows have in common: NumPy's indexing, of which only rows are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RowArray(ABC):
    """A read-only (n, *shape) array.

    Indexing follows NumPy and returns NumPy arrays. Only the requested rows are read, unless the
    index begins with an ellipsis or a new axis.

    Attributes
    ----------
    shape : tuple of int
        Rows come first.
    dtype : dtype
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self._numbers = np.arange(shape[0])

    @property
    def ndim(self) -> int:
        """Number of axes, rows included."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all rows in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> np.ndarray:
        parts = index if isinstance(index, tuple) else (index,)
        selected: np.ndarray
        if not parts or parts[0] is None or parts[0] is Ellipsis:
            selected = self[:][index]
            return selected
        first, *rest = parts
        chosen = self._choose(first)
        rows = self.take(chosen.reshape(-1))
        if not rest:
            return rows.reshape(*chosen.shape, *self.shape[1:])
        # Replace only the row part of the index; NumPy combines it with the other parts.
        position = np.arange(chosen.size).reshape(chosen.shape)
        selected = rows[(slice(None) if isinstance(first, slice) else position, *rest)]
        return selected

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype, copy=True if copy else None)

    @abstractmethod
    def take(self, numbers: NDArray[np.int64]) -> np.ndarray:
        """The rows of these numbers (m,), from 0 to n - 1: (m, *shape)."""

    @abstractmethod
    def select(self, index: np.ndarray) -> RowArray:
        """The rows that an index of the first axis selects, in that order, none of them read."""

    def _choose(self, index: Any) -> NDArray[np.int64]:
        """Numbers of the rows that an index of the first axis selects, in its shape."""
        mask = np.asarray(index)
        if mask.dtype == bool and mask.shape != (len(self),):
            raise IndexError(f"expected a mask of {len(self)} rows, found {mask.shape}")
        return np.asarray(self._numbers[(index,)])
