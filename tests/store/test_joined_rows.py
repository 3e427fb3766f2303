"""Rows of several stores side by side are what ``numpy.concatenate`` makes of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, NotFoundError
from featpipe.base.space import FeatureSpace
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import JoinedRows, open_rows
from featpipe.store.rows import FeatureRows

N = 9
SPACES = [
    small_space(shape=(2, 3)),
    small_space(tap="block2_pool", shape=(5,)),
    small_space(tap="block3_pool", shape=(2, 2, 2), dtype="float32"),
]


def values(space: FeatureSpace) -> np.ndarray:
    rng = np.random.default_rng(space.shape)
    return rng.normal(size=(N, *space.shape)).astype(space.dtype)


def joined(spaces: list[FeatureSpace]) -> np.ndarray:
    """What the rows of spaces are in NumPy."""
    return np.concatenate([values(space).reshape(N, -1) for space in spaces], axis=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows in each store, in segments of different sizes."""
    cache = tmp_path_factory.mktemp("cache")
    for number, space in enumerate(SPACES):
        store = FeatureStore(cache, space)
        for part in np.split(np.arange(N), [2 + number, 6]):
            store.append(image_ids(*part), values(space)[part], {})
    return cache


INDEX = st.one_of(
    st.slices(N),
    st.integers(-N, N - 1),
    st.lists(st.integers(-N, N - 1), min_size=1, max_size=20),
    st.lists(st.booleans(), min_size=N, max_size=N),
)


@given(chosen=st.permutations(SPACES), count=st.integers(1, 3), index=INDEX)
# The rows are read-only, and what was read before must make no difference.
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_index_gives_what_it_gives_of_concatenated_arrays(
    cache: Path, chosen: list[FeatureSpace], count: int, index: Any
) -> None:
    spaces = list(chosen[:count])
    rows = JoinedRows([FeatureStore(cache, space).rows(image_ids(*range(N))) for space in spaces])
    expected = joined(spaces)
    assert rows.shape == expected.shape and rows.dtype == expected.dtype
    found = rows[index]
    assert found.dtype == expected.dtype and np.array_equal(found, expected[index])
    if not isinstance(index, int):
        selected = rows.select(index)
        assert selected.widths == rows.widths and selected.shape == expected[index].shape
        assert np.array_equal(selected[::-1], expected[index][::-1])


@pytest.mark.parametrize(
    "index",
    [(slice(1, 4), 3), ([0, 5], slice(2, 9)), (3, 7), (..., 0), None, (np.array([[0, 1]]), [[4]])],
    ids=str,
)
def test_columns_are_indexed_as_numpys(cache: Path, index: Any) -> None:
    rows, expected = open_rows(cache, SPACES, image_ids(*range(N))), joined(SPACES)
    assert np.array_equal(rows[index], expected[index])


def test_it_describes_itself_like_an_array(cache: Path) -> None:
    rows, expected = open_rows(cache, SPACES, image_ids(*range(N))), joined(SPACES)
    assert (rows.ndim, len(rows), rows.nbytes) == (2, N, expected.nbytes)
    assert repr(rows) == "JoinedRows(shape=(9, 19), dtype=float32, widths=(6, 5, 8))"
    assert np.array_equal(np.asarray(rows), expected)
    assert np.array_equal(np.stack(list(rows)), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(rows))[:], expected)


def test_the_widest_dtype_wins(cache: Path) -> None:
    ids = image_ids(*range(N))
    assert open_rows(cache, SPACES[:2], ids).dtype == np.float16
    assert open_rows(cache, SPACES[1:], ids)[0:2].dtype == np.float32


def test_one_space_keeps_its_rows_as_they_are(cache: Path) -> None:
    rows = open_rows(cache, SPACES[:1], image_ids(*range(N)))
    assert isinstance(rows, FeatureRows) and rows.shape == (N, 2, 3)


def test_nothing_is_read_before_it_is_asked_for(cache: Path) -> None:
    rows = open_rows(cache, SPACES, image_ids(*range(N)))
    assert isinstance(rows, JoinedRows)
    few = rows.select(np.array([7, 1]))
    assert not any(part._maps for part in [*rows._parts, *few._parts])
    few[1]
    assert [int(part._checked.sum()) for part in few._parts] == [1, 1, 1]


def test_no_rows_are_an_empty_array(cache: Path) -> None:
    rows = open_rows(cache, SPACES, image_ids())
    assert rows.shape == (0, 19) and rows[:].shape == (0, 19)


def test_a_picture_that_one_store_lacks_is_an_error_that_names_the_store(
    cache: Path, tmp_path: Path
) -> None:
    FeatureStore(tmp_path, SPACES[0]).append(image_ids(0, 1), values(SPACES[0])[:2], {})
    FeatureStore(tmp_path, SPACES[1]).append(image_ids(0), values(SPACES[1])[:1], {})
    with pytest.raises(NotFoundError, match=r"2 rows in .*tiny-block2_pool-.*: 1 missing"):
        open_rows(tmp_path, SPACES[:2], image_ids(0, 1))


def test_a_damaged_row_of_one_part_is_refused(tmp_path: Path) -> None:
    for space in SPACES[:2]:
        path = FeatureStore(tmp_path, space).append(image_ids(*range(N)), values(space), {})
    data = bytearray(path.read_bytes())
    at = bytes(data).index(values(SPACES[1]).tobytes())
    data[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    rows = open_rows(tmp_path, SPACES[:2], image_ids(*range(N)))
    assert np.array_equal(rows[1:], joined(SPACES[:2])[1:])
    with pytest.raises(DamageError, match="row 0 of"):
        rows[0]


def test_parts_of_different_lengths_are_a_mistake(cache: Path) -> None:
    parts = [FeatureStore(cache, SPACES[0]).rows(image_ids(*range(n))) for n in (2, 3)]
    with pytest.raises(ValueError, match=r"equal length, found \[2, 3\]"):
        JoinedRows(parts)
