"""A few pictures per class are chosen by content, and fewer are among more."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import image_ids

from featpipe.datasets.shots import shot_ranks


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1), st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_each_class_has_its_different_pictures_in_an_order(
    pictures: list[tuple[int, int]], seed: int
) -> None:
    ids, labels = image_ids(*[name for name, _ in pictures]), np.array([y for _, y in pictures])
    ranks = shot_ranks(ids, labels, seed)
    for label in np.unique(labels):
        mine = [ids[i].tobytes() for i in np.flatnonzero(labels == label)]
        found = ranks[labels == label]
        different = len(set(mine))
        counted = found < len(ids)
        assert sorted(found[counted]) == list(range(different))
        assert len({name for name, yes in zip(mine, counted, strict=True) if yes}) == different
        assert (found[~counted] == len(ids)).all()


def test_the_order_depends_on_content_and_seed_alone() -> None:
    ids, labels = image_ids(*range(200)), np.arange(200) % 3
    ranks = shot_ranks(ids, labels, 0)
    shuffled = np.random.default_rng(0).permutation(200)
    assert np.array_equal(shot_ranks(ids[shuffled], labels[shuffled], 0), ranks[shuffled])
    assert not np.array_equal(shot_ranks(ids, labels, 1), ranks)
    # Without other pictures, those that are left keep their order.
    few = np.flatnonzero(ranks % 2 == 0)
    assert np.array_equal(shot_ranks(ids[few], labels[few], 0), ranks[few] // 2)


def test_the_order_is_for_ever() -> None:
    assert shot_ranks(image_ids(*range(6)), np.zeros(6, int), 3).tolist() == [3, 1, 0, 5, 4, 2]
