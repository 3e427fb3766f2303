"""Garbage: which rows go, which stay, and in which files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.samples import image_ids, in_splits, small_space, stored_set

from featpipe.base.errors import DamageError, NotFoundError
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.specs.garbage import GarbageSpec
from featpipe.stages.maintain import collect_garbage, repair, verify
from featpipe.store.feature_store import FeatureStore
from featpipe.store.garbage import StoreGarbage
from featpipe.store.segments import read_segment

SPACE = small_space()
OTHER = small_space(tap="block2_pool")
AT_ONCE = GarbageSpec(grace=0.0)
PREDICTED = image_ids("a", "b", "c")


@pytest.fixture
def store(cache: Path) -> FeatureStore:
    """A data set of six pictures in two spaces; three more rows that no data set names."""
    stored_set(cache, in_splits(train=3), spaces=[SPACE, OTHER])
    store = FeatureStore(cache, SPACE)
    store.append(PREDICTED, np.ones((3, 4), np.float16), {"host": "here"})
    return store


def age(store: FeatureStore, hours: float) -> None:
    then = time.time() - hours * 3600
    for path in store.segments_folder.iterdir():
        os.utime(path, (then, then))


def garbage_of(found: list[StoreGarbage]) -> StoreGarbage:
    return next(one for one in found if one.name == SPACE.name)


def test_rows_that_no_data_set_names_go_after_the_time_of_grace(
    cache: Path, store: FeatureStore
) -> None:
    young = garbage_of(collect_garbage(cache, GarbageSpec()))
    assert (young.rows, young.kept, young.young, young.bytes) == (0, 9, 3, 0)
    age(store, 23)
    assert garbage_of(collect_garbage(cache, GarbageSpec())).rows == 0
    assert garbage_of(collect_garbage(cache, GarbageSpec(grace=22))).rows == 3
    store.refresh()
    assert not store.contains(PREDICTED).any()
    assert store.contains(load_dataset(cache, "set").image_sha256).all()
    assert verify(cache)[1] == []


def test_a_dry_run_says_the_same_and_does_nothing(cache: Path, store: FeatureStore) -> None:
    before = {path: path.stat() for path in cache.rglob("*")}
    planned = collect_garbage(cache, GarbageSpec(grace=0, dry_run=True))
    assert {path: path.stat() for path in cache.rglob("*")} == before
    assert collect_garbage(cache, AT_ONCE) == planned
    (segment,) = store.segments_folder.iterdir()
    size = sum(seen.st_size for path, seen in before.items() if path.parent == segment.parent)
    assert garbage_of(planned).bytes == size - segment.stat().st_size
    assert (garbage_of(planned).deleted, garbage_of(planned).replaced) == (1, 0)


def test_a_segment_with_some_garbage_is_replaced_by_one_without(
    cache: Path, store: FeatureStore
) -> None:
    named = load_dataset(cache, "set").image_sha256
    mixed = FeatureStore(cache, OTHER)
    rows = np.arange(16, dtype=np.float16).reshape(4, 4)
    ids = np.concatenate([named[:1], PREDICTED[:2], named[1:2]])
    old = mixed.append(ids, rows, {"host": "there"})
    found = next(g for g in collect_garbage(cache, AT_ONCE) if g.name == OTHER.name)
    assert (found.rows, found.deleted, found.replaced) == (2, 0, 1)
    assert found.bytes == 2 * (4 * 2 + 32 + 4)
    assert not old.exists()
    new = [read_segment(p, OTHER) for p in mixed.segments_folder.iterdir()]
    (segment,) = [segment for segment in new if len(segment.ids) == 2]
    assert np.array_equal(segment.ids, ids[[0, 3]])
    with h5py.File(segment.path) as file:
        assert np.array_equal(file["features"][:], rows[[0, 3]])
        # Where rows come from does not change with the file that they lie in.
        assert file.attrs["provenance"] == b'{"host": "there"}'
    assert verify(cache)[1] == []


def test_a_space_that_a_data_set_was_once_extracted_in_keeps_its_rows(cache: Path) -> None:
    # Pictures were added, so the space no longer has every row and is not listed any more.
    dataset = stored_set(cache, in_splits(train=3), spaces=[SPACE, OTHER])
    dataset.spaces = [SPACE.canonical_json]
    save_dataset(cache, dataset)
    assert [found.rows for found in collect_garbage(cache, AT_ONCE)] == [0, 0]
    dataset.info.weights = {SPACE.id: "random:0"}
    save_dataset(cache, dataset)
    assert [found.rows for found in collect_garbage(cache, AT_ONCE)] == [0, 6]
    assert not FeatureStore(cache, OTHER).folder.exists(), "an empty store stays"


def test_shards_name_their_rows(cache: Path) -> None:
    stored_set(cache, in_splits(train=3), name="set.shard-1-of-2")
    assert [found.rows for found in collect_garbage(cache, AT_ONCE)] == [0]


def test_nothing_goes_while_it_is_unknown_what_is_named(cache: Path, store: FeatureStore) -> None:
    path = cache / "datasets" / "set.h5"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamageError, match=r"expected a whole data set file in .*set\.h5"):
        collect_garbage(cache, AT_ONCE)
    repair(cache)
    with pytest.raises(DamageError, match=r"found .*aside/datasets/set\.h5, which was set aside"):
        collect_garbage(cache, AT_ONCE)
    assert len(store.index.ids) == 9
    stored_set(cache, in_splits(train=3))
    assert garbage_of(collect_garbage(cache, AT_ONCE)).rows == 3


def test_a_damaged_segment_is_not_replaced(cache: Path, store: FeatureStore) -> None:
    named = load_dataset(cache, "set").image_sha256
    ids = np.concatenate([named[:2], PREDICTED])
    path = store.append(ids, np.zeros((5, 4), np.float16), {})
    data = bytearray(path.read_bytes())
    data[read_segment(path, SPACE).offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(DamageError, match=rf"expected a whole segment in {path}, .*cache repair"):
        collect_garbage(cache, AT_ONCE)
    assert path.read_bytes() == data
    repair(cache)
    assert garbage_of(collect_garbage(cache, AT_ONCE)).rows == 3
    assert verify(cache)[1] == []


def test_there_must_be_a_cache(cache: Path) -> None:
    with pytest.raises(NotFoundError, match="expected a cache in"):
        collect_garbage(cache, AT_ONCE)
    assert not cache.exists()
