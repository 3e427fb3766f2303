"""One folder, one feature space: rows go in, and come out in the order asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, NotFoundError
from featpipe.store.feature_store import FeatureStore, list_stores
from featpipe.store.segments import file_digest

SPACE = small_space()


def rows_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.float16)[:, None] + np.arange(4, dtype=np.float16) / 8


@pytest.fixture
def store(cache: Path) -> FeatureStore:
    """Six rows, in two segments."""
    store = FeatureStore(cache, SPACE)
    store.prepare()
    store.append(image_ids(3, 1, 2), rows_of(3, 1, 2), {})
    store.append(image_ids(4, 5, 0), rows_of(4, 5, 0), {})
    return store


def test_rows_come_in_the_order_asked_for(store: FeatureStore) -> None:
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1], [2, 2, 0], [4]):
        rows = store.rows(image_ids(*order))
        assert rows.shape == (len(order), 4)
        assert np.array_equal(rows[:], rows_of(*order))


def test_the_stored_dtype_is_the_spaces(cache: Path) -> None:
    store = FeatureStore(cache, small_space(dtype="float32", shape=(2, 2)))
    value = np.full((1, 2, 2), 1 + 2**-20, np.float32)
    store.append(image_ids(0), value, {})
    found = store.rows(image_ids(0))[:]
    assert found.dtype == np.float32
    assert np.array_equal(found, value)


def test_contains_says_which_rows_are_there(store: FeatureStore) -> None:
    assert store.contains(image_ids(9, 0, 3, "x")).tolist() == [False, True, True, False]
    assert store.contains(image_ids()).tolist() == []


def test_missing_rows_are_counted_and_the_way_out_named(store: FeatureStore) -> None:
    with pytest.raises(
        NotFoundError, match=r"expected 4 rows in .*, found 2: 2 missing; run .*featpipe extract"
    ):
        store.rows(image_ids(0, 8, 1, 9))


def test_asking_for_no_rows_gives_none(store: FeatureStore, cache: Path) -> None:
    assert store.rows(image_ids())[:].shape == (0, 4)
    assert FeatureStore(cache, small_space(view=1)).rows(image_ids())[:].shape == (0, 4)


def test_new_rows_are_seen_after_a_refresh(store: FeatureStore) -> None:
    assert not store.contains(image_ids(7)).any()
    store.append(image_ids(7), rows_of(7), {})
    store.refresh()
    assert np.array_equal(store.rows(image_ids(7, 0))[:], rows_of(7, 0))


def test_the_index_is_read_once_until_refreshed(store: FeatureStore) -> None:
    index = store.index
    assert store.index is index
    store.refresh()
    assert store.index is not index


def test_two_writers_of_the_same_rows_do_no_harm(store: FeatureStore, cache: Path) -> None:
    other = FeatureStore(cache, SPACE)
    other.prepare()
    other.append(image_ids(0, 1, 6), rows_of(0, 1, 6), {"host": "other"})
    other.append(image_ids(0, 1, 6), rows_of(0, 1, 6), {"host": "third"})
    assert np.array_equal(other.rows(image_ids(*range(7)))[:], rows_of(*range(7)))


def test_spaces_never_share_a_folder(store: FeatureStore, cache: Path) -> None:
    other = FeatureStore(cache, small_space(precision="bf16"))
    assert other.folder != store.folder
    assert not other.contains(image_ids(0)).any()


def test_the_layout_on_disk_is_the_documented_one(store: FeatureStore, cache: Path) -> None:
    assert store.folder == cache / "spaces" / SPACE.name
    path = store.append(image_ids(8), rows_of(8), {})
    assert path.parent == store.folder / "segments"
    assert path.name == f"{file_digest(path)}.h5"
    store.rows(image_ids(8))
    assert {p.name for p in store.folder.iterdir()} == {"space.json", "segments", "index.npz"}


def test_prepare_says_once_what_the_folder_holds(store: FeatureStore) -> None:
    path = store.folder / "space.json"
    assert json.loads(path.read_text()) == json.loads(SPACE.canonical_json)
    assert len(path.read_text().splitlines()) > 10, "it is meant for people"
    inode = path.stat().st_ino
    store.prepare()
    assert path.stat().st_ino == inode, "a file that is there was written again"


def test_prepare_clears_dead_writers_leftovers(store: FeatureStore) -> None:
    from featpipe.base import disk

    name = f".tmp-{disk._host()}-{0:032x}"
    dead = [folder / name for folder in (store.folder, store.segments_folder)]
    for path in dead:
        path.write_bytes(b"half a segment")
    store.prepare()
    assert not any(path.exists() for path in dead)


def test_looking_at_a_store_writes_nothing(cache: Path) -> None:
    store = FeatureStore(cache, SPACE)
    assert not store.contains(image_ids(0)).any()
    assert not cache.exists()


def test_every_store_of_a_cache_is_listed(store: FeatureStore, cache: Path) -> None:
    other = FeatureStore(cache, small_space(tap="block2_pool", view=3))
    other.prepare()
    assert [found.space for found in list_stores(cache)] == [SPACE, other.space]
    assert [found.folder for found in list_stores(cache)] == [store.folder, other.folder]
    assert np.array_equal(list_stores(cache)[0].rows(image_ids(5))[:], rows_of(5))


def test_a_cache_that_is_not_there_lists_no_store(cache: Path) -> None:
    assert list_stores(cache) == []


def test_a_store_under_another_name_is_refused(store: FeatureStore, cache: Path) -> None:
    moved = store.folder.rename(cache / "spaces" / "tiny-block1_pool-000000000000")
    with pytest.raises(DamageError, match=f"{moved.name} in .*found that of {SPACE.name}"):
        list_stores(cache)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[]"])
def test_a_damaged_space_file_is_refused(store: FeatureStore, content: bytes) -> None:
    (store.folder / "space.json").write_bytes(content)
    with pytest.raises(DamageError, match="expected"):
        list_stores(store.folder.parents[1])


def test_a_damaged_space_file_is_named(store: FeatureStore) -> None:
    (store.folder / "space.json").write_bytes(b"{}")
    with pytest.raises(DamageError, match=SPACE.name):
        list_stores(store.folder.parents[1])
