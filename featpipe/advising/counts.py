"""Numbers of pictures, counted: by split, by class, and how unequal the classes are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.advising.documents import ClassFact, ClassSizes, PictureFacts
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset


def picture_facts(
    dataset: Dataset, train: NDArray[np.intp], val: NDArray[np.intp], val_share: float
) -> PictureFacts:
    """Pictures of a data set by what becomes of them.

    Parameters
    ----------
    dataset : Dataset
    train, val : ndarray of int
        Row numbers of the pictures to train on and to validate with.
    val_share : float
        Of train, where the data set has no validation split.
    """
    usable = dataset.usable
    given = "val" in dataset.split_names
    return {
        "usable": int(usable.sum()),
        "train": len(train),
        "val": len(val),
        "test": int(_in_test(dataset).sum()),
        "unlabelled": int((usable & (dataset.label == NO_LABEL)).sum()),
        "quarantined": len(dataset) - int(usable.sum()),
        "val_from": "val" if given else f"{val_share:g} of train, by content",
    }


def class_facts(
    dataset: Dataset, train: NDArray[np.intp], val: NDArray[np.intp]
) -> list[ClassFact]:
    """Pictures of every class, those that train lacks too."""
    labelled = dataset.label != NO_LABEL
    count = len(dataset.classes)

    def by_class(rows: NDArray[np.bool_] | NDArray[np.intp]) -> list[int]:
        return np.bincount(dataset.label[rows], minlength=count).tolist()

    columns = (
        by_class(labelled & dataset.usable),
        by_class(train),
        by_class(val),
        by_class(labelled & _in_test(dataset)),
        by_class(labelled & ~dataset.usable),
    )
    return [
        {
            "class": name,
            "pictures": pictures,
            "train": in_train,
            "val": in_val,
            "test": in_test,
            "quarantined": quarantined,
        }
        for name, pictures, in_train, in_val, in_test, quarantined in zip(
            dataset.classes, *columns, strict=True
        )
    ]


def sizes_of(y: NDArray[np.int64]) -> ClassSizes:
    """How many training pictures the classes have; ``y`` (n,) are their labels."""
    counts = np.unique(y, return_counts=True)[1]
    return {
        "smallest": int(counts.min()),
        "median": float(np.median(counts)),
        "largest": int(counts.max()),
        "imbalance_ratio": float(counts.max() / counts.min()),
    }


def baseline_of(y: NDArray[np.int64]) -> float:
    """Share of the largest class among validation labels (n,): what always answering it gives."""
    return float(np.bincount(y).max() / len(y))


def _in_test(dataset: Dataset) -> NDArray[np.bool_]:
    here: NDArray[np.bool_] = dataset.usable & (dataset.split == SPLITS.index("test"))
    return here
