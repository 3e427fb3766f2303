"""Maintenance of a cache: verification, repair, and collection of garbage."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.base.disk import names_in, remove_remains, sync_folder
from featpipe.base.errors import DamageError
from featpipe.base.progress import Progress, no_progress
from featpipe.datasets.named_rows import NamedRows
from featpipe.engine.precision import check_kept_precisions
from featpipe.specs.garbage import HOUR_S, GarbageSpec
from featpipe.store import verification
from featpipe.store.feature_store import list_stores
from featpipe.store.garbage import StoreGarbage, collect_store
from featpipe.store.lease import sole_lease
from featpipe.store.repair import ASIDE, Repair, repair_file
from featpipe.store.verification import Damage, require_cache
from featpipe.weights.resolve import check_kept_weights

if TYPE_CHECKING:
    from featpipe.stages.documents import GarbageDocument, StoreGarbageDocument


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


def collect_garbage(
    cache: Path, spec: GarbageSpec, *, progress: Progress = no_progress
) -> list[StoreGarbage]:
    """Delete the rows that no data set names and that are older than the time of grace.

    Among them are rows that only a prediction computed, and those of an extraction that never
    ended. Nobody may be extracting or predicting meanwhile; readers may go on.

    Parameters
    ----------
    cache : Path
    spec : GarbageSpec
    progress : Progress

    Returns
    -------
    list of StoreGarbage
        One per feature store.

    Raises
    ------
    InUseError
        Another process uses the cache; a dry run does not mind.
    NotFoundError, DamageError, StorageError
        On damage nothing is deleted whose loss could follow from it.
    """
    require_cache(cache)
    if spec.dry_run:
        return _collect(cache, spec, progress)
    with sole_lease(cache):
        remove_remains(cache / "spaces")
        # Otherwise a power loss could bring back a list whose rows go now.
        sync_folder(cache / "datasets")
        return _collect(cache, spec, progress)


def garbage_document(found: list[StoreGarbage], *, dry_run: bool) -> GarbageDocument:
    """What ``cache gc`` prints."""
    stores: list[StoreGarbageDocument] = [
        {
            "name": store.name,
            "rows": store.rows,
            "kept": store.kept,
            "young": store.young,
            "deleted": store.deleted,
            "replaced": store.replaced,
            "bytes": store.bytes,
        }
        for store in found
    ]
    rows, size = sum(store.rows for store in found), sum(store.bytes for store in found)
    return {"dry_run": dry_run, "rows": rows, "bytes": size, "stores": stores}


def _collect(cache: Path, spec: GarbageSpec, progress: Progress) -> list[StoreGarbage]:
    _require_lists_back(cache)
    named = NamedRows.of_cache(cache)
    before = time.time() - spec.grace * HOUR_S
    stores = list_stores(cache)
    found = []
    with progress("collect garbage", len(stores)) as bar:
        for store in stores:
            ids = named.of_space(store.space)
            found.append(collect_store(store, ids, before=before, dry_run=spec.dry_run))
            bar.advance()
    return found


def _require_lists_back(cache: Path) -> None:
    """Refuse to take the rows of a data set for garbage whose list a repair set aside."""
    aside = cache / ASIDE / "datasets"
    for name in names_in(aside):
        stem, is_list, _ = name.partition(".h5")
        if is_list and not (cache / "datasets" / f"{stem}.h5").exists():
            raise DamageError(
                f"expected every data set to be there, found {aside / name}, which was set aside "
                "and whose rows would go; run its 'featpipe extract' again, or delete that file"
            )
