"""Which splits have pictures of which classes, and what to say where one has none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.base.ids import sortable
from featpipe.base.text import some_of
from featpipe.datasets.dataset import NO_LABEL, SPLIT_GIVEN, SPLITS, Dataset

FEW_TO_CHOOSE_BY = 3
"""A class with fewer validation pictures than this is named."""


def coverage_warnings(dataset: Dataset) -> list[str]:
    """What a person should know of a data set's classes before training on it."""
    said = []
    without = _classes_without(dataset)
    if dataset.info.split == SPLIT_GIVEN:
        if untaught := without.get("train", []):
            said.append(
                f"train has no picture of {some_of(untaught)}: no head will know "
                f"{_them(untaught)}, and evaluate refuses a split with {_them(untaught)}; put "
                "pictures of every class into train, or leave such a class out"
            )
        return said
    single = _classes_of_one_picture(dataset)
    if single:
        said.append(
            f"there is only one picture{'' if len(single) == 1 else ' each'} of {some_of(single)}, "
            f"and it is in train: no other split can measure {_them(single)}; add pictures of "
            f"{_them(single)}"
        )
    for split, names in without.items():
        if few := [name for name in names if name not in single]:
            said.append(
                f"there are too few pictures of {some_of(few)} for every split: {split} has none; "
                f"add pictures of {_them(few)}"
            )
    return said


def training_warnings(
    dataset: Dataset,
    train: NDArray[np.intp],
    val: NDArray[np.intp],
    *,
    val_chooses: bool = True,
) -> list[str]:
    """What a person should know of the classes that a head is about to learn.

    Parameters
    ----------
    dataset : Dataset
    train, val : ndarray of int
        Row numbers of the pictures that are trained on and validated with.
    val_chooses : bool
        Whether validation, and neither the user nor folds of train, chooses what is kept.
    """
    present = _present(dataset)
    taught = np.unique(dataset.label[train])
    said = []
    if untaught := _names(dataset, np.setdiff1d(present, taught)):
        remedy = "put pictures of every class into train"
        if dataset.info.split != SPLIT_GIVEN:
            remedy = "extract the data set again, which puts one picture of every class there"
        said.append(
            f"train has no picture of {some_of(untaught)}: the head will not know "
            f"{_them(untaught)}; {remedy}"
        )
    measured = {"val": val}
    if "test" in dataset.split_names:
        measured["test"] = dataset.in_split("test")
    for split, rows in measured.items():
        if unmeasured := _names(dataset, np.setdiff1d(taught, dataset.label[rows])):
            said.append(
                f"{split} has no picture of {some_of(unmeasured)}: its scores say nothing of "
                f"{_them(unmeasured)}"
            )
    labels, counts = np.unique(dataset.label[val], return_counts=True)
    few = _names(dataset, labels[counts < FEW_TO_CHOOSE_BY])
    if few and val_chooses:
        said.append(
            f"val has fewer than {FEW_TO_CHOOSE_BY} pictures of {some_of(few)}: chance has a part "
            f"in what it chooses; add pictures of {_them(few)}, or let folds of train choose, "
            "with --head logistic --folds 5"
        )
    return said


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"


def _present(dataset: Dataset) -> NDArray[np.int64]:
    """Classes that have a readable picture."""
    return np.unique(dataset.label[dataset.usable & (dataset.label != NO_LABEL)])


def _names(dataset: Dataset, labels: NDArray[np.int64]) -> list[str]:
    return [dataset.classes[label] for label in labels]


def _classes_without(dataset: Dataset) -> dict[str, list[str]]:
    """For each split of the data set that lacks some: the classes it has no picture of."""
    present = _present(dataset)
    without = {}
    for split in dataset.split_names:
        here = dataset.label[dataset.usable & (dataset.split == SPLITS.index(split))]
        if missing := _names(dataset, np.setdiff1d(present, here)):
            without[split] = missing
    return without


def _classes_of_one_picture(dataset: Dataset) -> list[str]:
    """Classes whose readable pictures are all one, by content."""
    rows = np.flatnonzero(dataset.usable & (dataset.label != NO_LABEL))
    _, picture = np.unique(sortable(dataset.image_sha256[rows]), return_inverse=True)
    pairs = np.unique(np.stack([dataset.label[rows], picture]), axis=1)
    labels, counts = np.unique(pairs[0], return_counts=True)
    return _names(dataset, labels[counts == 1])
