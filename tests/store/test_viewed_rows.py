"""Rows with views are view 0 to whoever does not ask for the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.samples import in_splits, small_space, stored_set
from support.views import LIGHT, stored_views, view_of

from featpipe.base.errors import NotFoundError
from featpipe.datasets.views import Views
from featpipe.heads.base import views_of, widths_of
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows
from featpipe.store.viewed_rows import ViewedRows, open_views

FIRST = small_space(shape=(3, 2, 2), pooling="none")
SECOND = small_space(tap="block2_pool", shape=(5,), dtype="float32")


@pytest.mark.parametrize("spaces", [(FIRST,), (FIRST, SECOND)], ids=["one tap", "two taps"])
def test_they_are_view_0_and_know_the_other_views(spaces: tuple, cache: Path) -> None:  # type: ignore[type-arg]
    dataset = stored_set(cache, in_splits(train=6), spaces=[FIRST, SECOND])
    stored_views(cache, dataset)
    ids = dataset.image_sha256
    plain = open_rows(cache, spaces, ids)
    each = tuple(tuple(view_of(space, view) for space in spaces) for view in (1, 2))
    views = open_views(cache, Views(LIGHT, each), ids, remedy="")
    rows = ViewedRows(plain, views)
    assert (rows.shape, rows.dtype, rows.ndim, len(rows)) == (
        plain.shape,
        plain.dtype,
        plain.ndim,
        12,
    )
    assert widths_of(rows) == widths_of(plain)
    assert np.array_equal(rows[:], plain[:]) and np.array_equal(rows[3:5, 1], plain[3:5, 1])
    assert np.array_equal(np.asarray(rows), np.asarray(plain))
    assert views_of(rows) == tuple(views) and views_of(plain) == ()
    chosen = np.array([7, 2, 2])
    some = rows.select(chosen)
    assert np.array_equal(some[:], plain[:][chosen])
    for view, selected in zip(views, views_of(some), strict=True):
        assert np.array_equal(selected[:], view[:][chosen])
    mask = np.arange(12) % 3 == 0
    assert np.array_equal(views_of(rows.select(mask))[0][:], views[0][:][mask])
    assert repr(rows).startswith("ViewedRows(shape=(12, ") and "views=2" in repr(rows)


def test_views_of_another_shape_are_refused(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=2), spaces=[FIRST, SECOND])
    ids = dataset.image_sha256
    rows, others = FeatureStore(cache, FIRST).rows(ids), FeatureStore(cache, SECOND).rows(ids)
    with pytest.raises(ValueError, match="expected views of shape"):
        ViewedRows(rows, [others])
    with pytest.raises(ValueError, match="expected views of shape"):
        ViewedRows(rows, [rows.select(np.arange(2))])


def test_pictures_without_a_row_in_a_view_are_counted_once(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=5), spaces=[FIRST])
    stored_views(cache, dataset, (1,), without=[0, 3])
    stored_views(cache, dataset, (2,), spaces=[FIRST], without=[3, 4])
    each = tuple((view_of(FIRST, view),) for view in (1, 2))
    with pytest.raises(NotFoundError) as caught:
        open_views(cache, Views(LIGHT, each), dataset.image_sha256, remedy="do that")
    assert str(caught.value) == (
        "expected all 10 pictures in each of 2 views (light), found 3 without a row: they were "
        "computed for other splits or pictures; do that"
    )
