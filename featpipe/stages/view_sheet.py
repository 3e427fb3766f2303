"""Which pictures and views the report of an evaluation shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.base.space import Augmentation
from featpipe.base.views import views_in
from featpipe.datasets.dataset import Dataset
from featpipe.reports.contact_sheet import PICTURES, ContactSheet, SheetPicture, contact_sheet
from featpipe.sources import image_reader
from featpipe.stages.scoring import Scored


def sheet_of_views(scored: Scored) -> ContactSheet | None:
    """A few pictures beside the views that the head was trained on, else those that were averaged.

    Pictures of train where the head's own data set is evaluated, else evaluated ones.

    Returns
    -------
    ContactSheet or None
        None where there are neither.
    """
    trained, dataset, split = scored.trained, scored.dataset, scored.split
    if (noted := views_in(trained.info)) is not None:
        one = Augmentation(policy=noted["policy"], version=noted["version"], seed=noted["seed"])
        number = noted["number"]
        if dataset.name == trained.dataset["name"] and "train" in dataset.split_names:
            split = "train"
    elif scored.views is not None:
        one, number = scored.views.augmentation, scored.views.number
    else:
        return None
    read = image_reader(dataset.source.kind, dataset.source.root)
    pictures = [
        SheetPicture(dataset.paths[i], dataset.image_sha256[i].tobytes(), read)
        for i in _of_different_classes(dataset, split)[:PICTURES]
    ]
    return contact_sheet(pictures, trained.space.preprocessing, one, number, split=split)


def _of_different_classes(dataset: Dataset, split: str) -> NDArray[np.intp]:
    """Row numbers of a split: the first picture of every class, then the second ones, …"""
    rows = dataset.in_split(split)
    labels = dataset.label[rows]
    rank = np.zeros(len(rows), np.int64)
    for label in np.unique(labels):
        rank[labels == label] = np.arange((labels == label).sum())
    chosen: NDArray[np.intp] = rows[np.lexsort((labels, rank))]
    return chosen
