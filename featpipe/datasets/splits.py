"""Train, validation and test by content: stable as data grows, duplicates never straddle."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from featpipe.base.ids import sortable
from featpipe.datasets.dataset import Dataset
from featpipe.specs.extract import DEFAULT_SPLIT
from featpipe.specs.kinds import check_sum


def split_by_content(
    ids: np.ndarray,
    labels: np.ndarray,
    fractions: Sequence[float] = DEFAULT_SPLIT,
    *,
    salt: str = "split",
) -> np.ndarray:
    """Assign each picture to a part by a hash of its content.

    The hash alone decides, so a picture keeps its part when others come or go, and equal
    pictures share one. Where that leaves a class without a picture in some part though it
    has enough different ones, the class's pictures nearest the part's range are moved there:
    stratification for classes too small for chance. A picture so moved may go back once its
    class has grown enough to fill that part by itself.

    Parameters
    ----------
    ids : ndarray of uint8, shape (n, 32)
    labels : ndarray of int64, shape (n,)
    fractions : sequence of float
        Share of each part; they sum to 1.
    salt : str
        Makes independent splits of the same pictures.

    Returns
    -------
    ndarray of int8, shape (n,)
        Part number.
    """
    check_sum(fractions)
    edges = np.concatenate([[0.0], np.cumsum(fractions)])
    wanted = np.flatnonzero(np.asarray(fractions) > 0).tolist()
    # Shares written in decimals may sum to a little less than 1: the rest is the last one's.
    edges[wanted[-1] + 1 :] = 1.0
    _, first, inverse = np.unique(sortable(ids), return_index=True, return_inverse=True)
    place = np.array([_uniform(salt, row.tobytes()) for row in ids[first]])
    part = np.searchsorted(edges[1:-1], place, side="right").astype(np.int8)
    label_of = labels[first]
    for label in np.unique(label_of):
        _fill_empty_parts(np.flatnonzero(label_of == label), place, part, edges, wanted)
    return part[inverse]


def _fill_empty_parts(
    members: np.ndarray,
    place: np.ndarray,
    part: np.ndarray,
    edges: np.ndarray,
    wanted: list[int],
) -> None:
    if len(members) < len(wanted):
        return
    for k in wanted:
        if (part[members] == k).any():
            continue
        counts = np.bincount(part[members], minlength=len(edges) - 1)
        spare = members[counts[part[members]] > 1]
        distance = np.maximum(edges[k] - place[spare], place[spare] - edges[k + 1])
        part[spare[np.argmin(distance)]] = k


def _uniform(salt: str, image_id: bytes) -> float:
    digest = hashlib.sha256(b"featpipe:" + salt.encode() + b":" + image_id).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_unsplit(dataset: Dataset) -> None:
    """Split a labelled data set by content where its source gave no splits."""
    shares, usable = dataset.info.split, dataset.usable
    if not isinstance(shares, str) and dataset.classes and usable.any():
        dataset.split[usable] = split_by_content(
            dataset.image_sha256[usable], dataset.label[usable], shares
        )
