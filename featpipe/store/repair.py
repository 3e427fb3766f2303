"""Repair of a cache: damaged files are set aside, never deleted; intact rows are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.base.disk import move_aside
from featpipe.base.errors import FeatpipeError
from featpipe.base.space import FeatureSpace
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment, whole_rows
from featpipe.store.verification import Damage

ASIDE = "aside"
"""Folder of the cache to which damaged files are moved, keeping their relative paths."""


@dataclass(frozen=True)
class Repair:
    """The repair of one damaged file.

    Attributes
    ----------
    path : Path
        Where the file was.
    aside : Path
        Where the file is now.
    problem : str
        What was wrong with the file.
    rows_kept : int
        Number of rows with a correct checksum, written again as a new segment.
    """

    path: Path
    aside: Path
    problem: str
    rows_kept: int


def repair_file(damage: Damage, cache: Path) -> Repair | None:
    """Set one damaged file aside and keep its intact rows; None if the file is gone.

    Intact rows are stored again before the damaged file is moved, so that readers find them at
    any time. The next extraction computes the lost rows again.

    Raises
    ------
    StorageError
        A file cannot be written or moved.
    """
    path = damage.path
    if path.name == "space.json" and path.parent.parent == cache / "spaces":
        return _repair_space_file(damage, cache)
    kept = 0 if damage.space is None else _keep_whole_rows(path, cache, damage.space)
    aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    return None if aside is None else Repair(path, aside, damage.problem, kept)


def _repair_space_file(damage: Damage, cache: Path) -> Repair | None:
    """Rewrite ``space.json`` if its content is known, else set the whole folder aside."""
    path, folder = damage.path, damage.path.parent
    if damage.space is None:
        aside = move_aside(folder, cache / ASIDE / folder.relative_to(cache))
        return None if aside is None else Repair(folder, aside, damage.problem, 0)
    aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    FeatureStore(cache, damage.space).prepare()
    return Repair(path, aside or path, damage.problem, 0)


def _keep_whole_rows(path: Path, cache: Path, space: FeatureSpace) -> int:
    """Store the intact rows of a damaged segment again; returns how many there are."""
    store = FeatureStore(cache, space)
    try:
        segment = read_segment(path, space)
        rows = list(whole_rows(segment, space))
    except FeatpipeError:
        return 0
    intact = [number for number, row in enumerate(rows) if row is not None]
    if intact:
        kept = np.stack([row for row in rows if row is not None])
        store.append(segment.ids[intact], kept, {"repaired_from": path.name})
    return len(intact)
