"""Looking after a cache: is every file in it whole, and mending what is not."""

from __future__ import annotations

import itertools
from pathlib import Path

from featpipe.base.progress import Progress, no_progress
from featpipe.engine.precision import check_kept_precisions
from featpipe.store import verification as survey
from featpipe.store.repair import Repair, mend
from featpipe.store.verification import Damage
from featpipe.weights.resolve import check_kept_weights


def verify(
    cache: Path, *, quick: bool = False, progress: Progress = no_progress
) -> tuple[int, list[Damage]]:
    """Check every file of a cache: data sets, stores, measurements and, unless
    ``quick``, weights.

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
        A file may not be read: that says nothing about its content.
    """
    files, damages = survey.verify(cache, quick=quick, progress=progress)
    kept = check_kept_precisions(cache), *(() if quick else (check_kept_weights(cache),))
    for path, problem in itertools.chain(*kept):
        files += 1
        if problem:
            damages.append(Damage(path, problem, []))
    return files, damages


def repair(cache: Path, *, progress: Progress = no_progress) -> list[Repair]:
    """Verify a cache in full and mend what is damaged; empty where nothing was.

    What another repair mended first is not in it.

    Raises
    ------
    NotFoundError, StorageError
    """
    _, damages = verify(cache, progress=progress)
    mended = (mend(damage, cache) for damage in damages)
    return [repair for repair in mended if repair is not None]
