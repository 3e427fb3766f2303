"""Verification of a whole cache: which files are damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from featpipe.base.disk import names_in, read_regular
from featpipe.base.errors import DamageError, FeatpipeError, NotFoundError, StorageError, UsageError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset
from featpipe.store.feature_store import (
    FeatureStore,
    open_store,
    space_of_segments,
    space_text,
)
from featpipe.store.index import INDEX_NAME, index_problem
from featpipe.store.segments import Segment, file_digest, read_segment, whole_rows

_NOT_A_FILE = (errno.EISDIR, errno.EINVAL, errno.ENXIO, errno.ELOOP, errno.ENOENT)
"""Error numbers of reading a path that is missing or not a regular file."""


@dataclass(frozen=True)
class Damage:
    """One damaged file, or one that does not belong in the cache.

    Attributes
    ----------
    path : Path
    problem : str
        What is wrong with the file.
    rows : list of int
        Numbers of the damaged rows of a segment, if known.
    space : FeatureSpace or None
        Feature space of the file's store, if repair needs it.
    """

    path: Path
    problem: str
    rows: list[int]
    space: FeatureSpace | None = None


def require_cache(cache: Path) -> None:
    """Refuse a folder that holds no cache.

    Raises
    ------
    NotFoundError
        The folder contains neither feature stores nor data sets.
    """
    if not (cache / "spaces").is_dir() and not (cache / "datasets").is_dir():
        raise NotFoundError(
            f"expected a cache in {cache}, found none; 'featpipe extract' makes one, or name "
            "another with --cache"
        )


def verify(
    cache: Path, *, quick: bool = False, progress: Progress = no_progress
) -> tuple[int, list[Damage]]:
    """Check every data set and feature store of a cache; hidden files are skipped.

    Parameters
    ----------
    cache : Path
        Root folder of the cache.
    quick : bool
        Verify only names, layouts and declared sizes of segments; by default, digests and row
        checksums too.
    progress : Progress

    Returns
    -------
    files : int
        Number of files checked.
    damages : list of Damage

    Raises
    ------
    StorageError
        A file cannot be opened, for example without permission, so its content is unknown.
    """
    require_cache(cache)
    damages: list[Damage] = []
    files = 0
    for path in _visible(cache / "datasets"):
        files += 1
        damages += _dataset_damages(cache, path)
    for folder in _visible(cache / "spaces"):
        if not folder.is_dir():
            files += 1
            damages.append(Damage(folder, "not a feature store", []))
            continue
        try:
            store = open_store(folder)
        except (DamageError, StorageError) as error:
            space = space_of_segments(folder)
            if space is None and not any(path.is_file() for path in folder.rglob("[!.]*")):
                continue  # its writer has not created the first file yet, or was killed before
            damages.append(_damage(folder / "space.json", error, space))
            if space is None:
                files += 1
                continue
            store = FeatureStore(cache, space)
        else:
            if read_regular(folder / "space.json") != space_text(store.space):
                problem = "its bytes are not those that were written"
                damages.append(Damage(folder / "space.json", problem, [], store.space))
        paths = _visible(store.folder) + _visible(store.segments_folder)
        files += sum(path.is_file() for path in paths)
        damages += _store_damages(store, quick=quick, progress=progress)
    return files, damages


def _visible(folder: Path) -> list[Path]:
    return [folder / name for name in names_in(folder) if not name.startswith(".")]


def _damage(path: Path, error: FeatpipeError, space: FeatureSpace | None = None) -> Damage:
    """The damage that an error reports; raises an error that is not about the content."""
    if isinstance(error, StorageError):
        cause = getattr(error.__cause__, "errno", None)
        if cause not in (errno.EIO, *_NOT_A_FILE):
            raise error
    return Damage(path, str(error), [], space)


def _dataset_damages(cache: Path, path: Path) -> Iterator[Damage]:
    if path.suffix != ".h5":
        yield Damage(path, "not a data set", [])
        return
    try:
        load_dataset(cache, path.stem)
    except UsageError:
        yield Damage(path, "not a data set: no data set can have this name", [])
    except NotFoundError:
        return  # deleted since the folder was listed
    except (DamageError, StorageError) as error:
        yield _damage(path, error)


def _store_damages(store: FeatureStore, *, quick: bool, progress: Progress) -> Iterator[Damage]:
    for path in _visible(store.folder):
        if path.name not in ("space.json", "segments", INDEX_NAME):
            yield Damage(path, "not a part of a feature store", [])
    intact: dict[str, Segment] = {}
    paths = _visible(store.segments_folder)
    damaged = 0
    with progress(f"verify {store.folder.name}", len(paths)) as bar:
        for path in paths:
            segment, damage = _verify_segment(path, store.space, quick=quick)
            if damage is not None:
                if not os.path.lexists(path):
                    continue  # set aside by a repair since the folder was listed
                damaged += 1
                yield damage
            elif segment is not None:
                intact[path.stem] = segment
            bar.advance(damaged=damaged)
    try:
        problem = index_problem(store.folder, intact)
    except OSError as error:
        problem = f"it cannot be read: {error.strerror}"
    if problem is not None:
        advice = "it is derived: delete it, and the next command makes it anew"
        yield Damage(store.folder / INDEX_NAME, f"{problem}; {advice}", [])


def _verify_segment(
    path: Path, space: FeatureSpace, *, quick: bool
) -> tuple[Segment | None, Damage | None]:
    """The segment if the file is intact, else its damage."""
    if path.suffix != ".h5" or len(path.stem) != 64 or not path.is_file():
        return None, Damage(path, "not a segment of this store", [], space)
    try:
        has_its_digest = quick or file_digest(path) == path.stem
        segment = read_segment(path, space)
        if has_its_digest:
            return segment, None
        damaged_rows = [
            number for number, row in enumerate(whole_rows(segment, space)) if row is None
        ]
    except (DamageError, StorageError) as error:
        return None, _damage(path, error, space)
    return None, Damage(path, "its bytes do not have the digest in its name", damaged_rows, space)
