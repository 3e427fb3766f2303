"""A few pictures per class, chosen by content: fewer are always among more."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from featpipe.base.ids import sortable


def shot_ranks(ids: NDArray[np.uint8], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The place of each picture in a random order of its class; ``ranks < n`` are n per class.

    The order is that of a hash of seed and content. So the n pictures are among those of every
    larger n, and they stay the same when other pictures leave the data set.

    Parameters
    ----------
    ids : ndarray of uint8, shape (n, 32)
    labels : ndarray of int64, shape (n,)
    seed : int

    Returns
    -------
    ndarray of int64, shape (n,)
        From 0 on in each class. A copy of an earlier picture of its class is not counted: its place
        is n, behind all others.
    """
    salt = f"featpipe:shot:{seed}:".encode()
    hashes = [hashlib.sha256(salt + row.tobytes()).digest() for row in ids]
    order = np.lexsort(
        (sortable(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32)), labels)
    )
    keys, ordered = sortable(ids)[order], labels[order]
    is_first = np.ones(len(ids), bool)
    is_first[1:] = (keys[1:] != keys[:-1]) | (ordered[1:] != ordered[:-1])
    counted = np.cumsum(is_first) - 1
    start = np.searchsorted(ordered, ordered)
    ranks = np.empty(len(ids), np.int64)
    ranks[order] = np.where(is_first, counted - counted[start], len(ids))
    return ranks
