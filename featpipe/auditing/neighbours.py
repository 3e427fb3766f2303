"""The nearest neighbours of every row by cosine, without an n × n matrix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 1024, 8192
"""Rows and columns of the block of similarities in memory (32 MiB)."""


def nearest(
    directions: NDArray[np.float32], k: int, *, tick: Callable[[int], None] = lambda rows: None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k most similar other rows of each row, the most similar first.

    All products are computed, block by block; the memory taken does not grow with n².

    Parameters
    ----------
    directions : ndarray of float32, shape (n, d)
        Rows of length 1.
    k : int
    tick : callable
        Called with the number of rows that are done since.

    Returns
    -------
    similarity : ndarray of float32, shape (n, min(k, n - 1))
        Cosines, -1 to 1.
    index : ndarray of int64, shape (n, min(k, n - 1))
    """
    n = len(directions)
    k = max(0, min(k, n - 1))
    similarity = np.empty((n, k), np.float32)
    index = np.empty((n, k), np.int64)
    for start in range(0, n if k else 0, _ROWS):
        stop = min(start + _ROWS, n)
        similarity[start:stop], index[start:stop] = _nearest_of(directions, start, stop, k)
        tick(stop - start)
    return similarity, index


def _nearest_of(
    directions: NDArray[np.float32], start: int, stop: int, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """:func:`nearest` of the rows from ``start`` to ``stop``."""
    rows = np.arange(stop - start)
    best = np.full((len(rows), k), -np.inf, np.float32)
    where = np.zeros((len(rows), k), np.int64)
    for left in range(0, len(directions), _COLUMNS):
        block = directions[start:stop] @ directions[left : left + _COLUMNS].T
        own = rows + start - left
        inside = (own >= 0) & (own < block.shape[1])
        block[rows[inside], own[inside]] = -np.inf
        # Only rows that gain a neighbour are sorted again: few, once the first blocks are done.
        gains = np.flatnonzero((block > best[:, -1:]).any(axis=1))
        found = block[gains]
        if found.shape[1] > k:
            columns = np.argpartition(found, -k, axis=1)[:, -k:]
        else:
            columns = np.broadcast_to(np.arange(found.shape[1]), found.shape)
        values = np.concatenate([best[gains], np.take_along_axis(found, columns, axis=1)], axis=1)
        places = np.concatenate([where[gains], columns + left], axis=1)
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        best[gains] = np.take_along_axis(values, order, axis=1)
        where[gains] = np.take_along_axis(places, order, axis=1)
    return best.clip(-1, 1), where
