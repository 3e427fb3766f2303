"""Views in the stores of pretended data sets, without a picture or a backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from featpipe.base.space import Augmentation, FeatureSpace
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.files import save_dataset
from featpipe.decoding.augmentation import augmentation
from featpipe.store.feature_store import FeatureStore

LIGHT = augmentation("light", 0)


def view_of(space: FeatureSpace, view: int, drawn: Augmentation = LIGHT) -> FeatureSpace:
    return dataclasses.replace(space, view=view, augmentation=drawn)


def stored_views(
    cache: Path,
    dataset: Dataset,
    views: Iterable[int] = (1, 2),
    *,
    of: Sequence[str] = ("train",),
    drawn: Augmentation = LIGHT,
    spaces: Sequence[FeatureSpace] | None = None,
    scale: float = 0.3,
    without: Sequence[int] = (),
) -> list[FeatureSpace]:
    """Give a data set views of the pictures of some splits: their rows with some noise.

    Pictures of the numbers ``without`` get no row, although the data set says so.
    """
    held = [FeatureSpace.from_json(text) for text in dataset.spaces]
    originals = spaces or [space for space in held if not space.view]
    chosen = np.flatnonzero(np.isin(dataset.split, [SPLITS.index(name) for name in of]))
    ids = dataset.image_sha256[np.setdiff1d(chosen, without)]
    ids = ids[np.unique(ids, axis=0, return_index=True)[1]]
    made = []
    for space in originals:
        rows = FeatureStore(cache, space).rows(ids)[:]
        for view in views:
            noise = np.random.default_rng([view, len(made)]).normal(scale=scale, size=rows.shape)
            one = view_of(space, view, drawn)
            store = FeatureStore(cache, one)
            store.prepare()
            store.append(ids, (rows + noise).astype(rows.dtype), {})
            if one not in held:
                dataset.spaces.append(one.canonical_json)
            dataset.info.weights[one.id] = dataset.info.weights[space.id]
            dataset.info.covers[one.id] = (*dataset.info.covers.get(one.id, ()), *of)
            made.append(one)
    save_dataset(cache, dataset)
    return made
