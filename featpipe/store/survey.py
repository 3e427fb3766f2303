"""Looking over a whole cache: what is in it, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.disk import names_in
from featpipe.errors import DamageError, NotFoundError
from featpipe.progress import Progress, no_progress
from featpipe.space import FeatureSpace
from featpipe.store.datasets import list_datasets, load_dataset
from featpipe.store.feature_store import FeatureStore, list_stores, open_store
from featpipe.store.segments import file_digest, read_segment, row_checksums


@dataclass(frozen=True)
class StoreSummary:
    """One feature store: its name, rows, segments and bytes on disk."""

    name: str
    rows: int
    segments: int
    bytes: int


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it should be.

    Attributes
    ----------
    path : Path
    problem : str
    rows : list of int
        Damaged rows of a segment, where they are known.
    space : FeatureSpace or None
        Of the store a segment lies in.
    """

    path: Path
    problem: str
    rows: list[int]
    space: FeatureSpace | None = None


def require_cache(cache: Path) -> None:
    """Check that there is a cache.

    Raises
    ------
    NotFoundError
    """
    if not (cache / "spaces").is_dir() and not (cache / "datasets").is_dir():
        raise NotFoundError(
            f"expected a cache in {cache}, found none; 'featpipe extract' makes one, or name "
            "another with --cache"
        )


def summarise(cache: Path) -> tuple[list[str], list[StoreSummary]]:
    """Names of the data sets, and a summary of every feature store."""
    require_cache(cache)
    return list_datasets(cache), [_summary(store) for store in list_stores(cache)]


def _summary(store: FeatureStore) -> StoreSummary:
    files = list(store.segments_folder.glob("*.h5"))
    size = sum(file.stat().st_size for file in files)
    return StoreSummary(store.folder.name, len(store.index.ids), len(files), size)


def verify(
    cache: Path, *, quick: bool = False, progress: Progress = no_progress
) -> tuple[int, list[Damage]]:
    """Check every file of a cache.

    Parameters
    ----------
    cache : Path
    quick : bool
        Only names, layouts and declared sizes; default: every digest and row checksum too.
    progress : Progress

    Returns
    -------
    files : int
        Number of files looked at.
    damages : list of Damage

    Raises
    ------
    StorageError
        A file cannot be read at all: that says nothing about its content.
    """
    require_cache(cache)
    damages: list[Damage] = []
    files = 0
    for name in list_datasets(cache, with_shards=True):
        files += 1
        try:
            load_dataset(cache, name)
        except DamageError as error:
            damages.append(Damage(cache / "datasets" / f"{name}.h5", str(error), []))
    for store in _stores(cache, damages):
        segments = [store.segments_folder / name for name in names_in(store.segments_folder)]
        files += 1 + len(segments)
        with progress(f"verify {store.folder.name}", len(segments)) as bar:
            for path in segments:
                damages += _segment_damages(path, store, quick=quick)
                bar.advance(damaged=len(damages))
    return files, damages


def _stores(cache: Path, damages: list[Damage]) -> Iterator[FeatureStore]:
    for name in names_in(cache / "spaces"):
        folder = cache / "spaces" / name
        try:
            yield open_store(folder)
        except (DamageError, NotFoundError) as error:
            damages.append(Damage(folder / "space.json", str(error), []))


def _segment_damages(path: Path, store: FeatureStore, *, quick: bool) -> Iterator[Damage]:
    if path.name.startswith(".tmp-"):
        return
    if path.suffix != ".h5" or len(path.stem) != 64 or not path.is_file():
        yield Damage(path, "not a segment of this store", [], store.space)
        return
    try:
        whole = quick or file_digest(path) == path.stem
        segment = read_segment(path, store.space)
    except DamageError as error:
        yield Damage(path, str(error), [], store.space)
        return
    if whole:
        return
    shape = (len(segment.ids), *store.space.shape)
    rows = np.memmap(path, store.space.dtype, "r", segment.offset, shape)
    wrong = np.flatnonzero(row_checksums(rows) != segment.crc32).tolist()
    yield Damage(path, "its bytes do not have the digest in its name", wrong, store.space)
