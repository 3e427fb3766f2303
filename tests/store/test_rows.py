"""Rows of many segments behave like one NumPy array, and say when they are damaged."""

from __future__ import annotations

import copy
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, NotFoundError
from featpipe.store import rows as rows_module
from featpipe.store.feature_store import FeatureStore
from featpipe.store.rows import FeatureRows
from featpipe.store.segments import read_segment

SPACE = small_space(shape=(2, 3))
N = 12
VALUES = np.arange(N * 6, dtype=np.float16).reshape(N, 2, 3)
NAMES = [0, 1, 2, 3, 4, 5, 6, 7, 11, 10, 9, 8]
"""Rows 0..7 follow one another in their segments, 8..11 run backwards."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of twelve rows in three segments of five, three and four."""
    cache = tmp_path_factory.mktemp("cache")
    store = FeatureStore(cache, SPACE)
    for part in (slice(0, 5), slice(5, 8), slice(8, 12)):
        names = NAMES[part]
        store.append(image_ids(*names), VALUES[names], {})
    return cache


@pytest.fixture
def rows(cache: Path) -> FeatureRows:
    """The twelve rows in the order 0..11, nothing mapped yet."""
    return FeatureStore(cache, SPACE).rows(image_ids(*range(N)))


def files(rows: FeatureRows) -> list[Path]:
    return [rows._paths[number] for number in rows._segment]


@pytest.fixture
def own_rows(tmp_path: Path) -> FeatureRows:
    """Six rows in two segments that a test may damage."""
    store = FeatureStore(tmp_path, SPACE)
    for part in (range(3), range(3, 6)):
        store.append(image_ids(*part), VALUES[part], {})
    return store.rows(image_ids(*range(6)))


MASK = np.arange(N) % 3 == 0
INDICES: list[Any] = [
    0,
    4,
    -1,
    -N,
    np.int64(7),
    np.uint8(7),
    slice(None),
    slice(1, 4),
    slice(3, 9),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(7, 3, -1),
    slice(-3, None),
    slice(5, 5),
    slice(100, 200),
    [1],
    [3, 1, 2],
    [5, -1, 5, 0],
    [0, 2, 4],
    range(2, 6),
    np.array([11, 10, 9, 8]),
    np.array([], np.int64),
    np.array([1, 1, 1], np.uint8),
    MASK,
    MASK.tolist(),
    np.zeros(N, bool),
    (slice(1, 7), 0),
    (slice(1, 7), slice(None), [2, 0]),
    (slice(None), None),
    ([3, 1], slice(None), 1),
    (MASK, 1),
    (3, 1),
    (-1, slice(None), 2),
    # NumPy takes an integer beside an array for an array, and puts their axis first.
    (-1, slice(None), [0, 2]),
    [],
    ([], 1),
    ...,
    (..., 0),
    (..., 5, 1, 2),
    (),
    None,
    (None, 3),
    (3, None, ..., 1),
    np.array([[0, 1], [7, 8]]),
    (np.array([[0, 1], [7, 8]]), slice(None), 2),
    ([[0], [7]], [0, 1]),
    np.array(3),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing_is_numpys(rows: FeatureRows, index: Any) -> None:
    found, expected = rows[index], VALUES[index]
    assert isinstance(found, np.ndarray)
    assert not isinstance(found, np.memmap)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@given(
    st.one_of(
        st.slices(N),
        st.integers(-N, N - 1),
        st.lists(st.integers(-N, N - 1), min_size=1, max_size=20),
        st.lists(st.booleans(), min_size=N, max_size=N),
    )
)
# The rows are read-only, and what was touched before must make no difference.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_index_gives_the_rows_it_gives_in_numpy(rows: FeatureRows, index: Any) -> None:
    assert np.array_equal(rows[index], VALUES[index])
    if not isinstance(index, int):
        chosen = rows.select(index)
        assert chosen.shape == VALUES[index].shape
        assert np.array_equal(chosen[:], VALUES[index])
        assert np.array_equal(chosen[::-1], VALUES[index][::-1])


def test_one_number_is_a_number(rows: FeatureRows) -> None:
    assert rows[3, 1, 2] == VALUES[3, 1, 2]
    assert isinstance(rows[3, 1, 2], np.float16)


def test_index_arrays_are_paired_as_numpy_pairs_them(rows: FeatureRows) -> None:
    # No error here, but other numbers.
    assert np.array_equal(rows[[0, 1], [1, 0]], VALUES[[0, 1], [1, 0]])


@pytest.mark.parametrize("index", [N, -N - 1, [0, N], [-N - 1], 1.0, [0.5], "x"], ids=str)
def test_what_is_no_index_is_an_index_error(rows: FeatureRows, index: Any) -> None:
    with pytest.raises(IndexError):
        rows[index]


@pytest.mark.parametrize("size", [N - 1, N + 1])
def test_a_mask_of_another_length_is_refused(rows: FeatureRows, size: int) -> None:
    with pytest.raises(IndexError, match="expected a mask of 12 rows"):
        rows[np.ones(size, bool)]


def test_rows_describe_themselves_like_an_array(rows: FeatureRows) -> None:
    assert rows.shape == VALUES.shape
    assert rows.dtype == VALUES.dtype
    assert rows.ndim == 3
    assert rows.nbytes == VALUES.nbytes
    assert len(rows) == N
    assert repr(rows) == "FeatureRows(shape=(12, 2, 3), dtype=float16, segments=3)"
    assert np.array_equal(np.stack(list(rows)), VALUES)


def test_numpy_takes_rows_for_an_array(rows: FeatureRows) -> None:
    assert np.array_equal(np.asarray(rows), VALUES)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    assert np.array(rows, copy=True).flags.owndata
    assert np.array_equal(np.add(rows, 1), VALUES + 1)


def test_neighbours_are_views_and_cannot_be_written(rows: FeatureRows) -> None:
    first = rows[0:5]
    assert np.shares_memory(first, rows[2]), "neighbouring rows were copied"
    assert np.shares_memory(first, rows[np.arange(1, 4)])
    for view in (first, rows[2], rows[[3]]):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0


@pytest.mark.parametrize("index", [[0, 2], [4, 5], [1, 1], [3, 2], slice(None)], ids=str)
def test_gathered_rows_are_copies(rows: FeatureRows, index: Any) -> None:
    # A change to a batch must reach neither the file nor the next batch.
    rows[index][...] = -1
    assert np.array_equal(rows[:], VALUES)


def test_selected_rows_stay_mapped(rows: FeatureRows) -> None:
    chosen = rows.select(np.array([6, 5, 5, 0]))
    assert isinstance(chosen, FeatureRows)
    assert chosen.dtype == rows.dtype
    assert np.array_equal(chosen[1:], VALUES[[5, 5, 0]])
    again = chosen.select(np.array([True, False, False, True]))
    assert np.array_equal(again[:], VALUES[[6, 0]])


def test_no_rows_at_all(rows: FeatureRows) -> None:
    none = rows.select(np.zeros(N, bool))
    assert len(none) == 0
    assert none[:].shape == (0, 2, 3)
    assert none[:].dtype == np.float16
    assert none.nbytes == 0


def test_only_touched_segments_are_mapped(rows: FeatureRows) -> None:
    rows[0:3]
    assert [files(rows)[0]] == [rows._paths[number] for number in rows._maps]


def test_pickling_carries_no_rows(rows: FeatureRows) -> None:
    # Worker processes map the files themselves.
    untouched = len(pickle.dumps(rows))
    rows[:]
    data = pickle.dumps(rows)
    assert len(data) == untouched
    again = pickle.loads(data)
    assert again._maps == {}
    assert rows._maps, "pickling must not unmap the original"
    assert np.array_equal(again[:], VALUES)
    assert np.array_equal(copy.copy(rows)[:], VALUES)


def damage(rows: FeatureRows, row: int) -> None:
    """Flip one bit of the last byte of a row, as a bad disk does."""
    path = files(rows)[row]
    size = rows.dtype.itemsize * 6
    offset = read_segment(path, SPACE).offset + (int(rows._row[row]) + 1) * size - 1
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("index", [4, slice(None), [0, 4], [4, 3]], ids=str)
def test_a_damaged_row_is_found_when_it_is_touched(own_rows: FeatureRows, index: Any) -> None:
    damage(own_rows, 4)
    with pytest.raises(DamageError, match=r"expected checksum [0-9a-f]{8} for row 1 of .*verify"):
        own_rows[index]
    # Asking again must not get it either.
    with pytest.raises(DamageError, match="is damaged"):
        own_rows[index]


def test_whole_rows_beside_a_damaged_one_can_be_read(own_rows: FeatureRows) -> None:
    damage(own_rows, 4)
    assert np.array_equal(own_rows[[0, 1, 2, 3, 5]], VALUES[[0, 1, 2, 3, 5]])


def test_damage_is_found_through_a_selection_and_after_pickling(own_rows: FeatureRows) -> None:
    chosen = own_rows.select(np.array([5, 4]))
    assert np.array_equal(chosen[0], VALUES[5])
    damage(own_rows, 4)
    for some in (chosen, pickle.loads(pickle.dumps(chosen)), chosen.select(np.array([1]))):
        with pytest.raises(DamageError, match="is damaged"):
            some[-1]


def test_each_row_is_summed_once(rows: FeatureRows, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(data: bytes) -> int:
        calls.append(memoryview(data).nbytes)
        return zlib.crc32(data)

    class Counting:
        crc32 = staticmethod(counting)

    monkeypatch.setattr(rows_module, "zlib", Counting)
    rows[:]
    assert calls == [12] * N
    rows[:]
    rows[3]
    rows.select(np.arange(4))[:]
    assert len(calls) == N


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_a_truncated_segment_is_damage(own_rows: FeatureRows, keep: float) -> None:
    path = files(own_rows)[0]
    size = path.stat().st_size
    path.chmod(0o644)
    # keep = 1: one byte short.
    os.truncate(path, min(int(size * keep), size - 1))
    with pytest.raises(DamageError, match=r"expected 3 rows in .*found a shorter file"):
        own_rows[0]
    assert np.array_equal(own_rows[3:], VALUES[3:6])


def test_rows_of_a_segment_removed_in_use_are_said_to_be_missing(own_rows: FeatureRows) -> None:
    files(own_rows)[0].unlink()
    with pytest.raises(NotFoundError, match=r"expected 6 rows in .*, found 3: 3 missing; run"):
        own_rows[0]


@pytest.mark.parametrize("sent", [False, True], ids=["here", "in another process"])
def test_rows_of_a_segment_that_was_replaced_are_found_again(
    own_rows: FeatureRows, sent: bool
) -> None:
    old = files(own_rows)[0]
    seen = own_rows[4]
    part = own_rows.select(np.array([2, 4, 0]))
    if sent:
        own_rows, part = pickle.loads(pickle.dumps((own_rows, part)))
    store = FeatureStore(old.parents[3], SPACE)
    for names in ([0, 1], [2]):
        store.append(image_ids(*names), VALUES[names], {})
    old.unlink()
    assert np.array_equal(own_rows[:], VALUES[:6])
    assert np.array_equal(part[:], VALUES[[2, 4, 0]])
    assert np.array_equal(seen, VALUES[4])


def test_a_mapped_segment_outlives_its_name(own_rows: FeatureRows) -> None:
    # What compaction removes under a running training stays readable to it.
    own_rows[0]
    files(own_rows)[0].unlink()
    assert np.array_equal(own_rows[:3], VALUES[:3])
