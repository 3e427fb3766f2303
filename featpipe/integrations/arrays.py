"""Cached features of a data set as arrays and tables, for code of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from featpipe.base.cache import default_cache
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space
from featpipe.datasets.view_coverage import require_covered
from featpipe.integrations.tables import FeatureTable
from featpipe.specs.spaces import SpaceQuery
from featpipe.store.feature_store import FeatureStore


def open_features(
    name: str,
    split: str = "train",
    *,
    cache: str | os.PathLike[str] | None = None,
    **space: Any,
) -> FeatureTable:
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
    FeatureTable
        Unpacks into ``X, y``; also has the pictures' paths, ids, splits and class names, and
        becomes a table of pandas or a Parquet file.

    Raises
    ------
    NotFoundError, UsageError, DamageError
    """
    root = Path(cache) if cache is not None else default_cache()
    dataset = load_dataset(root, name)
    chosen, weights = choose_space(dataset, SpaceQuery.from_options(space))
    rows = dataset.in_split(split)
    require_covered(dataset, [chosen], weights, rows)
    X = FeatureStore(root, chosen).rows(dataset.image_sha256[rows])
    return FeatureTable.of(X, dataset, rows, chosen)
