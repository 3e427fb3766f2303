"""Rows that have views: the same pictures' rows in the feature spaces of augmented versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import NotFoundError
from featpipe.datasets.views import Views
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows
from featpipe.store.row_array import RowArray


class ViewedRows(RowArray):
    """A read-only array of rows of view 0, with the same pictures' rows in other views.

    What does not know of views reads view 0, the pictures themselves.

    Parameters
    ----------
    rows : RowArray
        View 0.
    views : sequence of RowArray
        The other views, of the same shape and dtype; rows of one number belong to one picture.

    Attributes
    ----------
    views : tuple of RowArray
    widths : tuple of int
        How many numbers of a flattened row come from each tap.
    """

    def __init__(self, rows: RowArray, views: Sequence[RowArray]) -> None:
        super().__init__(rows.shape, rows.dtype)
        self._rows, self.views = rows, tuple(views)
        self.widths: tuple[int, ...] = getattr(rows, "widths", (int(np.prod(rows.shape[1:])),))
        for view in views:
            if (view.shape, view.dtype) != (rows.shape, rows.dtype):
                raise ValueError(
                    f"expected views of shape {rows.shape} and {rows.dtype}, found one of "
                    f"{view.shape} and {view.dtype}"
                )

    def __repr__(self) -> str:
        return f"ViewedRows(shape={self.shape}, dtype={self.dtype}, views={len(self.views)})"

    def take(self, numbers: NDArray[np.int64]) -> np.ndarray:
        """See :meth:`RowArray.take`; of view 0."""
        return self._rows.take(numbers)

    def select(self, index: np.ndarray) -> ViewedRows:
        """See :meth:`RowArray.select`; of every view."""
        return ViewedRows(self._rows.select(index), [view.select(index) for view in self.views])


def open_views(cache: Path, views: Views, ids: NDArray[np.uint8], *, remedy: str) -> list[RowArray]:
    """The rows of image ids (n, 32) in each view.

    Parameters
    ----------
    cache : Path
    views : Views
    ids : ndarray of uint8, shape (n, 32)
    remedy : str
        What to do where a picture has no row, for the message.

    Raises
    ------
    NotFoundError
        A picture has no row in one of the views.
    """
    try:
        return [open_rows(cache, spaces, ids) for spaces in views.spaces]
    except NotFoundError as error:
        each = [
            FeatureStore(cache, space).contains(ids) for spaces in views.spaces for space in spaces
        ]
        missing = int((~np.all(each, axis=0)).sum())
        raise NotFoundError(
            f"expected all {len(ids)} pictures in each of {views}, found {missing} without a row: "
            f"they were computed for other splits or pictures; {remedy}"
        ) from error
