"""Looking over a cache: a whole one is whole, and nothing that is not stays hidden."""

from __future__ import annotations

import builtins
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, NotFoundError, StorageError
from featpipe.datasets.dataset import Dataset, SourceInfo
from featpipe.datasets.files import save_dataset
from featpipe.store import index as index_module
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment
from featpipe.store.summary import summarise
from featpipe.store.verification import Damage, verify

SPACE, OTHER = small_space(), small_space(view=1)
N = 5


@pytest.fixture
def whole(cache: Path) -> Path:
    """Two data sets and two stores: one with two segments of five rows, one with one."""
    for name in ("pets", "cars"):
        columns = {name: np.zeros(N, np.int64) for name in ("label", "split", "status")}
        save_dataset(
            cache,
            Dataset(
                name=name,
                source=SourceInfo("", "", ""),
                classes=["a"],
                paths=list("vwxyz"),
                image_sha256=image_ids(*range(N)),
                stat=np.zeros((N, 3), np.int64),
                **columns,
            ),
        )
    for space, parts in ((SPACE, "ab"), (OTHER, "a")):
        store = FeatureStore(cache, space)
        store.prepare()
        for part in parts:
            rows = np.arange(N * 4, dtype=np.float16).reshape(N, 4)
            store.append(image_ids(*(f"{part}{i}" for i in range(N))), rows, {"host": "node"})
    return cache


def segments(cache: Path) -> list[Path]:
    return sorted(FeatureStore(cache, SPACE).segments_folder.iterdir())


def damages(cache: Path, *, quick: bool = False) -> list[Damage]:
    return verify(cache, quick=quick)[1]


def flip(path: Path, place: int) -> bytes:
    """Flip one bit; returns the bytes there were."""
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(before[:place] + bytes([before[place] ^ 1 << place % 8]) + before[place + 1 :])
    return before


def test_a_summary_counts_rows_segments_and_bytes(whole: Path) -> None:
    datasets, stores = summarise(whole)
    assert [found.name for found in datasets] == ["cars", "pets"]
    size = sum(path.stat().st_size for path in segments(whole))
    assert [(s.rows, s.segments, s.bytes) for s in stores if s.name == SPACE.name] == [
        (2 * N, 2, size)
    ]
    assert [(s.rows, s.segments) for s in stores if s.name == OTHER.name] == [(N, 1)]
    assert len(stores) == 2


@pytest.mark.parametrize("look", [summarise, verify])
def test_where_there_is_no_cache_the_way_to_one_is_named(
    cache: Path, look: Callable[[Path], object]
) -> None:
    with pytest.raises(NotFoundError, match=r"expected a cache in .*'featpipe extract' makes one"):
        look(cache)


@pytest.mark.parametrize("quick", [True, False])
def test_a_whole_cache_has_no_damage(whole: Path, quick: bool) -> None:
    # What a writer is about is no damage either.
    (FeatureStore(whole, SPACE).segments_folder / ".tmp-host-1-deadbeef").write_bytes(b"half")
    files, found = verify(whole, quick=quick)
    assert found == []
    assert files == 2 + 2 + 3, "data sets, spaces and segments"


def test_a_damaged_row_is_named(whole: Path) -> None:
    path = segments(whole)[1]
    row_bytes = 4 * SPACE.shape[0] // 2
    for row in (0, 3):
        flip(path, read_segment(path, SPACE).offset + row * row_bytes)
    (found,) = damages(whole)
    assert (found.path, found.rows) == (path, [0, 3])
    assert "digest" in found.problem
    assert damages(whole, quick=True) == [], "quick reads no features"


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_file_cut_short_is_found(whole: Path, quick: bool, keep: float) -> None:
    cut = [segments(whole)[0], whole / "datasets" / "pets.h5"]
    for path in cut:
        size = path.stat().st_size
        path.chmod(0o644)
        # keep = 1: one byte short.
        os.truncate(path, min(int(size * keep), size - 1))
    assert {damage.path for damage in damages(whole, quick=quick)} == set(cut)


def test_foreign_files_are_found(whole: Path) -> None:
    folder = FeatureStore(whole, SPACE).segments_folder
    (folder / "notes.txt").write_text("mine")
    (folder / "features.h5").write_bytes(segments(whole)[0].read_bytes())
    (folder / f"{'0' * 64}.h5").mkdir()
    (whole / "datasets" / "foreign.h5").write_bytes(b"no data set")
    (whole / "datasets" / "-no-name-of-a-data-set-.h5").write_bytes(b"")
    (whole / "datasets" / "notes").write_text("mine")
    (whole / "spaces" / "space.json").write_text("mine")
    (folder.parent / "backup").mkdir()
    # What a file manager or a network file system leaves is nobody's features.
    (folder / ".DS_Store").write_bytes(b"")
    found = {damage.path.relative_to(whole).parts[-1] for damage in damages(whole)}
    assert found == {
        *("notes.txt", "features.h5", f"{'0' * 64}.h5", "foreign.h5", "space.json"),
        *("-no-name-of-a-data-set-.h5", "notes", "backup"),
    }


def test_an_index_that_is_only_stale_is_no_damage(whole: Path) -> None:
    store = FeatureStore(whole, SPACE)
    assert len(store.index.ids) == 2 * N
    assert damages(whole) == []
    store.append(image_ids("c"), np.zeros((1, 4), np.float16), {})
    assert damages(whole) == []
    # Its rows are those of segments that are no more.
    segments(whole)[0].unlink()
    assert damages(whole) == []


@pytest.mark.parametrize("column", ["ids", "row", "crc32", "offsets", "counts", "segment"])
def test_an_index_that_lies_is_found(whole: Path, column: str) -> None:
    store = FeatureStore(whole, SPACE)
    values = getattr(store.index, column)
    if column == "ids":
        values[-1] = 255  # still in order
    else:
        several = len(np.unique(values)) > 1
        values[...] = np.roll(values, 1, axis=0) if several else values + 1
    index_module._write(store.folder / "index.npz", store.index)
    (found,) = damages(whole)
    assert found.path == store.folder / "index.npz"
    assert "contradicts" in found.problem


def test_a_store_whose_first_file_is_not_there_yet_is_no_damage(whole: Path) -> None:
    folder = whole / "spaces" / "tiny-block1_pool-000000000000"
    (folder / "segments").mkdir(parents=True)
    (folder / ".tmp-host-0").write_bytes(b"half of space.json")
    assert damages(whole) == []
    (folder / "segments" / "x").write_bytes(b"")
    assert [damage.path for damage in damages(whole)] == [folder / "space.json"]


def test_a_bad_sector_is_damage_and_a_missing_right_is_not(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, problem = segments(whole)[0], errno.EIO
    real = builtins.open

    def refuse(file: Any, *args: Any, **options: Any) -> Any:
        if file == path:
            raise OSError(problem, os.strerror(problem))
        return real(file, *args, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    (found,) = damages(whole)
    assert (found.path, "Input/output error" in found.problem) == (path, True)
    problem = errno.EACCES
    with pytest.raises(StorageError, match="Permission denied"):
        damages(whole)


def test_swapped_names_are_found(whole: Path) -> None:
    pets, cars = (whole / "datasets" / f"{name}.h5" for name in ("pets", "cars"))
    swapped = [tuple(segments(whole)), (pets, cars)]
    for one, other in swapped:
        one.rename(whole / "between")
        other.rename(one)
        (whole / "between").rename(other)
    found = damages(whole)
    assert {damage.path for damage in found} == {path for pair in swapped for path in pair}
    assert not any(damage.rows for damage in found), "each row is whole"


def test_a_segment_in_another_spaces_folder_is_found(whole: Path) -> None:
    path = segments(whole)[0]
    moved = path.rename(FeatureStore(whole, OTHER).segments_folder / f"x{path.name[1:]}")
    (found,) = damages(whole, quick=True)
    assert found.path == moved
    assert "belongs to another feature space" in found.problem


@pytest.mark.parametrize("content", [None, b"{}", OTHER.canonical_json.encode()])
def test_a_store_that_does_not_say_what_it_holds_is_found(
    whole: Path, content: bytes | None
) -> None:
    path = FeatureStore(whole, SPACE).folder / "space.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(DamageError, match=SPACE.name):
            summarise(whole)
    (found,) = damages(whole)
    assert found.path == path
    assert str(path) in found.problem


def test_damage_that_hides_the_layout_is_found_by_the_digest(whole: Path) -> None:
    path = segments(whole)[0]
    flip(path, 0)
    (found,) = damages(whole)
    assert (found.path, found.rows) == (path, [])
