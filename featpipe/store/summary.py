"""What a cache holds, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.base.dataset_names import SHARD_MARK
from featpipe.base.disk import names_in
from featpipe.base.errors import FeatpipeError, NotFoundError
from featpipe.base.ids import sortable
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import list_datasets, load_dataset
from featpipe.datasets.named_rows import NamedRows, space_ids
from featpipe.store.feature_store import FeatureStore, list_stores
from featpipe.store.verification import require_cache


@dataclass(frozen=True)
class DatasetSummary:
    """One data set.

    Attributes
    ----------
    name : str
    pictures, quarantined, classes : int or None
        None where the file is damaged.
    spaces : list of str
        Folder names of its feature spaces.
    shards : int
        Parts that lie beside it.
    bytes : int
        Size of its file and those of its parts.
    problem : str or None
        What is wrong with the file.
    """

    name: str
    pictures: int | None
    quarantined: int | None
    classes: int | None
    spaces: list[str]
    shards: int
    bytes: int
    problem: str | None = None


@dataclass(frozen=True)
class StoreSummary:
    """One feature store.

    Attributes
    ----------
    name : str
        Of its folder.
    rows, segments, bytes : int
        Pictures that have a row; files; their size.
    id, backbone, tap, pool, dtype : str
    size : int
        Side of the input, pixels.
    shape : list of int
        Of one row.
    view : int
        0 is the picture itself.
    augmentation : str
        What makes the view; empty for view 0.
    datasets : list of str
        Data sets that list it.
    unnamed : int or None
        Rows that no data set names; None where a data set is damaged.
    """

    name: str
    rows: int
    segments: int
    bytes: int
    id: str
    backbone: str
    tap: str
    pool: str
    size: int
    dtype: str
    shape: list[int]
    view: int
    augmentation: str
    datasets: list[str]
    unnamed: int | None


def summarise(cache: Path) -> tuple[list[DatasetSummary], list[StoreSummary]]:
    """Every data set and every feature store of a cache.

    Raises
    ------
    NotFoundError, DamageError, StorageError
        A damaged data set raises nothing: its summary says so.
    """
    require_cache(cache)
    named = NamedRows()
    listed_by: dict[str, list[str]] = {}
    summaries = []
    is_whole = True
    files = list_datasets(cache, with_shards=True)
    for name in files:
        is_part = SHARD_MARK in name
        try:
            dataset = load_dataset(cache, name)
        except NotFoundError:
            continue  # deleted since the folder was listed
        except FeatpipeError as error:
            is_whole = False
            if not is_part:
                summaries.append(_of_damaged(cache, name, files, str(error)))
            continue
        named.add(dataset)
        for space_id in {} if is_part else dict.fromkeys(space_ids(dataset)):
            listed_by.setdefault(space_id, []).append(name)
        if not is_part:
            summaries.append(_of_dataset(cache, dataset, files))
    stores = list_stores(cache)
    return summaries, [_of_store(s, listed_by, named if is_whole else None) for s in stores]


def _of_dataset(cache: Path, dataset: Dataset, files: list[str]) -> DatasetSummary:
    spaces = dict.fromkeys(FeatureSpace.from_json(text).name for text in dataset.spaces)
    return DatasetSummary(
        name=dataset.name,
        pictures=len(dataset),
        quarantined=len(dataset) - int(dataset.usable.sum()),
        classes=len(dataset.classes),
        spaces=list(spaces),
        shards=len(_own(dataset.name, files)) - 1,
        bytes=_size(cache, dataset.name, files),
    )


def _of_damaged(cache: Path, name: str, files: list[str], problem: str) -> DatasetSummary:
    shards = len(_own(name, files)) - 1
    return DatasetSummary(
        name, None, None, None, [], shards, _size(cache, name, files), problem=problem
    )


def _own(name: str, files: list[str]) -> list[str]:
    """Which of the data set files are a data set's own and its parts'."""
    return [file for file in files if file == name or file.startswith(name + SHARD_MARK)]


def _size(cache: Path, name: str, files: list[str]) -> int:
    return sum(size_of(cache / "datasets" / f"{file}.h5") for file in _own(name, files))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; 0 if it does not exist."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(size_of(path / name) for name in names_in(path))
        return path.lstat().st_size
    except FileNotFoundError:
        return 0


def _of_store(
    store: FeatureStore, listed_by: dict[str, list[str]], named: NamedRows | None
) -> StoreSummary:
    space, ids = store.space, store.index.ids
    unnamed = None
    if named is not None:
        unnamed = int((~np.isin(sortable(ids), sortable(named.of_space(space)))).sum())
    return StoreSummary(
        name=store.folder.name,
        rows=len(ids),
        segments=len(store.index.names),
        bytes=size_of(store.segments_folder),
        id=space.id,
        backbone=space.backbone,
        tap=space.tap,
        pool=space.pooling,
        size=space.preprocessing.size,
        dtype=space.dtype,
        shape=list(space.shape),
        view=space.view,
        augmentation=str(space.augmentation or ""),
        datasets=listed_by.get(space.id, []),
        unnamed=unnamed,
    )
