"""Batches of feature rows for training: rows are held in memory if they fit, else streamed.

In both cases rows keep their stored dtype until they go into a batch. A batch is float32 and
centred, in a buffer that the next batch overwrites. NumPy draws the order of the rows, so it does
not depend on the device.

Where rows have views, each pass over them takes one of every row's views, drawn anew. Statistics
and :meth:`FeatureRowSet.in_order` are of view 0, the rows themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featpipe.base.hardware import free_memory
from featpipe.heads.base import (
    columns_of,
    mean_and_scale_of,
    side_by_side,
    views_of,
    widths_of,
)

Batch = tuple[torch.Tensor, torch.Tensor]
"""Rows (b, d) float32 and their classes (b,) int64, on the device."""

HELD_SHARE = 0.5
"""Share of the free memory that held rows may take; more are streamed."""
_BLOCK_BYTES = 64 * 2**20
_PIECE_BYTES = 16 * 2**20
"""Size of the float64 buffer that sums rows for the mean and scale."""
_BLOCKS_AT_ONCE = 4
"""Blocks that are in memory at the same time, their rows shuffled together."""


def feature_rows(X: Any, y: NDArray[np.int64], device: str, *, reserved: int = 0) -> FeatureRowSet:
    """Rows (n, …) and classes (n,), held on the device or the CPU if they fit, else streamed.

    All views count where there are some. ``reserved`` is the part of the device's free memory
    (bytes) that training itself will take.
    """
    if fits(X, device, reserved=reserved):
        return HeldRows(X, y, device, home=device)
    if device != "cpu" and fits(X, "cpu"):
        return HeldRows(X, y, device, home="cpu")
    return StreamedRows(X, y, device)


def fits(X: Any, device: str, *, reserved: int = 0) -> bool:
    """Whether rows and their views, as stored, fit into the share of a device's free memory."""
    stored = _row_bytes(X) * len(X) * (1 + len(views_of(X)))
    return stored <= HELD_SHARE * (free_memory(device) - reserved)


class FeatureRowSet(ABC):
    """Labelled rows of d features.

    Attributes
    ----------
    X : array-like, shape (n, …)
        The rows as stored; an array in memory if they are held there.
    views : tuple of array-like
        The same rows in their other views.
    y : Tensor of int64, shape (n,)
        Class indices, on the device.
    widths : tuple of int
        Features that come from each tap; they sum to d.
    home : str
        The device whose memory the rows are read from.
    whereabouts : str
        Where the rows lie during training, for messages.
    """

    X: Any
    y: torch.Tensor
    home = "cpu"
    whereabouts = "streamed from the cache"

    def __init__(self, X: Any, y: NDArray[np.int64], device: str) -> None:
        self.X, self.views, self.device = X, views_of(X), device
        self.y = torch.from_numpy(y).to(device)
        self.widths = widths_of(X)
        self.width = sum(self.widths)
        self.dtype = torch.from_numpy(np.empty(0, X.dtype)).dtype
        self._mean = torch.zeros(self.width, device=device)
        self._scale: torch.Tensor | None = None
        self._centred = torch.empty(0, self.width, device=device)

    def __len__(self) -> int:
        return len(self.y)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and their views as they are stored."""
        return len(self) * (1 + len(self.views)) * self.width * self.dtype.itemsize

    def centre_on(self, mean: NDArray[np.float32]) -> None:
        """Subtract ``mean`` (d,) from the rows of all later batches."""
        self._mean = torch.from_numpy(mean).to(self.device)

    def divide_by(self, scale: NDArray[np.float32]) -> None:
        """Divide the centred rows of all later batches by ``scale`` (d,)."""
        self._scale = torch.from_numpy(scale).to(self.device)

    def mean_and_scale(
        self, groups: int | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """:func:`featpipe.heads.base.mean_and_scale` of the stored rows.

        With ``groups``, features that follow each other have a mean in common: (groups,), such as
        the pixels of a channel.

        PyTorch, because it converts float16 to float64 several times faster than NumPy. Rows that
        a CUDA device holds are summed there.
        """
        sums, squares = np.split(self._sums().cpu().numpy(), [self.width])
        if groups is not None:
            each = self.width // groups
            sums = sums.reshape(groups, each).sum(axis=1)
            return mean_and_scale_of(sums, float(squares.sum()), len(self) * each)
        return side_by_side(
            [
                mean_and_scale_of(sums[columns], float(of_tap), len(self))
                for columns, of_tap in zip(columns_of(self.widths), squares, strict=True)
            ]
        )

    def _sums(self) -> torch.Tensor:
        """Sums (d,) of the features, then of the squares of each tap's, float64."""
        # Apple's GPUs have no float64, so rows held there are copied.
        place = self.home if self.home.startswith("cuda") else "cpu"
        taps = columns_of(self.widths)
        sums = torch.zeros(self.width + len(taps), dtype=torch.float64, device=place)
        step = max(1, _PIECE_BYTES // (8 * max(1, self.width)))
        shape = min(step, len(self)), self.width
        buffer = torch.empty(shape, dtype=torch.float64, device=place)
        for _, rows in self._stored(step):
            # To the place first: a device's copy converts before it sends.
            wide = buffer[: len(rows)].copy_(rows.to(place))
            sums[: self.width] += wide.sum(dim=0)
            for i, columns in enumerate(taps):
                flat = wide[:, columns].reshape(-1)
                sums[self.width + i] += flat @ flat
        return sums

    @abstractmethod
    def shuffled(self, order: np.random.Generator, size: int) -> Iterator[Batch]:
        """Every row once, in one of its views, in random order, in batches of ``size`` or fewer."""

    def _drawn_views(self, order: np.random.Generator) -> NDArray[np.int64] | None:
        """The view of each row that the next pass takes, (n,); None where there are no views.

        A child of ``order`` draws them: the order of the rows is the same with and without views,
        and held rows come in the same views as streamed ones.
        """
        if not self.views:
            return None
        (child,) = order.spawn(1)
        return child.integers(1 + len(self.views), size=len(self))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every row once, in stored order, in batches of at most ``size`` rows."""
        for start, rows in self._stored(size):
            yield self._centre(rows), self.y[start : start + len(rows)]

    @abstractmethod
    def _stored(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        """Blocks of at most ``size`` rows, in stored order and dtype: (first row's index, rows)."""

    def _centre(self, rows: torch.Tensor) -> torch.Tensor:
        # One buffer for all batches: allocating this much memory costs more than the arithmetic.
        if len(self._centred) < len(rows):
            self._centred = torch.empty(len(rows), self.width, device=self.device)
        centred = self._centred[: len(rows)].copy_(rows).sub_(self._mean)
        return centred if self._scale is None else centred.div_(self._scale)


class HeldRows(FeatureRowSet):
    """Rows that are read once and held on one device.

    Parameters
    ----------
    X : array-like, shape (n, …)
        Rows in their stored dtype.
    y : ndarray of int64, shape (n,)
        Class indices.
    device : str
        Where batches are delivered.
    home : str
        Where the rows are held: ``device`` or ``cpu``.
    """

    def __init__(self, X: Any, y: NDArray[np.int64], device: str, *, home: str) -> None:
        super().__init__(X, y, device)
        self.home, self.whereabouts = home, f"held in memory ({home})"
        each = (X, *self.views)
        # Row i of view v is row v * n + i.
        self._rows = torch.empty(len(each) * len(X), self.width, dtype=self.dtype, device=home)
        for view, rows in enumerate(each):
            self._fill(self._rows[view * len(X) : (view + 1) * len(X)], rows)
        if home == "cpu":
            self.X = self._rows[: len(X)].numpy()
        self._taken = torch.empty(0, self.width, dtype=self.dtype, device=home)

    def _fill(self, place: torch.Tensor, rows: Any) -> None:
        """Read rows (n, …) into a tensor (n, d)."""
        for start, stop in _blocks(rows):
            block = np.asarray(rows[start:stop]).reshape(stop - start, -1)
            if self.home == "cpu":
                place[start:stop].numpy()[:] = block
            else:
                place[start:stop] = torch.from_numpy(np.array(block))

    def shuffled(self, order: np.random.Generator, size: int) -> Iterator[Batch]:
        """See :meth:`FeatureRowSet.shuffled`."""
        if len(self._taken) < min(size, len(self)):
            self._taken = self._rows.new_empty(min(size, len(self)), self.width)
        drawn = self._drawn_views(order)
        permutation = torch.from_numpy(order.permutation(len(self)))
        place = permutation
        if drawn is not None:
            place = permutation + len(self) * torch.from_numpy(drawn)[permutation]
        row_index = place.to(self.home)
        y = self.y[permutation.to(self.device)]
        for start in range(0, len(self), size):
            index = row_index[start : start + size]
            taken = torch.index_select(self._rows, 0, index, out=self._taken[: len(index)])
            yield self._centre(taken), y[start : start + size]

    def _stored(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        for start in range(0, len(self), size):
            yield start, self._rows[start : min(start + size, len(self))]


class StreamedRows(FeatureRowSet):
    """Rows that are read again in every epoch, a few blocks of consecutive rows at a time.

    ``shuffled`` reads the blocks in random order and shuffles the rows of all blocks that are in
    memory. Rows that do not fill a batch stay there and join the next blocks. Of views, only the
    rows that were drawn are read.
    """

    def __init__(self, X: Any, y: NDArray[np.int64], device: str) -> None:
        super().__init__(X, y, device)
        self._spans = list(_blocks(X))
        self._longest = max((stop - start for start, stop in self._spans), default=0)
        self._pool = torch.empty(0, self.width, dtype=self.dtype)

    def shuffled(self, order: np.random.Generator, size: int) -> Iterator[Batch]:
        """See :meth:`FeatureRowSet.shuffled`."""
        drawn = self._drawn_views(order)
        spans = [self._spans[i] for i in order.permutation(len(self._spans))]
        self._make_room(min(len(self), self._longest * _BLOCKS_AT_ONCE + size))
        row_numbers = np.empty(0, np.int64)
        for first in range(0, len(spans), _BLOCKS_AT_ONCE):
            for start, stop in spans[first : first + _BLOCKS_AT_ONCE]:
                self._read(start, stop, len(row_numbers), drawn)
                row_numbers = np.concatenate([row_numbers, np.arange(start, stop)])
            is_last = first + _BLOCKS_AT_ONCE >= len(spans)
            shuffled = order.permutation(len(row_numbers))
            ready = len(shuffled) if is_last else len(shuffled) // size * size
            for at in range(0, ready, size):
                index = shuffled[at : min(at + size, ready)]
                yield self._batch(self._pool[torch.from_numpy(index)], row_numbers[index])
            rest = shuffled[ready:]
            self._pool[: len(rest)] = self._pool[torch.from_numpy(rest)]
            row_numbers = row_numbers[rest]

    def _stored(self, size: int) -> Iterator[tuple[int, torch.Tensor]]:
        self._make_room(self._longest)
        for start, stop in self._spans:
            self._read(start, stop, 0)
            for at in range(start, stop, size):
                yield at, self._pool[at - start : min(at + size, stop) - start]

    def _make_room(self, rows: int) -> None:
        if len(self._pool) < rows:
            self._pool = torch.empty(rows, self.width, dtype=self.dtype)

    def _read(
        self, start: int, stop: int, offset: int, drawn: NDArray[np.int64] | None = None
    ) -> None:
        """Read a block into the pool from ``offset`` on, each row in the view that was drawn."""
        place = self._pool[offset : offset + stop - start].numpy()
        if drawn is None:
            place[:] = np.asarray(self.X[start:stop]).reshape(stop - start, -1)
            return
        each, of_block = (self.X, *self.views), drawn[start:stop]
        for view in np.unique(of_block):
            here = np.flatnonzero(of_block == view)
            place[here] = np.asarray(each[view][start + here]).reshape(len(here), -1)

    def _batch(self, rows: torch.Tensor, row_numbers: NDArray[np.int64]) -> Batch:
        return self._centre(rows), self.y[torch.from_numpy(row_numbers).to(self.device)]


def _row_bytes(X: Any) -> int:
    return int(np.prod(X.shape[1:])) * np.dtype(X.dtype).itemsize


def _blocks(X: Any) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // max(1, _row_bytes(X)))
    for start in range(0, len(X), step):
        yield start, min(start + step, len(X))
