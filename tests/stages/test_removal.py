"""Removal of data sets and feature spaces: what goes, what stays, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.samples import in_splits, small_space, stored_set

import featpipe
from featpipe.base.errors import DamageError, InUseError, NotFoundError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import list_datasets, load_dataset
from featpipe.stages.maintain import verify
from featpipe.stages.removal import find_removal, remove
from featpipe.store.feature_store import FeatureStore
from featpipe.store.lease import shared_lease
from featpipe.store.summary import summarise

SPACE, OTHER = small_space(), small_space(tap="block2_pool")


@pytest.fixture
def filled(cache: Path) -> Path:
    """``set`` and a part of it in two spaces, ``more`` in one."""
    for name in ("set", "set.shard-1-of-2"):
        stored_set(cache, in_splits(train=3, val=1), name=name, spaces=[SPACE, OTHER])
    stored_set(cache, in_splits(train=4), name="more", spaces=[OTHER])
    return cache


def test_a_data_set_goes_with_its_parts_and_its_rows_stay(filled: Path) -> None:
    found = find_removal(filled, "set")
    folder = filled / "datasets"
    assert (found.kind, found.name, found.datasets) == ("dataset", "set", [])
    assert found.paths == [folder / "set.h5", folder / "set.shard-1-of-2.h5"]
    assert found.bytes == sum(path.stat().st_size for path in found.paths)
    remove(filled, found)
    assert list_datasets(filled, with_shards=True) == ["more"]
    assert [store.unnamed for store in summarise(filled)[1]] == [8, 2]
    assert verify(filled)[1] == []


def test_a_part_alone_and_a_damaged_data_set_can_be_removed(filled: Path) -> None:
    remove(filled, find_removal(filled, "set.shard-1-of-2"))
    (filled / "datasets" / "set.h5").write_bytes(b"")
    remove(filled, find_removal(filled, "set"))
    assert list_datasets(filled, with_shards=True) == ["more"]


@pytest.mark.parametrize("name", [SPACE.name, SPACE.id[:4], SPACE.id[:30], SPACE.id])
def test_a_space_goes_whole_and_no_data_set_lists_it_any_more(name: str, filled: Path) -> None:
    found = find_removal(filled, name)
    folder = FeatureStore(filled, SPACE).folder
    assert (found.kind, found.name, found.paths) == ("space", SPACE.name, [folder])
    assert found.datasets == ["set", "set.shard-1-of-2"]
    assert found.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    remove(filled, found)
    assert [path.name for path in (filled / "spaces").iterdir()] == [OTHER.name]
    for listing in ("set", "set.shard-1-of-2"):
        dataset = load_dataset(filled, listing)
        assert dataset.spaces == [OTHER.canonical_json]
        assert set(dataset.info.weights) == {OTHER.id}
    assert featpipe.open_features("set", cache=filled)[0].shape == (6, 4)
    assert verify(filled)[1] == []


def test_what_a_reader_has_mapped_outlives_its_space(filled: Path) -> None:
    X, _ = featpipe.open_features("set", cache=filled, tap="block1_pool")
    before = np.array(X)
    remove(filled, find_removal(filled, SPACE.name))
    assert np.array_equal(X[:], before)


def test_a_space_in_use_stays(filled: Path) -> None:
    found = find_removal(filled, SPACE.name)
    with shared_lease(filled), pytest.raises(InUseError):
        remove(filled, found)
    assert load_dataset(filled, "set").spaces == [SPACE.canonical_json, OTHER.canonical_json]
    assert len(FeatureStore(filled, SPACE).index.ids) == 8
    # The list of a data set may go at any time: no row goes with it.
    with shared_lease(filled):
        remove(filled, find_removal(filled, "more"))


def test_a_space_goes_only_where_every_list_can_be_read(filled: Path) -> None:
    (filled / "datasets" / "more.h5").write_bytes(b"")
    with pytest.raises(DamageError, match=r"data set file in .*more\.h5"):
        find_removal(filled, SPACE.name)


def test_what_is_not_there_is_refused_with_what_is(filled: Path) -> None:
    for name in ("sets", SPACE.id[:3], "ffff", "../set", ""):
        with pytest.raises(NotFoundError) as caught:
            find_removal(filled, name)
        assert str(caught.value) == (
            "expected the name of a data set (found: more, set) or of a feature space (found: "
            f"{SPACE.name}, {OTHER.name}), or the beginning of its id, found {name!r}; name one "
            "of those. A run is a folder: delete it yourself"
        )


def test_a_beginning_that_two_ids_have_is_refused(cache: Path) -> None:
    stored_set(cache, in_splits(train=3), spaces=list(alike()))
    with pytest.raises(UsageError, match=r"of one feature space, .* found '[0-9a-f]{4}', which"):
        find_removal(cache, alike()[0].id[:4])
    remove(cache, find_removal(cache, alike()[0].id[:12]))
    assert [path.name for path in (cache / "spaces").iterdir()] == [alike()[1].name]


def alike() -> tuple[FeatureSpace, FeatureSpace]:
    """Two spaces whose ids begin alike."""
    seen: dict[str, FeatureSpace] = {}
    for number in range(10_000):
        space = small_space(tap=f"block{number}")
        other = seen.setdefault(space.id[:4], space)
        if other is not space:
            return other, space
    raise AssertionError("no two of them")


def test_a_link_is_not_followed(filled: Path, tmp_path: Path) -> None:
    folder = FeatureStore(filled, SPACE).folder
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="found a link; remove what it leads to yourself"):
        find_removal(filled, SPACE.name)
    (FeatureStore(filled, OTHER).folder / "link").symlink_to(elsewhere)
    remove(filled, find_removal(filled, OTHER.name))
    assert (elsewhere / "space.json").exists()


@pytest.mark.parametrize("holds_a_copy", [False, True])
def test_removing_a_folder_that_is_named_like_a_space_strikes_nothing(
    cache: Path, holds_a_copy: bool
) -> None:
    dataset = stored_set(cache, in_splits(train=3))
    (real,) = (cache / "spaces").iterdir()
    copy = real.with_name(f"backup-{real.name}")
    if holds_a_copy:
        shutil.copytree(real, copy)
    else:
        copy.mkdir()
    remove(cache, find_removal(cache, copy.name))
    assert not copy.exists() and real.is_dir()
    assert load_dataset(cache, dataset.name).spaces == dataset.spaces
