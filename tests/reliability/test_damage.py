"""Promise 4: whatever happens to a file of the cache, verify names it, and repair loses no row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.samples import image_ids, in_splits, small_space, stored_set
from support.tally import NewTally, Scale

from featpipe.base.errors import FeatpipeError
from featpipe.stages.maintain import repair, verify
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment

PROMISE = "4 Damage is found"
SPACES = [small_space(), small_space(tap="block2_pool", shape=(40,), dtype="float32")]
ROWS = 60
HEADER = 4096
"""Where HDF5 keeps what describes a file of this size."""


def row_of(space_number: int, name: int) -> np.ndarray:
    space = SPACES[space_number]
    rng = np.random.default_rng([space_number, name])
    return rng.normal(size=space.shape).astype(space.dtype)


@pytest.fixture
def whole(cache: Path) -> Path:
    """Two data sets, and two stores of three segments each, one row of them stored twice."""
    for number, space in enumerate(SPACES):
        store = FeatureStore(cache, space)
        store.prepare()
        for part in range(3):
            names = [*range(part * ROWS, (part + 1) * ROWS), 0]
            rows = np.stack([row_of(number, name) for name in names])
            store.append(image_ids(*names), rows, {"part": str(part)})
        assert len(store.index.ids) == 3 * ROWS
    for name in ("pets", "cars"):
        stored_set(cache, in_splits(train=3, test=2), name=name, spaces=[small_space(view=1)])
    return cache


def files(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def is_segment(path: Path) -> bool:
    return path.parent.name == "segments"


@contextmanager
def changed(path: Path, data: bytes) -> Iterator[None]:
    """Another content for a while."""
    before = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def assert_named(cache: Path, paths: set[Path], *, quick: bool = False) -> None:
    assert {damage.path for damage in verify(cache, quick=quick)[1]} == paths


@pytest.mark.timeout(1800)
def test_every_flipped_bit_is_found(whole: Path, tally: NewTally, scale: Scale) -> None:
    rng = np.random.default_rng(4)
    everything = files(whole)
    segments = [path for path in everything if is_segment(path)]
    header = tally(PROMISE, "bits flipped in the first 4 kB of a segment")
    anywhere = tally(PROMISE, "bits flipped anywhere in any file")
    for number in range(scale(80, 3000)):
        half = number % 2 == 0
        path = (segments if half else everything)[
            rng.integers(len(segments if half else everything))
        ]
        data = path.read_bytes()
        place = int(rng.integers(min(HEADER, len(data)) if half else len(data)))
        bit = int(rng.integers(8))
        with (header if half else anywhere).case(f"{path.name}, byte {place}, bit {bit}"):
            with changed(path, flipped(data, place, bit)):
                assert_named(whole, {path})
    assert_named(whole, set())


def test_the_damaged_row_is_named_and_no_reader_gets_it(
    whole: Path, tally: NewTally, scale: Scale
) -> None:
    rng = np.random.default_rng(5)
    t = tally(PROMISE, "flipped rows named, and refused when read")
    for number in range(scale(16, 500)):
        kind = number % 2
        space = SPACES[kind]
        store = FeatureStore(whole, space)
        path = sorted(store.segments_folder.iterdir())[int(rng.integers(3))]
        segment = read_segment(path, space)
        nbytes = int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
        row = int(rng.integers(ROWS))
        place = segment.offset + row * nbytes + int(rng.integers(nbytes))
        with t.case(f"{path.name}, row {row}"):
            with changed(path, flipped(path.read_bytes(), place, int(rng.integers(8)))):
                (found,) = verify(whole)[1]
                assert (found.path, found.rows) == (path, [row])
                wanted = segment.ids[[row]]
                # One row is stored three times: a reader is given any of them.
                if not (wanted == image_ids(0)).all():
                    with pytest.raises(FeatpipeError, match="checksum") as refused:
                        store.rows(wanted)[:]
                    assert refused.value.exit_code == 13
                others = np.delete(segment.ids, row, axis=0)
                others = others[(others != image_ids(0)).any(axis=1)]
                assert np.isfinite(store.rows(others)[:]).all()


def test_every_truncation_is_found(whole: Path, tally: NewTally, scale: Scale) -> None:
    t = tally(PROMISE, "files cut short, full and --quick")
    steps = scale(3, 60)
    for path in files(whole):
        data = path.read_bytes()
        for size in sorted(
            {0, 1, len(data) - 1, *np.linspace(0, len(data) - 1, steps).astype(int)}
        ):
            with t.case(f"{path.name} at {size} of {len(data)}"):
                with changed(path, data[:size]):
                    assert_named(whole, {path})
                    assert_named(whole, {path}, quick=True)


def test_every_swap_is_found(whole: Path, tally: NewTally) -> None:
    t = tally(PROMISE, "files that took each other's place")
    swappable = [path for path in files(whole) if path.name != "index.npz"]
    for number, one in enumerate(swappable):
        for other in swappable[:number]:
            mine, its = one.read_bytes(), other.read_bytes()
            with t.case(f"{one} and {other}"):
                with changed(one, its), changed(other, mine):
                    found = {damage.path for damage in verify(whole)[1]}
                    # In a store that nothing says what it is, that alone can be told.
                    unknown = {p.parent for p in found if p.name == "space.json"}
                    for path in (one, other):
                        assert path in found or path.parent.parent in unknown


def test_every_foreign_file_is_found(whole: Path, tally: NewTally) -> None:
    t = tally(PROMISE, "foreign files")
    contents = [b"", files(whole)[0].read_bytes()]
    contents += [path.read_bytes() for path in files(whole) if is_segment(path)][:1]
    names = ["notes.txt", "features.h5", f"{'0' * 64}.h5", "a b\n.h5", "x" * 255]
    folders = {path.parent for path in files(whole)} | {whole / "spaces"}
    for folder in sorted(folders):
        for name in names:
            for content in contents:
                with t.case(f"{folder.name}/{name}, {len(content)} bytes"):
                    path = folder / name
                    path.write_bytes(content)
                    try:
                        (found,) = verify(whole)[1]
                        assert path in (found.path, found.path.parent)
                    finally:
                        path.unlink()


@pytest.mark.timeout(1800)
def test_repair_keeps_every_row_that_holds(
    whole: Path, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    rng = np.random.default_rng(6)
    t = tally(PROMISE, "damaged caches repaired: whole rows kept, nothing deleted")
    for number in range(scale(10, 300)):
        cache = tmp_path / f"copy{number}"
        shutil.copytree(whole, cache)
        damaged: dict[Path, bytes] = {}
        lost: dict[int, list[set[bytes]]] = {0: [], 1: []}
        everything = files(cache)
        for path in [everything[k] for k in rng.choice(len(everything), 3, replace=False)]:
            data = path.read_bytes()
            cut = bool(rng.integers(2))
            place, bit = int(rng.integers(len(data))), int(rng.integers(8))
            damaged[path] = data[:place] if cut else flipped(data, place, bit)
            if is_segment(path):
                names = [space.name for space in SPACES]
                if path.parents[1].name in names:
                    kind = names.index(path.parents[1].name)
                    lost[kind].append(touched_rows(path, kind, damaged[path], data))
            path.chmod(0o644)
            path.write_bytes(damaged[path])
        with t.case(f"round {number}: {sorted(path.name for path in damaged)}"):
            repair(cache)
            assert_named(cache, set())
            aside = [path.read_bytes() for path in files(cache / "aside")]
            for data in damaged.values():
                assert data in aside, "a damaged file is gone"
            for kind, space in enumerate(SPACES):
                store = FeatureStore(cache, space)
                held = store.contains(image_ids(*range(3 * ROWS)))
                for name in range(3 * ROWS):
                    image = image_ids(name)
                    losses = sum(image.tobytes() in rows for rows in lost[kind])
                    # The first row lies in all three segments.
                    assert held[name] or losses == (3 if name == 0 else 1), f"{name} was lost"
                    if held[name]:
                        assert (store.rows(image)[0] == row_of(kind, name)).all()
        shutil.rmtree(cache)


def touched_rows(path: Path, kind: int, data: bytes, before: bytes) -> set[bytes]:
    """Ids of the rows that a damage to a segment may cost: those whose bytes it touches, or all
    where it touches what describes them."""
    space = SPACES[kind]
    segment = read_segment(path, space)
    nbytes = int(np.prod(space.shape)) * np.dtype(space.dtype).itemsize
    touched = set()
    end = segment.offset + nbytes * len(segment.ids)
    places = range(len(data), len(before)) if len(data) < len(before) else ()
    differs = [k for k in range(len(data)) if data[k] != before[k]]
    for place in [*places, *differs]:
        if not segment.offset <= place < end:
            return {row.tobytes() for row in segment.ids}
        touched.add(segment.ids[(place - segment.offset) // nbytes].tobytes())
    if places:
        # A data set that is longer than the file is not trusted at all.
        return {row.tobytes() for row in segment.ids}
    return touched
