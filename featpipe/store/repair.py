"""Repairing a cache: damaged files are set aside, never deleted; whole rows are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.disk import move_aside
from featpipe.errors import FeatpipeError
from featpipe.progress import Progress, no_progress
from featpipe.space import FeatureSpace
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment, row_checksums, stored_space
from featpipe.store.survey import Damage, verify

ASIDE = "aside"
"""Folder of the cache that damaged files are moved to, under their own relative path."""


@dataclass(frozen=True)
class Repair:
    """What was done about one damaged file.

    Attributes
    ----------
    path : Path
        Where it was.
    aside : Path
        Where it is now.
    problem : str
    rows_kept : int
        Rows whose checksum held, written again as a new segment.
    """

    path: Path
    aside: Path
    problem: str
    rows_kept: int


def repair(cache: Path, *, progress: Progress = no_progress) -> list[Repair]:
    """Verify a cache in full and mend what is damaged.

    Rows that hold are stored again before the damaged file is moved, so that no instant is
    without them. What is lost is computed by the next extraction.

    Returns
    -------
    list of Repair
        Empty where nothing was damaged.
    """
    _, damages = verify(cache, progress=progress)
    return [_mend(damage, cache) for damage in damages]


def _mend(damage: Damage, cache: Path) -> Repair:
    path = damage.path
    if path.name == "space.json":
        return _mend_space(damage, cache)
    kept = 0 if damage.space is None else _keep_whole_rows(path, cache, damage.space)
    aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    return Repair(path, aside, damage.problem, kept)


def _mend_space(damage: Damage, cache: Path) -> Repair:
    """Write ``space.json`` anew from a segment; a folder without any is set aside whole."""
    path, folder = damage.path, damage.path.parent
    space = _space_of_segments(folder)
    if space is None:
        aside = move_aside(folder, cache / ASIDE / folder.relative_to(cache))
        return Repair(folder, aside, damage.problem, 0)
    aside = path
    if path.exists():
        aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    store = FeatureStore(cache, space)
    store.prepare()
    return Repair(path, aside, damage.problem, len(store.index.ids))


def _space_of_segments(folder: Path) -> FeatureSpace | None:
    for path in sorted((folder / "segments").glob("*.h5")):
        try:
            space = stored_space(path)
        except FeatpipeError:
            continue
        if space.name == folder.name:
            return space
    return None


def _keep_whole_rows(path: Path, cache: Path, space: FeatureSpace) -> int:
    store = FeatureStore(cache, space)
    try:
        segment = read_segment(path, space)
    except FeatpipeError:
        return 0
    shape = (len(segment.ids), *space.shape)
    rows = np.memmap(path, space.dtype, "r", segment.offset, shape)
    whole = np.flatnonzero(row_checksums(rows) == segment.crc32)
    if len(whole):
        provenance = {"repaired_from": path.name}
        store.append(segment.ids[whole], np.asarray(rows[whole]), provenance)
    return len(whole)
