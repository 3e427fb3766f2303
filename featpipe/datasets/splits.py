"""Train, validation and test by a hash of each picture's content.

A picture keeps its split as data grows, and equal pictures are always in the same split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.base.ids import sortable
from featpipe.datasets.dataset import NO_LABEL, Dataset
from featpipe.specs.extract import DEFAULT_SPLIT
from featpipe.specs.value_kinds import check_sum


def split_by_content(
    ids: NDArray[np.uint8],
    labels: NDArray[np.int64],
    fractions: Sequence[float] = DEFAULT_SPLIT,
    *,
    salt: str = "split",
) -> NDArray[np.int8]:
    """Assign each picture to a part by a hash of its content.

    The hash is a number from 0 to 1, and each part has a range of these numbers. If chance leaves
    a class without a picture in some part although the class has enough different pictures, the
    picture whose number is nearest to the part's range is moved there. A class with too few
    different pictures for all parts has at least one in the first part: what cannot be trained on
    cannot be told apart. A picture that was moved may move back once its class has grown enough
    to fill that part by chance.

    Parameters
    ----------
    ids : ndarray of uint8, shape (n, 32)
    labels : ndarray of int64, shape (n,)
        -1 where a picture has none.
    fractions : sequence of float
        Share of each part; they sum to 1. The first part is the one to train on.
    salt : str
        Makes independent splits of the same pictures.

    Returns
    -------
    ndarray of int8, shape (n,)
        Number of the part each picture is in.
    """
    check_sum(fractions)
    edges = np.concatenate([[0.0], np.cumsum(fractions)])
    wanted = np.flatnonzero(np.asarray(fractions) > 0).tolist()
    # Decimal shares may sum to a little less than 1: the last part gets the rest.
    edges[wanted[-1] + 1 :] = 1.0
    _, first, inverse = np.unique(sortable(ids), return_index=True, return_inverse=True)
    position = np.array([_uniform(salt, row.tobytes()) for row in ids[first]])
    part = np.searchsorted(edges[1:-1], position, side="right").astype(np.int8)
    label_of = labels[first]
    for label in np.unique(label_of):
        _fill_empty_parts(np.flatnonzero(label_of == label), position, part, edges, wanted)
    if 0 in wanted:
        in_first = labels[part[inverse] == 0]
        for label in np.setdiff1d(labels, [NO_LABEL, *in_first]):
            members = inverse[labels == label]
            part[members[np.argmin(position[members])]] = 0
    return part[inverse]


def _fill_empty_parts(
    members: NDArray[np.intp],
    position: NDArray[np.float64],
    part: NDArray[np.int8],
    edges: NDArray[np.float64],
    wanted: list[int],
) -> None:
    if len(members) < len(wanted):
        return
    for k in wanted:
        if (part[members] == k).any():
            continue
        counts = np.bincount(part[members], minlength=len(edges) - 1)
        spare = members[counts[part[members]] > 1]
        distance = np.maximum(edges[k] - position[spare], position[spare] - edges[k + 1])
        part[spare[np.argmin(distance)]] = k


def _uniform(salt: str, image_id: bytes) -> float:
    digest = hashlib.sha256(b"featpipe:" + salt.encode() + b":" + image_id).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def split_unsplit(dataset: Dataset) -> None:
    """Split a labelled data set by content if its source has no splits of its own."""
    shares, usable = dataset.info.split, dataset.usable
    if not isinstance(shares, str) and dataset.classes and usable.any():
        dataset.split[usable] = split_by_content(
            dataset.image_sha256[usable], dataset.label[usable], shares
        )
