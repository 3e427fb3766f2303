"""Which rows the data sets of a cache name: those are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import NotFoundError
from featpipe.base.ids import DIGEST_BYTES, sortable
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import list_datasets, load_dataset

NO_IDS: NDArray[np.uint8] = np.empty((0, DIGEST_BYTES), np.uint8)


class NamedRows:
    """The rows that data sets name, by feature space.

    A data set names the rows of its usable pictures in every space that it was ever extracted
    in, also where later pictures lack a row there. Of a space that covers some splits alone it
    names only the rows of those.
    """

    def __init__(self) -> None:
        self._ids: dict[str, list[NDArray[np.uint8]]] = {}

    @classmethod
    def of_cache(cls, cache: Path) -> NamedRows:
        """Those of all data sets of a cache, parts of sharded ones too.

        Raises
        ------
        DamageError, StorageError, UsageError
            A data set cannot be read, so what it names is unknown.
        """
        named = cls()
        for name in list_datasets(cache, with_shards=True):
            try:
                named.add(load_dataset(cache, name))
            except NotFoundError:
                continue  # deleted since the folder was listed
        return named

    def add(self, dataset: Dataset) -> None:
        """Add the rows that a data set names."""
        for space in {*space_ids(dataset), *dataset.info.weights}:
            ids = dataset.image_sha256[dataset.covered_by(space)]
            self._ids.setdefault(space, []).append(ids)

    def of_space(self, space: FeatureSpace) -> NDArray[np.uint8]:
        """Image ids (n, 32) whose rows of a space are named, sorted, each once."""
        ids = np.concatenate([NO_IDS, *self._ids.get(space.id, [])])
        return ids[np.unique(sortable(ids), return_index=True)[1]]


def space_ids(dataset: Dataset) -> list[str]:
    """Ids of the feature spaces that a data set lists, in its order."""
    return [FeatureSpace.from_json(text).id for text in dataset.spaces]


def strike_space(dataset: Dataset, space_id: str) -> bool:
    """Make a data set name no row of a feature space; whether it named some."""
    weights = dataset.info.weights
    here = [found == space_id for found in space_ids(dataset)]
    dataset.spaces = [s for s, struck in zip(dataset.spaces, here, strict=True) if not struck]
    dataset.info.weights = {i: name for i, name in weights.items() if i != space_id}
    dataset.info.covers.pop(space_id, None)
    return any(here) or len(dataset.info.weights) < len(weights)
