"""Views in a cache keep every promise that rows of pictures keep.

The pass that computes them is cut after any call to the disk, meets a power loss, a disk that
fails, damage, and kills at random instants; then the same command goes on to what it would have
given undisturbed.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import pytest
from support.faulty_disk import (
    FaultyDisk,
    JournalDisk,
    PowerLoss,
    PowerLossModel,
    build_tree,
)
from support.samples import class_picture
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base.disk import use_disk
from featpipe.base.errors import DamageError, FeatpipeError, StorageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset
from featpipe.engine import extractor, writer
from featpipe.stages.maintain import repair, verify
from featpipe.store.feature_store import FeatureStore

Rows = dict[tuple[str, bytes], bytes]
VIEWS = 2
TRAIN = 4


@pytest.fixture(autouse=True)
def every_batch_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)
    # What was seen of the pictures is trusted, though they were made a moment ago.
    monkeypatch.setattr(extractor, "_SETTLED_NS", 0)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Four pictures in train, two in test."""
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        for label in (0, 1):
            folder = tmp_path / "few" / split / str(label)
            folder.mkdir(parents=True)
            for seed in seeds:
                class_picture(label, seed).save(folder / f"{seed}.png")
    return tmp_path / "few"


@pytest.fixture
def go(few: Path) -> Callable[..., Any]:
    """Extract into a cache, with views."""

    def extract(cache: Path, views: int = VIEWS) -> Any:
        options = {"backbone": "pixels", "size": 8, "workers": 1, "batch_size": 3}
        return api.extract(few, name="x", cache=cache, views=views, **options)

    return extract


@pytest.fixture
def start(tmp_path: Path, go: Any) -> Path:
    """A cache with the pictures, and no views."""
    go(tmp_path / "start", views=0)
    return tmp_path / "start"


def rows_in(cache: Path) -> Rows:
    """Every row of every segment by its store and image id, read without featpipe."""
    found: Rows = {}
    for path in cache.glob("spaces/*/segments/[0-9a-f]*.h5"):
        with h5py.File(path) as file:
            for image_id, row in zip(file["image_sha256"], file["features"], strict=True):
                key = path.parents[1].name, image_id.tobytes()
                assert found.setdefault(key, row.tobytes()) == row.tobytes()
    return found


def state_of(cache: Path) -> tuple[Rows, str, set[str], dict[str, tuple[str, ...]]]:
    dataset = load_dataset(cache, "x")
    return rows_in(cache), dataset.digest(), set(dataset.spaces), dataset.info.covers


def assert_listed_views_are_whole(cache: Path) -> None:
    """A view that a data set lists has all rows that it promises."""
    dataset = load_dataset(cache, "x")
    for text in dataset.spaces:
        space = FeatureSpace.from_json(text)
        ids = dataset.image_sha256[dataset.covered_by(space)]
        assert len(ids) == (TRAIN if space.view else TRAIN + 2)
        assert FeatureStore(cache, space).contains(ids).all()


def calls_of(start: Path, whole: Path, go: Any) -> list[str]:
    """The disk calls of an undisturbed pass, which leaves ``whole``."""
    shutil.copytree(start, whole)
    disk = FaultyDisk(syncs=False)
    with use_disk(disk):
        go(whole)
    return disk.calls


def some(count: int, wanted: int) -> list[int]:
    """All numbers below ``count``, or as many as wanted."""
    return [*range(count)] if wanted >= count else sorted(random.sample(range(count), wanted))


@pytest.mark.timeout(3600)
def test_views_cut_after_any_call_go_on_where_they_were(
    start: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    calls = calls_of(start, tmp_path / "whole", go)
    expected = state_of(tmp_path / "whole")
    assert len(expected[0]) == TRAIN + 2 + VIEWS * TRAIN
    t = tally("1 Killed at any instant", "each call of a pass over views")
    for number in some(len(calls), scale(5, 10**9)):
        cache = tmp_path / f"{number}"
        shutil.copytree(start, cache)
        with t.case(f"cut after call {number}, {calls[number]}"):
            with use_disk(FaultyDisk(lose_power_after=number, syncs=False)):
                with pytest.raises(PowerLoss):
                    go(cache)
            assert [d.problem for d in verify(cache)[1] if d.path.name != "space.json"] == []
            assert_listed_views_are_whole(cache)
            committed = rows_in(cache)
            assert committed.items() <= expected[0].items()
            done = go(cache)
            assert done.computed == 0
            kept = len(committed) - (TRAIN + 2)
            assert done.views.computed == VIEWS * TRAIN - kept, "a committed row was made again"
            assert state_of(cache) == expected
            assert verify(cache)[1] == []
            assert [*cache.rglob(".tmp-*")] == []
        shutil.rmtree(cache)


@pytest.mark.timeout(3600)
def test_views_survive_a_power_loss_at_any_instant(
    start: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    calls_of(start, tmp_path / "whole", go)
    expected = state_of(tmp_path / "whole")
    shutil.copytree(start, tmp_path / "recorded")
    journal = JournalDisk(tmp_path / "recorded")
    with use_disk(journal):
        go(tmp_path / "recorded")
    t = tally("2 Power loss", "states of a disk on which views were written")
    rng = random.Random(6)
    for number in range(scale(4, 200)):
        length = rng.randint(0, len(journal.operations))
        tree = PowerLossModel(journal.start, journal.operations[:length]).after_power_loss(rng)
        cache = tmp_path / "state"
        with t.case(f"state {number}, after call {length}"):
            build_tree(cache, tree)
            assert_listed_views_are_whole(cache)
            assert rows_in(cache).items() <= expected[0].items()
            go(cache)
            assert state_of(cache) == expected
        shutil.rmtree(cache)


@pytest.mark.timeout(3600)
def test_every_call_of_a_pass_over_views_that_fails_is_told_and_costs_nothing(
    start: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    calls = calls_of(start, tmp_path / "whole", go)
    expected = state_of(tmp_path / "whole")
    t = tally("3 Disk full and write errors", "each call to the disk failing: views")
    for number in some(len(calls), scale(4, 10**9)):
        cache = tmp_path / f"{number}"
        shutil.copytree(start, cache)
        with t.case(f"{calls[number]} number {number}"):
            full = OSError(28, os.strerror(28))
            told = ""
            with use_disk(FaultyDisk(fail_at=number, fail_with=full, syncs=False)):
                try:
                    go(cache)
                except StorageError as error:
                    told = str(error)
            # The index can be made again, and a file system may have no locks.
            assert told == "" or (str(cache) in told and "\n" not in told)
            assert_listed_views_are_whole(cache)
            assert rows_in(cache).items() <= expected[0].items()
            go(cache)
            assert state_of(cache) == expected
            assert [*cache.rglob(".tmp-*")] == []
        shutil.rmtree(cache)


def segments_of_views(cache: Path) -> Iterator[tuple[FeatureSpace, Path]]:
    for text in load_dataset(cache, "x").spaces:
        space = FeatureSpace.from_json(text)
        if space.view:
            for path in sorted(FeatureStore(cache, space).segments_folder.iterdir()):
                yield space, path


def test_damage_of_a_view_is_found_and_its_rows_alone_are_made_again(
    start: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    go(start)
    expected = state_of(start)
    t = tally("4 Damage is found", "flipped rows of views: named, refused, repaired")
    segments = [*segments_of_views(start)]
    rng = random.Random(7)
    for number in range(scale(2, 60)):
        cache = tmp_path / "damaged"
        shutil.copytree(start, cache)
        space, path = segments[rng.randrange(len(segments))]
        path = cache / path.relative_to(start)
        with t.case(f"{number}, {path.name}"):
            with h5py.File(path) as file:
                offset, ids = file["features"].id.get_offset(), file["image_sha256"][:]
            data = bytearray(path.read_bytes())
            data[offset + rng.randrange(8 * 8 * 3)] ^= 1 << rng.randrange(8)
            path.chmod(0o644)
            path.write_bytes(data)
            (found,) = verify(cache)[1]
            assert (found.path, found.rows) == (path, [0])
            with pytest.raises(FeatpipeError, match="checksum") as refused:
                FeatureStore(cache, space).rows(ids[:1])[:]
            assert refused.value.exit_code == DamageError.exit_code
            repair(cache)
            done = go(cache)
            assert (done.computed, done.views.computed) == (0, 1)
            shutil.rmtree(cache / "aside")
            assert state_of(cache) == expected
        shutil.rmtree(cache)
