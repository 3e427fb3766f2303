"""Repair sets damaged files aside, keeps whole rows, and the next run computes the rest."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.samples import image_ids, small_space

import featpipe
from featpipe.base.errors import FeatpipeError
from featpipe.stages.maintain import repair, verify
from featpipe.store import verification as survey
from featpipe.store.feature_store import FeatureStore
from featpipe.store.repair import repair_file
from featpipe.store.segments import read_segment


def stored(cache: Path, n: int = 6) -> tuple[FeatureStore, Path, np.ndarray, np.ndarray]:
    space = small_space()
    store = FeatureStore(cache, space)
    store.prepare()
    ids = image_ids(*range(n))
    rows = np.random.default_rng(0).normal(size=(n, *space.shape)).astype(space.dtype)
    return store, store.append(ids, rows, {}), ids, rows


def flip(path: Path, place: int) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_whole_cache_is_left_alone(cache: Path) -> None:
    _, path, _, _ = stored(cache)
    assert repair(cache) == []
    assert path.exists()


def test_rows_that_hold_are_kept_and_the_file_is_set_aside(cache: Path) -> None:
    store, path, ids, rows = stored(cache)
    row = 2
    flip(path, read_segment(path, store.space).offset + row * rows[0].nbytes)
    damaged = path.read_bytes()
    (done,) = repair(cache)
    assert (done.path, done.rows_kept) == (path, len(ids) - 1)
    assert done.aside.read_bytes() == damaged
    assert not path.exists()
    assert verify(cache)[1] == []
    store.refresh()
    whole = np.arange(len(ids)) != row
    assert np.array_equal(store.contains(ids), whole)
    assert np.array_equal(store.rows(ids[whole])[:], rows[whole])


@pytest.mark.parametrize("keep", [0, 100, 2000])
def test_what_cannot_be_read_is_set_aside_whole(cache: Path, keep: int) -> None:
    _, path, _, _ = stored(cache)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:keep])
    (done,) = repair(cache)
    assert (done.rows_kept, path.exists(), done.aside.stat().st_size) == (0, False, keep)
    assert verify(cache)[1] == []


def test_a_misnamed_segment_gets_its_name_back(cache: Path) -> None:
    store, path, ids, rows = stored(cache)
    path.rename(path.with_name(f"{'0' * 64}.h5"))
    (done,) = repair(cache)
    assert done.rows_kept == len(ids)
    store.refresh()
    assert np.array_equal(store.rows(ids)[:], rows)


def test_setting_aside_twice_keeps_both(cache: Path) -> None:
    places = []
    for _ in range(2):
        _, path, _, _ = stored(cache)
        flip(path, 0)
        places += [done.aside for done in repair(cache)]
    assert len(set(places)) == 2
    assert all(place.exists() for place in places)


def test_the_next_extraction_computes_only_what_was_lost(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    options = tiny
    featpipe.extract(photo_folder, name="set", cache=cache, **options)
    X, _ = featpipe.open_features("set", "all", cache=cache)
    before = np.asarray(X)
    (path,) = (cache / "spaces").glob("*/segments/*.h5")
    flip(path, path.stat().st_size - 1)
    repair(cache)
    assert featpipe.extract(photo_folder, name="set", cache=cache, **options).computed == 1
    X, _ = featpipe.open_features("set", "all", cache=cache)
    assert np.array_equal(np.asarray(X), before)


def test_what_a_store_holds_is_learned_again_from_its_segments(cache: Path) -> None:
    store, _, ids, rows = stored(cache)
    for content in (b"{}", None):
        description = store.folder / "space.json"
        description.unlink() if content is None else description.write_bytes(content)
        assert len(repair(cache)) == 1
        assert verify(cache)[1] == []
        assert np.array_equal(FeatureStore(cache, store.space).rows(ids)[:], rows)


def test_a_folder_that_is_no_store_is_set_aside(cache: Path) -> None:
    stored(cache)
    (cache / "spaces" / "strays").mkdir()
    (cache / "spaces" / "strays" / "notes").write_text("x")
    (cache / "spaces" / "file").write_text("x")
    assert len(repair(cache)) == 2
    assert verify(cache)[1] == []
    assert (cache / "aside" / "spaces" / "strays").is_dir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    # The address of a socket is short: bound by its name, from its folder.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("made")
        os.rename("made", path.name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir, _loop, _socket])
@pytest.mark.parametrize("place", ["segment", "dataset", "space.json"])
@pytest.mark.timeout(60)
def test_what_is_no_file_is_found_and_set_aside_and_never_waited_for(
    photo_folder: Path, tiny: dict[str, Any], cache: Path, kind: Callable[[Path], None], place: str
) -> None:
    options = tiny
    done = featpipe.extract(photo_folder, name="pets", cache=cache, **options)
    store = FeatureStore(cache, done.spaces[0])
    path = {
        "segment": next(store.segments_folder.glob("*.h5")),
        "dataset": cache / "datasets" / "pets.h5",
        "space.json": store.folder / "space.json",
    }[place]
    path.unlink()
    kind(path)
    if place == "segment":
        with pytest.raises(FeatpipeError):
            featpipe.open_features("pets", cache=cache)[0][:]
    assert [damage.path for damage in verify(cache)[1]] == [path]
    assert [damage.path for damage in verify(cache, quick=True)[1]] == [path]
    (mended,) = repair(cache)
    assert os.path.lexists(mended.aside)
    assert verify(cache)[1] == []
    again = featpipe.extract(photo_folder, name="pets", cache=cache, **options)
    assert again.computed == (done.computed if place == "segment" else 0)
    assert verify(cache)[1] == []


def test_a_file_that_another_repair_sets_aside_is_passed_over(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path, _, _ = stored(cache)
    flip(path, read_segment(path, store.space).offset)
    _, (damage,) = verify(cache)
    assert len(repair(cache)) == 1
    assert repair_file(damage, cache) is None, "the slower of two"
    (whole,) = store.segments_folder.glob("*.h5")
    for step in ("file_digest", "read_segment", "whole_rows"):
        flip(whole, read_segment(whole, store.space).offset)
        data = whole.read_bytes()
        real = getattr(survey, step)

        def late(*given: Any, real: Callable[..., Any] = real) -> Any:
            whole.unlink()
            return real(*given)

        with monkeypatch.context() as patched:
            patched.setattr(survey, step, late)
            assert verify(cache)[1] == [], step
        assert not whole.exists()
        whole.write_bytes(data)
        flip(whole, read_segment(whole, store.space).offset)
