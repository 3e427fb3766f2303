"""Killed at any instant: a process that ends right after any one call to the disk.

The calls are enumerated, not sampled. Writes are cut into pieces, so that a process also ends
inside a file; what would have run after the cut, cleaning up too, does not.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.command import TINY_FLAGS
from support.crash import (
    ALL_ROWS,
    BATCH,
    NAMED_ROWS,
    PIECES,
    SPACES,
    assert_collected,
    assert_nothing_named_is_lost,
    assert_repaired,
    assert_rows_are_handed_out,
    assert_space_is_there_or_not_listed,
    cache_with_garbage,
    collect,
    damaged_cache,
    damages,
    dataset_of,
    extract,
    no_temporary_files,
    remove_again,
    remove_space,
    row_of,
    undisturbed,
    whole_rows_of,
)
from support.faulty_disk import FaultyDisk, PowerLoss, tree_of
from support.runs import load_head, save_head, trained_head
from support.samples import class_picture, image_ids
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base.disk import use_disk
from featpipe.base.errors import NotFoundError
from featpipe.datasets.files import load_dataset
from featpipe.engine import writer
from featpipe.runs.trained_head import TrainedHead
from featpipe.stages.maintain import repair, verify

PROMISE = "1 Killed at any instant"


@pytest.fixture(autouse=True)
def every_batch_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)


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


def test_a_collection_of_garbage_cut_after_any_call_loses_nothing_named(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    start = tmp_path / "start"
    cache_with_garbage(start)
    shutil.copytree(start, tmp_path / "whole")
    calls = calls_of(lambda: collect(tmp_path / "whole"))
    assert {"unlink", "rename", "lock"} <= {*calls}
    assert_collected(tmp_path / "whole")
    whole = tree_of(tmp_path / "whole")
    t = tally(PROMISE, "each call of a collection of garbage")
    for number, call in [*enumerate(calls)][:: scale(13, 1)]:
        cache = tmp_path / f"{number}"
        shutil.copytree(start, cache)
        with t.case(f"cut after call {number}, {call}"):
            cut(lambda cache=cache: collect(cache), number)
            assert_nothing_named_is_lost(cache)
            shutil.copytree(cache, tmp_path / "extracted")
            made = undisturbed(lambda: extract(tmp_path / "extracted", 4))
            assert {*made} <= ALL_ROWS - NAMED_ROWS, "more was made again than was garbage"
            assert verify(tmp_path / "extracted")[1] == []
            undisturbed(lambda cache=cache: collect(cache))
            assert_collected(cache)
            assert tree_of(cache) == whole
        shutil.rmtree(tmp_path / "extracted", ignore_errors=True)
        shutil.rmtree(cache)
    made = undisturbed(lambda: extract(tmp_path / "whole", 4))
    assert {*made} == ALL_ROWS - NAMED_ROWS


def test_the_removal_of_a_space_cut_after_any_call_leaves_all_of_it_or_nothing(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    start = tmp_path / "start"
    undisturbed(lambda: extract(start, 4))
    shutil.copytree(start, tmp_path / "whole")
    calls = calls_of(lambda: remove_space(tmp_path / "whole"))
    assert {"unlink", "rename", "rmdir"} <= {*calls}
    whole = tree_of(tmp_path / "whole")
    assert not any(SPACES[0].name in path for path in whole)
    t = tally(PROMISE, "each call of the removal of a feature space")
    for number, call in [*enumerate(calls)][:: scale(7, 1)]:
        cache = tmp_path / f"{number}"
        shutil.copytree(start, cache)
        with t.case(f"cut after call {number}, {call}"):
            cut(lambda cache=cache: remove_space(cache), number)
            assert_space_is_there_or_not_listed(cache)
            remove_again(cache)
            assert tree_of(cache) == whole
            made = undisturbed(lambda cache=cache: extract(cache, 4))
            assert {*made} == {row for row in ALL_ROWS if row[0] == 0}
        shutil.rmtree(cache)


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
