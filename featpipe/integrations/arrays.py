"""Cached features of a data set as arrays: the door for people with their own training code."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from featpipe.base.cache import default_cache
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space
from featpipe.store.feature_store import FeatureStore
from featpipe.store.rows import FeatureRows


def open_features(
    name: str,
    split: str = "train",
    *,
    tap: str | None = None,
    pool: str | None = None,
    view: int = 0,
    cache: str | os.PathLike[str] | None = None,
) -> tuple[FeatureRows, np.ndarray]:
    """Features and labels of one split, memory-mapped.

    Parameters
    ----------
    name : str
        Data set.
    split : {"train", "val", "test", "all"}
    tap, pool : str, optional
        May be left out while the data set has one feature space.
    view : int
        0 is the picture itself; there are no others yet.
    cache : path, optional
        Cache root; default: ``$FEATPIPE_CACHE``, else ``./cache``.

    Returns
    -------
    X : FeatureRows, shape (n, *space.shape)
        Read-only and mapped; ``numpy.asarray(X)`` copies it into memory.
    y : ndarray of int64, shape (n,)
        Index into the data set's class names, -1 where unlabelled.

    Raises
    ------
    NotFoundError, UsageError, DamageError
    """
    root = Path(cache) if cache is not None else default_cache()
    dataset = load_dataset(root, name)
    space, _ = choose_space(dataset, tap=tap, pool=pool, view=view)
    rows = dataset.in_split(split)
    return FeatureStore(root, space).rows(dataset.image_sha256[rows]), dataset.label[rows]
