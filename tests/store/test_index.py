"""The index: always what the segments say, whatever became of its file."""

from __future__ import annotations

import errno
import functools
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, FeatpipeError, StorageError
from featpipe.store import index as index_module
from featpipe.store.index import Index, load_index
from featpipe.store.segments import build_segment, read_segment, write_segment

SPACE = small_space()


def add(folder: Path, *names: object, value: float = 0.0) -> Path:
    rows = np.full((len(names), 4), value, np.float16)
    return write_segment(folder / "segments", build_segment(SPACE, image_ids(*names), rows, {}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store's folder with the rows a, b, c and d, e."""
    add(tmp_path, "a", "b", "c", value=1.0)
    add(tmp_path, "d", "e", value=2.0)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Segments opened so far, in order."""
    calls: list[Path] = []

    def recording(path: Path, space: Any) -> Any:
        calls.append(path)
        return read_segment(path, space)

    monkeypatch.setattr(index_module, "read_segment", recording)
    return calls


def check(folder: Path, index: Index, *names: object) -> None:
    """The index holds exactly these, and each place holds that very image."""
    assert len(index.ids) == len(names)
    found = index.find(image_ids(*names))
    assert (found >= 0).all()
    for name, place in zip(names, found, strict=True):
        number = int(index.segment[place])
        path = folder / "segments" / f"{index.names[number].decode()}.h5"
        segment, row = read_segment(path, SPACE), int(index.row[place])
        assert segment.ids[row].tobytes() == image_ids(name).tobytes()
        assert segment.crc32[row] == index.crc32[place]
        assert segment.offset == index.offsets[number]
        assert len(segment.ids) == index.counts[number]


def test_every_row_is_found_where_it_lies(folder: Path) -> None:
    index = load_index(folder, SPACE)
    check(folder, index, "a", "b", "c", "d", "e")
    assert index.find(image_ids("x", "a", "y")).tolist()[::2] == [-1, -1]


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    index = load_index(tmp_path / "nowhere", SPACE)
    assert index.find(image_ids("a")).tolist() == [-1]
    assert not (tmp_path / "nowhere").exists(), "looking must not make folders"


@given(st.sets(st.binary(min_size=32, max_size=32), max_size=30), st.data())
def test_random_ids_are_found_and_others_are_not(ids: set[bytes], data: st.DataObject) -> None:
    table = np.frombuffer(b"".join(sorted(ids)), np.uint8).reshape(-1, 32)
    index = Index(ids=table)
    other = st.binary(min_size=32, max_size=32)
    known = st.sampled_from(sorted(ids)) if ids else other
    asked = data.draw(st.lists(st.one_of(known, other), max_size=20))
    found = index.find(np.frombuffer(b"".join(asked), np.uint8).reshape(-1, 32))
    place = {image_id: number for number, image_id in enumerate(sorted(ids))}
    assert found.tolist() == [place.get(image_id, -1) for image_id in asked]


# NumPy's bytes forget trailing zeros; an id may well end in some, or be little else.
@given(
    st.lists(
        st.integers(0, 32).flatmap(
            lambda n: st.binary(min_size=n, max_size=n).map(lambda b: b.ljust(32, b"\0"))
        ),
        unique=True,
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 7),
)
@settings(max_examples=20, deadline=None)
def test_ids_that_end_in_zeros_go_through_segments_and_back(
    tmp_path_factory: pytest.TempPathFactory, ids: list[bytes], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    table = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
    for part in (table[:cut], table[cut:]):
        if len(part):
            data = build_segment(SPACE, part, np.zeros((len(part), 4), np.float16), {})
            write_segment(folder / "segments", data)
    for _ in ("built", "read again"):
        index = load_index(folder, SPACE)
        found = index.find(table)
        assert (found >= 0).all()
        assert np.array_equal(index.ids[found], table)
        absent = np.bitwise_xor(table, np.uint8(1)) if len(ids) == 1 else table[:0]
        assert (index.find(absent) == -1).all()


def test_only_segments_not_yet_indexed_are_opened(folder: Path, opened: list[Path]) -> None:
    load_index(folder, SPACE)
    assert len(opened) == 2
    load_index(folder, SPACE)
    assert len(opened) == 2, "a fresh index must open nothing"
    new = add(folder, "f")
    check(folder, load_index(folder, SPACE), *"abcdef")
    assert opened[2:] == [new]


# The new digest may sort before, between or after the known ones: numbers must follow.
@pytest.mark.parametrize("seed", range(6))
def test_segments_added_one_by_one_give_the_index_made_at_once(tmp_path: Path, seed: int) -> None:
    for step in range(4):
        add(tmp_path, f"{seed}-{step}", f"{seed}-{step}-second")
        stepwise = load_index(tmp_path, SPACE)
    (tmp_path / "index.npz").unlink()
    at_once = load_index(tmp_path, SPACE)
    for name in ("ids", "segment", "row", "crc32", "names", "offsets", "counts"):
        assert np.array_equal(getattr(stepwise, name), getattr(at_once, name)), name
        assert getattr(stepwise, name).dtype == getattr(at_once, name).dtype, name


def test_removed_segments_vanish(folder: Path) -> None:
    load_index(folder, SPACE)
    add(folder, "f").unlink()
    gone = add(folder, "g", "h")
    load_index(folder, SPACE)
    gone.unlink()
    check(folder, load_index(folder, SPACE), *"abcde")
    for path in (folder / "segments").iterdir():
        path.unlink()
    check(folder, load_index(folder, SPACE))


def test_the_same_row_stored_twice_is_found_once(folder: Path) -> None:
    add(folder, "a", "d", "f", value=3.0)
    check(folder, load_index(folder, SPACE), *"abcdef")


def test_a_row_stored_twice_outlives_either_of_its_segments(tmp_path: Path) -> None:
    # Compaction seen halfway: the new segment is there, the old ones are not yet gone. One of
    # the two is right by luck of the digests' order, so both are tried.
    for first in (0, 1):
        pair = [add(tmp_path, "a", value=1.0), add(tmp_path, "a", value=2.0)]
        load_index(tmp_path, SPACE)
        pair[first].unlink()
        check(tmp_path, load_index(tmp_path, SPACE), "a")
        for path in (tmp_path / "segments").iterdir():
            path.unlink()


def plain_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array([{}], dtype=object))
    return buffer.getvalue()


def only(*names: str) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.zeros(0) for name in names})
    return buffer.getvalue()


@pytest.mark.parametrize("sealed", [False, True], ids=["raw", "sealed"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"PK\x03\x04",
        b"PK\x05\x06" + bytes(18),
        bytes(5000),
        objects(),
        only("ids", "segment"),
        plain_array(),
    ],
    ids=["empty", "short", "zip start", "empty zip", "zeros", "objects", "some arrays", "npy"],
)
def test_a_damaged_index_is_made_anew(
    folder: Path, opened: list[Path], content: bytes, sealed: bool
) -> None:
    # Anyone can write a matching digest.
    content = index_module._sealed(content) if sealed else content
    (folder / "index.npz").write_bytes(content)
    check(folder, load_index(folder, SPACE), *"abcde")
    assert len(opened) == 2
    load_index(folder, SPACE)
    assert len(opened) == 2, "the new index was not kept"


@pytest.mark.parametrize(
    "change",
    [
        {"row": np.zeros(4, np.int64)},
        {"counts": np.zeros(3, np.int64)},
        {"ids": np.zeros((5, 31), np.uint8)},
        {"crc32": np.zeros(5, np.int32)},
        {"segment": np.full(5, 2, np.int64)},
        {"segment": np.full(5, -1, np.int64)},
        {"names": np.array(["ü" * 64] * 2)},
        {"offsets": np.array(0)},
    ],
    ids=str,
)
def test_an_index_whose_arrays_do_not_fit_together_is_made_anew(
    folder: Path, opened: list[Path], change: dict[str, np.ndarray]
) -> None:
    index = load_index(folder, SPACE)
    buffer = io.BytesIO()
    np.savez(buffer, **{**vars(index), **change})
    (folder / "index.npz").write_bytes(index_module._sealed(buffer.getvalue()))
    check(folder, load_index(folder, SPACE), *"abcde")
    assert len(opened) == 4


def test_an_index_cut_anywhere_is_made_anew(folder: Path) -> None:
    load_index(folder, SPACE)
    data = (folder / "index.npz").read_bytes()
    for size in range(0, len(data), 97):
        (folder / "index.npz").write_bytes(data[:size])
        check(folder, load_index(folder, SPACE), *"abcde")


@pytest.fixture
def flips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Where a flipped bit makes the index fail (by error), or lie."""
    good = load_index(folder, SPACE)
    # Opening the segments for every place would take long; what they say does not change.
    monkeypatch.setattr(index_module, "read_segment", functools.cache(read_segment))
    monkeypatch.setattr(index_module, "write_atomically", lambda *_: None)
    path = folder / "index.npz"
    data = path.read_bytes()
    bad: dict[str, list[int]] = {}
    # Every byte of the archive's directory at the end, some of the arrays.
    for place in [*range(0, len(data) - 500, 11), *range(len(data) - 500, len(data))]:
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            index = load_index(folder, SPACE)
        except Exception as error:
            bad.setdefault(type(error).__name__, []).append(place)
        else:
            arrays = zip(vars(index).values(), vars(good).values(), strict=True)
            if not all(np.array_equal(mine, its) for mine, its in arrays):
                bad.setdefault("lie", []).append(place)
    return bad


def test_no_flipped_bit_gives_a_wrong_place(flips: dict[str, list[int]]) -> None:
    assert "lie" not in flips


def test_an_index_with_a_flipped_bit_is_made_anew(flips: dict[str, list[int]]) -> None:
    assert flips == {}


def test_a_read_only_cache_is_read_without_keeping_the_index(
    folder: Path, opened: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise StorageError("expected to write, but: Read-only file system")

    monkeypatch.setattr(index_module, "write_atomically", refuse)
    for _ in range(2):
        check(folder, load_index(folder, SPACE), *"abcde")
    assert not (folder / "index.npz").exists()
    assert len(opened) == 4


def test_a_damaged_segment_is_reported_and_not_indexed(folder: Path) -> None:
    load_index(folder, SPACE)
    (folder / "segments" / f"{'0' * 64}.h5").write_bytes(b"no segment")
    for _ in range(2):
        with pytest.raises(DamageError, match=r"0000.h5"):
            load_index(folder, SPACE)
    (folder / "segments" / f"{'0' * 64}.h5").unlink()
    check(folder, load_index(folder, SPACE), *"abcde")


def test_temporary_files_are_no_segments(folder: Path) -> None:
    (folder / "segments" / ".tmp-host-1-deadbeef").write_bytes(b"half a segment")
    check(folder, load_index(folder, SPACE), *"abcde")


def test_a_segment_removed_between_listing_and_reading_is_no_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doomed = add(folder, "f")

    def racing(path: Path, space: Any) -> Any:
        doomed.unlink(missing_ok=True)
        return read_segment(path, space)

    monkeypatch.setattr(index_module, "read_segment", racing)
    # Either answer is right: the rows that are left, or an error that says what happened.
    try:
        index = load_index(folder, SPACE)
    except FeatpipeError:
        return
    check(folder, index, *"abcde")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_index(folder, SPACE)
    real = os.scandir

    def refuse(path: Any = ".") -> Any:
        if os.fspath(path) == str(folder / "segments"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    # Every feature would be computed again, and the index emptied.
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match=r"expected to list .*Permission denied"):
        load_index(folder, SPACE)
