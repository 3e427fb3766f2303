"""Maintenance of a cache: verification of every file, and repair of damaged ones."""

from __future__ import annotations

import itertools
from pathlib import Path

from featpipe.base.progress import Progress, no_progress
from featpipe.engine.precision import check_kept_precisions
from featpipe.store import verification
from featpipe.store.repair import Repair, repair_file
from featpipe.store.verification import Damage
from featpipe.weights.resolve import check_kept_weights


def verify(
    cache: Path, *, quick: bool = False, progress: Progress = no_progress
) -> tuple[int, list[Damage]]:
    """Check every file of a cache: data sets, stores, measured precisions, weights.

    Parameters
    ----------
    cache : Path
    quick : bool
        Check names, layouts and sizes of segments only, and no weights.
    progress : Progress

    Returns
    -------
    files : int
        Number of files looked at.
    damages : list of Damage

    Raises
    ------
    NotFoundError
        There is no cache.
    StorageError
        A file cannot be read, which says nothing about its content.
    """
    files, damages = verification.verify(cache, quick=quick, progress=progress)
    kept = check_kept_precisions(cache), *(() if quick else (check_kept_weights(cache),))
    for path, problem in itertools.chain(*kept):
        files += 1
        if problem:
            damages.append(Damage(path, problem, []))
    return files, damages


def repair(cache: Path, *, progress: Progress = no_progress) -> list[Repair]:
    """Verify a cache in full and repair what is damaged.

    Returns
    -------
    list of Repair
        Without what another repair, running at the same time, did first.

    Raises
    ------
    NotFoundError, StorageError
    """
    _, damages = verify(cache, progress=progress)
    repairs = (repair_file(damage, cache) for damage in damages)
    return [repair for repair in repairs if repair is not None]
