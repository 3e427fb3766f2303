"""Which pictures of a data set a head is trained on and validated with, and their labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError
from featpipe.datasets.dataset import NO_LABEL, Dataset
from featpipe.datasets.splits import split_by_content


def training_rows(
    dataset: Dataset, val_fraction: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers of labelled train and validation pictures.

    Where the data set has no validation split, a share of train is set aside by content.

    Raises
    ------
    DataError
        Either would be empty.
    """
    labelled = dataset.label != NO_LABEL
    if not (labelled & dataset.usable).any():
        raise DataError(
            f"expected labelled pictures in data set '{dataset.name}', found none; "
            "put them into one folder per class, or give a list with a 'label' column"
        )
    if "train" not in dataset.split_names:
        raise DataError(too_few_to_validate(dataset))
    train = dataset.in_split("train")
    train = train[labelled[train]]
    if "val" in dataset.split_names:
        val = dataset.in_split("val")
        val = val[labelled[val]]
    else:
        shares = (1 - val_fraction, val_fraction)
        part = split_by_content(
            dataset.image_sha256[train], dataset.label[train], shares, salt="val"
        )
        train, val = train[part == 0], train[part == 1]
    if not len(train) or not len(val):
        raise DataError(too_few_to_validate(dataset))
    return train, val


def too_few_to_validate(dataset: Dataset) -> str:
    """Message of the error for a data set without pictures to train on or to validate with."""
    return (
        f"expected pictures to train on and to validate with in data set '{dataset.name}', "
        "found too few; add pictures (at least two different ones per class), or raise --val"
    )


def classes_in(dataset: Dataset, train: NDArray[np.intp]) -> list[str]:
    """Names of the classes that train has pictures of.

    Raises
    ------
    DataError
        There are fewer than two.
    """
    present = np.unique(dataset.label[train])
    if len(present) < 2:
        found = ", ".join(repr(dataset.classes[i]) for i in present)
        raise DataError(
            f"expected at least two classes in the train split of '{dataset.name}', found "
            f"{found}; a classifier needs something to tell apart"
        )
    return [dataset.classes[i] for i in present]


def renumbered_labels(dataset: Dataset, classes: list[str]) -> NDArray[np.int64]:
    """Labels (n,) as indices into ``classes``, -1 where a picture has none of them."""
    number = {name: i for i, name in enumerate(classes)}
    table = np.array([*(number.get(name, -1) for name in dataset.classes), -1], np.int64)
    return table[dataset.label]
