"""Repairing a cache: damaged files are set aside, never deleted; whole rows are kept."""

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


def mend(damage: Damage, cache: Path) -> Repair | None:
    """Set one damaged file aside and keep what is whole of it; None where it is gone.

    Rows that hold are stored again before the damaged file is moved, so that no instant is
    without them. What is lost is computed by the next extraction.

    Raises
    ------
    StorageError
    """
    path = damage.path
    if path.name == "space.json" and path.parent.parent == cache / "spaces":
        return _mend_space(damage, cache)
    kept = 0 if damage.space is None else _keep_whole_rows(path, cache, damage.space)
    aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    return None if aside is None else Repair(path, aside, damage.problem, kept)


def _mend_space(damage: Damage, cache: Path) -> Repair | None:
    """Write ``space.json`` anew where it is known; else the folder is set aside whole."""
    path, folder = damage.path, damage.path.parent
    if damage.space is None:
        aside = move_aside(folder, cache / ASIDE / folder.relative_to(cache))
        return None if aside is None else Repair(folder, aside, damage.problem, 0)
    aside = move_aside(path, cache / ASIDE / path.relative_to(cache))
    FeatureStore(cache, damage.space).prepare()
    return Repair(path, aside or path, damage.problem, 0)


def _keep_whole_rows(path: Path, cache: Path, space: FeatureSpace) -> int:
    store = FeatureStore(cache, space)
    try:
        segment = read_segment(path, space)
        rows = list(whole_rows(segment, space))
    except FeatpipeError:
        return 0
    whole = [number for number, row in enumerate(rows) if row is not None]
    if whole:
        kept = np.stack([row for row in rows if row is not None])
        store.append(segment.ids[whole], kept, {"repaired_from": path.name})
    return len(whole)
