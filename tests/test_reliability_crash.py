"""Killed at any instant: a process that ends right after any one call to the disk.

The calls are enumerated, not sampled. Writes are cut into pieces, so that a process also ends
inside a file; what would have run after the cut, cleaning up too, does not.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import TINY_FLAGS, class_picture, image_ids, small_space
from faulty_disk import FaultyDisk, PowerLoss, tree_of
from reliability import NewTally, Scale
from test_head_files import trained_head

from featpipe import api
from featpipe.disk import Disk, use_disk
from featpipe.engine import writer
from featpipe.engine.writer import SegmentWriter
from featpipe.errors import NotFoundError
from featpipe.heads.files import TrainedHead, load_head, save_head
from featpipe.store.datasets import Dataset, load_dataset, save_dataset
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment, whole_rows
from featpipe.store.survey import Damage
from featpipe.upkeep import repair, verify

PROMISE = "1 Killed at any instant"
SPACES = [small_space(), small_space(tap="block2_pool", shape=(40,), dtype="float32")]
BATCH = 3
PIECES = 1000
"""Bytes a write takes: segments, indexes and data sets are each written in several pieces."""


def row_of(kind: int, name: int) -> np.ndarray:
    """The one right row of a picture in a store."""
    rng = np.random.default_rng([kind, name])
    return rng.normal(size=SPACES[kind].shape).astype(SPACES[kind].dtype)


def dataset_of(batches: int) -> Dataset:
    n = batches * BATCH
    return Dataset(
        name="set",
        source={"kind": "folder", "spec": "pretended", "root": "pretended"},
        classes=["cat", "dog"],
        paths=[f"{name}.png" for name in range(n)],
        label=np.arange(n) % 2,
        split=np.zeros(n, np.int8),
        image_sha256=image_ids(*range(n)),
        status=np.zeros(n, np.int8),
        stat=np.full((n, 3), -1),
        spaces=[space.canonical_json for space in SPACES],
        info={},
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


@pytest.fixture(autouse=True)
def every_batch_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)


class ReadOnlyDisk(Disk):
    """A disk that nothing can be written to."""

    def open(self, path: Path, mode: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def stored_rows(cache: Path) -> list[tuple[int, int]]:
    """Kind and name of every row that lies in a whole segment, found without the store."""
    names = {image_ids(name)[0].tobytes(): name for name in range(100)}
    found = []
    for kind, space in enumerate(SPACES):
        for path in sorted((cache / "spaces" / space.name / "segments").glob("*.h5")):
            with h5py.File(path) as file:
                ids, rows = file["image_sha256"][:], file["features"][:]
            for image_id, row in zip(ids, rows, strict=True):
                assert row.tobytes() == row_of(kind, names[image_id.tobytes()]).tobytes()
                found.append((kind, names[image_id.tobytes()]))
    return found


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


def cut(do: Callable[[], Any], number: int) -> FaultyDisk:
    """Do something in a process that ends right after call ``number``."""
    disk = FaultyDisk(lose_power_after=number, bytes_a_write=PIECES, syncs=False)
    with use_disk(disk), pytest.raises(PowerLoss):
        do()
    return disk


def calls_of(do: Callable[[], Any]) -> list[str]:
    """The calls of something that runs to its end."""
    disk = FaultyDisk(bytes_a_write=PIECES, syncs=False)
    with use_disk(disk):
        do()
    return disk.calls


@pytest.mark.parametrize("before", [0, 2], ids=["a new cache", "a cache with rows"])
def test_an_extraction_cut_after_any_call_goes_on_where_it_was(
    before: int, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    batches = before + 3
    start = tmp_path / "start"
    start.mkdir()
    if before:
        undisturbed(lambda: extract(start / "cache", before))
    shutil.copytree(start, tmp_path / "whole")
    calls = calls_of(lambda: extract(tmp_path / "whole" / "cache", batches))
    assert {"mkdir", "lock"} <= {*calls} or before
    assert calls.count("write") > 2 * calls.count("open"), "no cut is inside a file"
    whole = tree_of(tmp_path / "whole")
    every = {(kind, name) for kind in (0, 1) for name in range(batches * BATCH)}
    t = tally(PROMISE, f"each call of the writer, into {'a cache with rows' if before else 'none'}")
    for number, call in [*enumerate(calls)][:: scale(17, 1)]:
        folder = tmp_path / f"{number}"
        shutil.copytree(start, folder)
        cache = folder / "cache"
        with t.case(f"cut after call {number}, {call}"):
            disk = cut(lambda cache=cache: extract(cache, batches), number)
            assert disk.calls[: number + 1] == calls[: number + 1]
            committed = stored_rows(cache)
            renames = [a for c, a in zip(disk.calls, disk.arguments, strict=True) if c == "rename"]
            done = renames[: disk.calls[: number + 1].count("rename")]
            expected = 2 * before + sum(target.suffix == ".h5" for _, target in done)
            segments = [*cache.glob("spaces/*/segments/*.h5")]
            assert len(segments) == expected - (
                cache / "datasets" / "set.h5" in dict(done).values()
            )
            assert len(committed) == BATCH * len(segments)
            assert damages(cache) == []
            assert_rows_are_handed_out(cache, committed)
            _assert_old_or_new_dataset(cache, before, batches)
            made = undisturbed(lambda cache=cache: extract(cache, batches))
            assert sorted(made) == sorted(every - {*committed}), "a committed row was made again"
            assert tree_of(folder) == whole
            assert load_dataset(cache, "set").digest() == dataset_of(batches).digest()
            assert verify(cache)[1] == []
        shutil.rmtree(folder)


def _assert_old_or_new_dataset(cache: Path, before: int, batches: int) -> None:
    known = {dataset_of(n).digest() for n in (before, batches) if n}
    try:
        assert load_dataset(cache, "set").digest() in known
    except NotFoundError:
        assert not before


@pytest.fixture(scope="module")
def heads() -> list[TrainedHead]:
    """Heads that differ; a later one may also be of another kind."""
    kinds = ("linear", "mlp", "linear", "logistic", "linear")
    return [trained_head(kind, seed) for seed, kind in enumerate(kinds)]


def answering(folder: Path, heads: list[TrainedHead]) -> int | None:
    """Which of the heads a run folder gives; None where there is none."""
    try:
        found = load_head(folder)
    except NotFoundError:
        return None
    number: int = found.info["seed"]
    tensors, expected = found.head.tensors(), heads[number].head.tensors()
    assert {name: t.tobytes() for name, t in tensors.items()} == {
        name: np.ascontiguousarray(t).tobytes() for name, t in expected.items()
    }
    return number


def test_a_head_saved_over_another_and_cut_again_and_again_is_old_or_new(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    start = tmp_path / "start"
    save_head(start, heads[0])
    names = {"head.json", "head.safetensors"}
    depth = scale(2, 3)
    tallies = [
        tally(PROMISE, f"each call of saving a head over another, cut {number}")
        for number in ("once", "twice, each pair", "three times, each triple")[:depth]
    ]

    def save_and_cut(start: Path, depth: int, cuts: tuple[int, ...]) -> None:
        answered = answering(start, heads)
        new = heads[len(cuts) + 1]
        for number in itertools.count():
            folder = start.with_name("-".join(map(str, (*cuts, number))))
            shutil.copytree(start, folder)
            disk = FaultyDisk(lose_power_after=number, bytes_a_write=PIECES, syncs=False)
            with tallies[len(cuts)].case(f"cut after calls {(*cuts, number)}"):
                try:
                    with use_disk(disk):
                        save_head(folder, new)
                except PowerLoss:
                    assert answering(folder, heads) in (answered, len(cuts) + 1)
                    if len(cuts) + 1 < depth and number % scale(6, 1) == 0:
                        save_and_cut(folder, depth, (*cuts, number))
                    undisturbed(lambda folder=folder: save_head(folder, heads[-1]))
                    assert answering(folder, heads) == len(heads) - 1
                else:
                    assert answering(folder, heads) == len(cuts) + 1
            left = {path.name for path in folder.iterdir()}
            shutil.rmtree(folder)
            assert left == names
            if len(disk.calls) <= number:
                assert number >= 16, "these are fewer calls than saving has"
                return

    save_and_cut(start, depth, ())


def test_the_first_head_is_whole_or_not_there(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally
) -> None:
    (tmp_path / "whole").mkdir()
    calls = calls_of(lambda: save_head(tmp_path / "whole" / "run", heads[0]))
    t = tally(PROMISE, "each call of saving the first head")
    for number, call in enumerate(calls):
        folder = tmp_path / f"{number}" / "run"
        folder.parent.mkdir()
        with t.case(f"cut after call {number}, {call}"):
            cut(lambda folder=folder: save_head(folder, heads[0]), number)
            json_is_there = calls[: number + 1].count("rename") == 2
            assert answering(folder, heads) == (0 if json_is_there else None)
            undisturbed(lambda folder=folder: save_head(folder, heads[1]))
            assert answering(folder, heads) == 1
            assert len([*folder.iterdir()]) == 2


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


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


def test_a_repair_cut_after_any_call_loses_nothing(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    start = tmp_path / "start"
    damaged = damaged_cache(start)
    rows = whole_rows_of(start)
    assert len(rows) == 2 * 4 * BATCH - 2 - BATCH
    shutil.copytree(start, tmp_path / "whole")
    calls = calls_of(lambda: repair(tmp_path / "whole"))
    assert_repaired(tmp_path / "whole", rows, damaged)
    whole = tree_of(tmp_path / "whole")
    once = tally(PROMISE, "each call of a repair")
    twice = tally(PROMISE, "each call of a repair that was cut before") if scale(0, 1) else None

    def check(cache: Path) -> None:
        assert whole_rows_of(cache) >= rows, "a whole row was lost"
        everywhere = {data for data in tree_of(cache).values() if data is not None}
        assert damaged <= everywhere, "a damaged file is gone"

    def again(cache: Path) -> None:
        undisturbed(lambda: repair(cache))
        assert_repaired(cache, rows, damaged)
        assert tree_of(cache) == whole

    for number, call in [*enumerate(calls)][:: scale(17, 1)]:
        cache = tmp_path / f"{number}"
        shutil.copytree(start, cache)
        with once.case(f"cut after call {number}, {call}"):
            cut(lambda cache=cache: repair(cache), number)
            check(cache)
            # Pairs are many: only those of every tenth first cut.
            if twice is not None and number % 10 == 0:
                shutil.copytree(cache, tmp_path / "probe")
                rest = calls_of(lambda: repair(tmp_path / "probe"))
                shutil.rmtree(tmp_path / "probe")
                for second in range(len(rest)):
                    with twice.case(f"cut after calls {number} and {second}"):
                        copy = tmp_path / f"{number}-{second}"
                        shutil.copytree(cache, copy)
                        cut(lambda copy=copy: repair(copy), second)
                        check(copy)
                        again(copy)
                        shutil.rmtree(copy)
            again(cache)
        shutil.rmtree(cache)
    # What was lost is all that is made again.
    every = {(kind, name) for kind in (0, 1) for name in range(4 * BATCH)}
    assert {*undisturbed(lambda: extract(tmp_path / "whole", 4))} == every - rows


@pytest.mark.timeout(3600)
def test_a_real_extraction_cut_after_any_call_goes_on_where_it_was(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    if not scale(0, 1):
        pytest.skip("only in the long form: every case extracts twice")
    for label in (0, 1):
        (tmp_path / "photos" / str(label)).mkdir(parents=True)
        for seed in range(3):
            picture = class_picture(label, seed)
            picture.save(tmp_path / "photos" / str(label) / f"{seed}.png")
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    options: dict[str, Any] = {flag.removeprefix("--"): value for flag, value in pairs}
    # Two pictures a batch, and each batch is a segment.
    options.update(batch_size=2, workers=1, pool="avg")

    def real(cache: Path) -> Any:
        return api.extract(tmp_path / "photos", name="x", cache=cache, **options)

    def rows_in(cache: Path) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for path in cache.glob("spaces/*/segments/[0-9a-f]*.h5"):
            with h5py.File(path) as file:
                for image_id, row in zip(file["image_sha256"], file["features"], strict=True):
                    assert image_id.tobytes() not in found, "a row was written twice"
                    found[image_id.tobytes()] = row.tobytes()
        return found

    calls = calls_of(lambda: real(tmp_path / "whole"))
    whole, digest = rows_in(tmp_path / "whole"), load_dataset(tmp_path / "whole", "x").digest()
    assert len(whole) == 6
    t = tally(PROMISE, "each call of an extraction of pictures")
    for number, call in enumerate(calls):
        cache = tmp_path / f"{number}"
        with t.case(f"cut after call {number}, {call}"):
            cut(lambda cache=cache: real(cache), number)
            committed = rows_in(cache)
            assert committed.items() <= whole.items()
            assert damages(cache) == []
            done = undisturbed(lambda cache=cache: real(cache))
            assert done.computed == 6 - len(committed), "a committed row was computed again"
            assert rows_in(cache) == whole
            assert load_dataset(cache, "x").digest() == digest
            assert verify(cache)[1] == []
            no_temporary_files(cache)
        shutil.rmtree(cache)
