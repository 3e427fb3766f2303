"""What a data set's list says of itself: equal pictures, and the sizes of its classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.base.ids import sortable
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset


def equal_pictures(dataset: Dataset) -> list[list[int]]:
    """Row numbers of usable pictures of the same bytes, for every content that several have."""
    usable = np.flatnonzero(dataset.usable)
    _, content, counts = np.unique(
        sortable(dataset.image_sha256[usable]), return_inverse=True, return_counts=True
    )
    order = np.argsort(content, kind="stable")
    groups = np.split(usable[order], np.cumsum(counts)[:-1])
    return sorted(group.tolist() for group in groups if len(group) > 1)


def class_sizes(dataset: Dataset) -> NDArray[np.int64]:
    """Usable pictures of each class in train, val, test and no split: (classes, 4)."""
    rows = np.flatnonzero(dataset.usable & (dataset.label != NO_LABEL))
    sizes = np.zeros((len(dataset.classes), len(SPLITS) + 1), np.int64)
    np.add.at(sizes, (dataset.label[rows], dataset.split[rows]), 1)
    return sizes


def conflicting_contents(dataset: Dataset) -> int:
    """Number of contents that pictures of different labels have."""
    labels = [set(dataset.label[group].tolist()) - {NO_LABEL} for group in equal_pictures(dataset)]
    return sum(len(found) > 1 for found in labels)
