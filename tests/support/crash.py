"""Extractions and repairs that are cut, and what must hold of the cache afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.base.disk import Disk, use_disk
from featpipe.base.errors import NotFoundError
from featpipe.datasets.dataset import Dataset, DatasetInfo, SourceInfo
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.engine.writer import SegmentWriter
from featpipe.specs.garbage import GarbageSpec
from featpipe.stages.maintain import collect_garbage, verify
from featpipe.stages.removal import find_removal, remove
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment, whole_rows
from featpipe.store.verification import Damage
from support.faulty_disk import FaultyDisk, tree_of
from support.samples import image_ids, small_space

SPACES = [small_space(), small_space(tap="block2_pool", shape=(40,), dtype="float32")]


BATCH = 3


PIECES = 1000
"""Bytes a write takes: segments, indexes and data sets are each written in several pieces."""


def row_of(kind: int, name: int) -> np.ndarray:
    """The one right row of a picture in a store."""
    rng = np.random.default_rng([kind, name])
    return rng.normal(size=SPACES[kind].shape).astype(SPACES[kind].dtype)


def dataset_of(batches: int) -> Dataset:
    return dataset_of_pictures(range(batches * BATCH))


def dataset_of_pictures(names: Sequence[int]) -> Dataset:
    n = len(names)
    return Dataset(
        name="set",
        source=SourceInfo("folder", "pretended", "pretended"),
        classes=["cat", "dog"],
        paths=[f"{name}.png" for name in names],
        label=np.array(names) % 2,
        split=np.zeros(n, np.int8),
        image_sha256=image_ids(*names),
        status=np.zeros(n, np.int8),
        stat=np.full((n, 3), -1),
        spaces=[space.canonical_json for space in SPACES],
        info=DatasetInfo(),
    )


def extract(cache: Path, batches: int) -> list[tuple[int, int]]:
    """What an extraction writes, in its order; returns the rows that it had to make."""
    stores = [FeatureStore(cache, space) for space in SPACES]
    for store in stores:
        store.prepare()
    target = SegmentWriter(stores, {})
    made = []
    try:
        for batch in range(batches):
            names = range(batch * BATCH, (batch + 1) * BATCH)
            ids = image_ids(*names)
            for kind, store in enumerate(stores):
                for i in np.flatnonzero(~store.contains(ids)):
                    target.add(kind, ids[i].tobytes(), row_of(kind, names[i]))
                    made.append((kind, names[i]))
            target.poll()
    finally:
        target.finish()
    for store in stores:
        store.refresh()
        assert store.contains(image_ids(*range(batches * BATCH))).all()
    save_dataset(cache, dataset_of(batches))
    return made


class ReadOnlyDisk(Disk):
    """A disk that nothing can be written to."""

    def open(self, path: Path, mode: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def assert_rows_are_handed_out(cache: Path, rows: Iterable[tuple[int, int]]) -> None:
    """These rows and no others are known, and each is right."""
    wanted = set(rows)
    with use_disk(ReadOnlyDisk()):
        for kind, space in enumerate(SPACES):
            store = FeatureStore(cache, space)
            names = np.arange(40)
            known = names[store.contains(image_ids(*names))]
            assert {(kind, int(name)) for name in known} == {
                row for row in wanted if row[0] == kind
            }
            if len(known):
                expected = np.stack([row_of(kind, int(name)) for name in known])
                assert store.rows(image_ids(*known))[:].tobytes() == expected.tobytes()


def damages(cache: Path) -> list[Damage]:
    """What is damaged, but for a store that was about to be made: it has not one file yet."""
    if not (cache / "spaces").is_dir() and not (cache / "datasets").is_dir():
        return []
    found = verify(cache)[1]
    return [
        damage
        for damage in found
        if damage.path.name != "space.json"
        or any(not path.name.startswith(".tmp-") for path in damage.path.parent.iterdir())
    ]


def no_temporary_files(folder: Path) -> None:
    assert [*folder.rglob(".tmp-*")] == []


def undisturbed(do: Callable[[], Any]) -> Any:
    with use_disk(FaultyDisk(syncs=False)):
        return do()


def damaged_cache(cache: Path) -> set[bytes]:
    """Fill a cache and damage a file of every sort; returns what the damaged files hold."""
    undisturbed(lambda: extract(cache, 4))
    segments = [sorted((cache / "spaces" / space.name / "segments").iterdir()) for space in SPACES]
    victims = [segments[0][0], segments[0][2], segments[1][1]]
    # One row; one row of another; and a file cut short, of which nothing can be kept.
    flip(victims[0], read_segment(victims[0], SPACES[0]).offset)
    flip(victims[1], victims[1].stat().st_size - 1)
    victims[2].chmod(0o644)
    victims[2].write_bytes(victims[2].read_bytes()[:1500])
    for path in (
        cache / "datasets" / "set.h5",
        cache / "spaces" / SPACES[0].name / "index.npz",
        cache / "spaces" / SPACES[1].name / "space.json",
    ):
        flip(path, 60)
        victims.append(path)
    stray = cache / "spaces" / SPACES[0].name / "segments" / "notes.txt"
    stray.write_text("not a segment")
    return {path.read_bytes() for path in [*victims, stray]}


NAMED = (0, 2, 3, 4, 5, 10)
"""Pictures that are named in a cache with garbage. Of the four segments of each store one stays,
one goes, and two are replaced."""
NAMED_ROWS = {(kind, name) for kind in (0, 1) for name in NAMED}
ALL_ROWS = {(kind, name) for kind in (0, 1) for name in range(4 * BATCH)}


def cache_with_garbage(cache: Path) -> None:
    """Fill a cache, and let its data set name half of the rows."""
    undisturbed(lambda: extract(cache, 4))
    undisturbed(lambda: save_dataset(cache, dataset_of_pictures(NAMED)))


def collect(cache: Path, grace: float = 0.0) -> None:
    collect_garbage(cache, GarbageSpec(grace=grace))


def assert_nothing_named_is_lost(cache: Path) -> None:
    assert damages(cache) == []
    rows = whole_rows_of(cache)
    assert rows >= NAMED_ROWS, "a row that is named was lost"
    assert_rows_are_handed_out(cache, rows)
    assert load_dataset(cache, "set").digest() == dataset_of_pictures(NAMED).digest()


def assert_collected(cache: Path) -> None:
    assert_nothing_named_is_lost(cache)
    assert whole_rows_of(cache) == NAMED_ROWS
    no_temporary_files(cache)


def remove_space(cache: Path) -> None:
    """Remove the first feature space."""
    remove(cache, find_removal(cache, SPACES[0].id[:6]))


def assert_space_is_there_or_not_listed(cache: Path) -> None:
    assert damages(cache) == []
    rows = whole_rows_of(cache)
    assert rows >= {row for row in ALL_ROWS if row[0] == 1}, "a row of another space was lost"
    if SPACES[0].canonical_json in load_dataset(cache, "set").spaces:
        assert rows == ALL_ROWS, "a space is listed that is not there"


def remove_again(cache: Path) -> None:
    """Go on with a removal that was cut."""
    with contextlib.suppress(NotFoundError):
        undisturbed(lambda: remove_space(cache))
    undisturbed(lambda: collect(cache, grace=1e6))


def whole_rows_of(cache: Path) -> set[tuple[int, int]]:
    """Every row whose checksum holds, in whatever file of a store it lies."""
    names = {image_ids(name)[0].tobytes(): name for name in range(40)}
    found = set()
    for kind, space in enumerate(SPACES):
        for path in (cache / "spaces" / space.name / "segments").glob("*.h5"):
            if path.stat().st_size == 1500:
                continue
            segment = read_segment(path, space)
            for image_id, row in zip(segment.ids, whole_rows(segment, space), strict=True):
                if row is not None:
                    name = names[image_id.tobytes()]
                    assert row.tobytes() == row_of(kind, name).tobytes()
                    found.add((kind, name))
    return found


def assert_repaired(cache: Path, rows: set[tuple[int, int]], damaged: set[bytes]) -> None:
    assert verify(cache)[1] == []
    assert_rows_are_handed_out(cache, rows)
    aside = {data for data in tree_of(cache / "aside").values() if data is not None}
    assert damaged <= aside, "a damaged file is gone"
    no_temporary_files(cache)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
