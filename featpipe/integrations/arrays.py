"""Cached features of a data set as arrays, for custom training code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.cache import default_cache
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space
from featpipe.specs.spaces import SpaceQuery
from featpipe.store.feature_store import FeatureStore
from featpipe.store.rows import FeatureRows


def open_features(
    name: str,
    split: str = "train",
    *,
    cache: str | os.PathLike[str] | None = None,
    **space: Any,
) -> tuple[FeatureRows, NDArray[np.int64]]:
    """Features and labels of one split, memory-mapped.

    Parameters
    ----------
    name : str
        Name of the data set.
    split : {"train", "val", "test", "all"}
        Which rows; ``all`` takes every split.
    cache : path, optional
        Cache root; default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **space
        Selects a feature space if the data set has several: ``tap, pool, backbone, size, …``, the
        fields of :class:`featpipe.specs.spaces.SpaceQuery`.

    Returns
    -------
    X : FeatureRows, shape (n, *space.shape)
        Read-only and memory-mapped; ``numpy.asarray(X)`` copies it into memory.
    y : ndarray of int64, shape (n,)
        Index into the data set's class names, -1 if unlabelled.

    Raises
    ------
    NotFoundError, UsageError, DamageError
    """
    root = Path(cache) if cache is not None else default_cache()
    dataset = load_dataset(root, name)
    chosen, _ = choose_space(dataset, SpaceQuery.from_options(space))
    rows = dataset.in_split(split)
    return FeatureStore(root, chosen).rows(dataset.image_sha256[rows]), dataset.label[rows]
