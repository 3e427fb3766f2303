"""Near duplicates: pictures that are much closer to each other than neighbours usually are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_distance(similarity: NDArray[np.float32], share: float) -> float:
    """The cosine distance below which two rows are near duplicates.

    How close neighbours lie depends on the tap and on the pictures. So the limit is a share of a
    distance that copies hardly change: the median, over all rows, of the distance to the last
    neighbour.

    Parameters
    ----------
    similarity : ndarray of float32, shape (n, k)
        Of each row's nearest neighbours, the most similar first.
    share : float
    """
    return share * float(np.median(1 - similarity[:, -1])) if similarity.size else 0.0


def near_pairs(
    similarity: NDArray[np.float32], index: NDArray[np.int64], distance: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Pairs of neighbours that are nearer than ``distance``.

    Parameters
    ----------
    similarity, index : ndarray, shape (n, k)
        See :func:`featpipe.auditing.neighbours.nearest`.
    distance : float
        Cosine distance, 1 minus similarity.

    Returns
    -------
    pairs : ndarray of int64, shape (m, 2)
        Row numbers, the smaller one first; the most similar pair first.
    similarity : ndarray of float32, shape (m,)
    """
    row, place = np.nonzero(1 - similarity < distance)
    ends = np.sort(np.stack([row, index[row, place]], axis=1), axis=1)
    pairs, first = np.unique(ends, axis=0, return_index=True)
    found = similarity[row, place][first]
    order = np.argsort(-found, kind="stable")
    return pairs[order], found[order]


def groups_of(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Connect n rows by pairs (m, 2): for each row the smallest row of its group, (n,)."""
    group = np.arange(n)
    # Both ends take the smaller of their groups, then every row that of its group's first row.
    while True:
        before = group.copy()
        lowest = np.minimum(group[pairs[:, 0]], group[pairs[:, 1]])
        np.minimum.at(group, group[pairs[:, 0]], lowest)
        np.minimum.at(group, group[pairs[:, 1]], lowest)
        group = group[group]
        if (group == before).all():
            return group
