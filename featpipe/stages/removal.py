"""Removal of a data set or of a feature space from a cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.base.dataset_names import SHARD_MARK
from featpipe.base.disk import names_in, remove_file, remove_tree, sync_folder
from featpipe.base.errors import DamageError, NotFoundError, StorageError, UsageError
from featpipe.base.space import SHORT_ID, FeatureSpace, is_id_beginning
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import list_datasets, load_dataset, save_dataset
from featpipe.datasets.named_rows import strike_space
from featpipe.store.feature_store import open_store
from featpipe.store.lease import sole_lease
from featpipe.store.summary import size_of
from featpipe.store.verification import require_cache

if TYPE_CHECKING:
    from featpipe.stages.documents import RemovalDocument


@dataclass(frozen=True)
class Removal:
    """What is to be removed, or was.

    Attributes
    ----------
    kind : {"dataset", "space"}
    name : str
        Of the data set, or of the feature space's folder.
    paths : list of Path
        The data set's files, or the feature space's folder.
    bytes : int
        Size of all that.
    datasets : list of str
        Data sets that list the feature space.
    """

    kind: str
    name: str
    paths: list[Path]
    bytes: int
    datasets: list[str]

    def as_json(self) -> RemovalDocument:
        """What the command prints."""
        return {
            "kind": self.kind,
            "name": self.name,
            "paths": [str(path) for path in self.paths],
            "bytes": self.bytes,
            "datasets": self.datasets,
        }


def find_removal(cache: Path, name: str) -> Removal:
    """What :func:`remove` would remove under a name; nothing is changed.

    Parameters
    ----------
    cache : Path
    name : str
        Of a data set or of a part of one; else the name of a feature space's folder, or the
        beginning of its id.

    Raises
    ------
    NotFoundError
        There is nothing of that name.
    UsageError
        Several feature spaces have an id that begins so.
    DamageError
        A data set cannot be read, so that it is unknown whether it lists the feature space.
    """
    require_cache(cache)
    datasets = list_datasets(cache, with_shards=True)
    own = [file for file in datasets if file == name or file.startswith(name + SHARD_MARK)]
    if own:
        paths = [cache / "datasets" / f"{file}.h5" for file in own]
        return Removal("dataset", name, paths, sum(map(size_of, paths)), [])
    folder = _space_folder(cache, name)
    listing = [dataset.name for dataset in _struck_off(cache, folder)]
    return Removal("space", folder.name, [folder], size_of(folder), listing)


def _space_folder(cache: Path, name: str) -> Path:
    spaces = cache / "spaces"
    folders = [spaces / inner for inner in names_in(spaces) if not inner.startswith(".")]
    found = [folder for folder in folders if _is_called(folder, name)]
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        raise UsageError(
            f"expected the name of one feature space, or a beginning that only its id has, found "
            f"{name!r}, which fits {names}"
        )
    if not found:
        datasets = ", ".join(list_datasets(cache)) or "none"
        names = ", ".join(folder.name for folder in folders) or "none"
        raise NotFoundError(
            f"expected the name of a data set (found: {datasets}) or of a feature space (found: "
            f"{names}), or the beginning of its id, found {name!r}; name one of those. A run is a "
            "folder: delete it yourself"
        )
    if found[0].is_symlink():
        raise UsageError(
            f"expected a folder in {found[0]}, found a link; remove what it leads to yourself"
        )
    return found[0]


def _is_called(folder: Path, name: str) -> bool:
    """Whether this is the name of a space's folder, or the beginning of the space's id."""
    if name == folder.name:
        return True
    digits = folder.name[-SHORT_ID:]
    if not is_id_beginning(name) or digits[: len(name)] != name[:SHORT_ID]:
        return False
    return len(name) <= SHORT_ID or open_store(folder).space.id.startswith(name)


def remove(cache: Path, removal: Removal) -> None:
    """Remove what :func:`find_removal` found.

    Of a data set its list goes, and its parts; rows stay until they are collected as garbage. Of
    a feature space everything goes, and no data set lists it any more.

    Raises
    ------
    InUseError
        It is a feature space, and another process uses the cache.
    DamageError, StorageError
    """
    if removal.kind == "dataset":
        for path in removal.paths:
            remove_file(path)
        sync_folder(cache / "datasets")
        return
    (folder,) = removal.paths
    with sole_lease(cache):
        # First the lists: no data set names a row that is not there.
        for dataset in _struck_off(cache, folder):
            save_dataset(cache, dataset)
        if folder.is_dir():
            remove_tree(folder)


def _struck_off(cache: Path, folder: Path) -> Iterator[Dataset]:
    """The data sets that list the space of a folder, each without it."""
    space_id = _id_of(cache, folder)
    if space_id is None:
        # A copy, or a foreign folder: its name may end as a space's does, but no data set means it.
        return
    for dataset in _datasets(cache):
        if strike_space(dataset, space_id):
            yield dataset


def _id_of(cache: Path, folder: Path) -> str | None:
    """Id of the feature space that a folder is named after; None if there is no such space."""
    try:
        return open_store(folder).space.id
    except (DamageError, StorageError):
        spaces = (FeatureSpace.from_json(t) for dataset in _datasets(cache) for t in dataset.spaces)
        return next((space.id for space in spaces if space.name == folder.name), None)


def _datasets(cache: Path) -> Iterator[Dataset]:
    for name in list_datasets(cache, with_shards=True):
        try:
            yield load_dataset(cache, name)
        except NotFoundError:
            continue  # deleted since the folder was listed
