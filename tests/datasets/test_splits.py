"""Splits by content: stable, without straddling duplicates, every class in every part."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.samples import image_ids

from featpipe.base.errors import UsageError
from featpipe.datasets.dataset import NO_LABEL
from featpipe.datasets.splits import split_by_content
from featpipe.specs.extract import DEFAULT_SPLIT


def some(n: int, classes: int = 1, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
    """n different pictures and their labels, classes in turn."""
    return image_ids(*(f"{prefix}{i}" for i in range(n))), np.arange(n, dtype=np.int64) % classes


def by_hash_alone(ids: np.ndarray, fractions: tuple[float, ...] = DEFAULT_SPLIT) -> np.ndarray:
    """The parts before any picture is moved: one without a label never is."""
    unlabelled = np.full(1, NO_LABEL)
    parts = [split_by_content(ids[i : i + 1], unlabelled, fractions)[0] for i in range(len(ids))]
    return np.array(parts)


def test_the_assignment_is_pinned() -> None:
    # A change here moves pictures between train and test of every existing data set.
    ids, labels = some(24)
    assert split_by_content(ids, labels).tolist() == PINNED


PINNED = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 1, 2, 0]


def test_shares_are_near_the_fractions() -> None:
    ids, labels = some(4000, classes=4)
    part = split_by_content(ids, labels)
    assert part.dtype == np.int8
    for label in range(4):
        share = np.bincount(part[labels == label], minlength=3) / 1000
        # Five standard deviations of a share of 1000 draws.
        deviation = np.sqrt(np.multiply(DEFAULT_SPLIT, np.subtract(1, DEFAULT_SPLIT)) / 1e3)
        assert (np.abs(share - DEFAULT_SPLIT) < 5 * deviation).all()


def test_pictures_keep_their_part_as_data_grows() -> None:
    ids, labels = some(3000, classes=3)
    whole = split_by_content(ids, labels)
    order = np.random.default_rng(0).permutation(3000)
    for n in (300, 1000):
        some_of_them = order[:n]
        part = split_by_content(ids[some_of_them], labels[some_of_them])
        assert (part == whole[some_of_them]).all()


def test_a_new_class_moves_nothing() -> None:
    ids, labels = some(200)
    new_ids, new_labels = some(5, prefix="new")
    part = split_by_content(
        np.concatenate([ids, new_ids]), np.concatenate([labels, new_labels + 1])
    )
    assert (part[:200] == split_by_content(ids, labels)).all()


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_duplicates_never_straddle_and_order_does_not_matter(
    pictures: list[tuple[int, int]], random: object
) -> None:
    # The class is part of the name: a picture has one label here.
    ids = image_ids(*pictures)
    labels = np.array([label for _, label in pictures])
    part = split_by_content(ids, labels)
    seen: dict[bytes, int] = {}
    for row, k in zip(ids, part.tolist(), strict=True):
        assert seen.setdefault(row.tobytes(), k) == k
    order = list(range(len(pictures)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert (split_by_content(ids[order], labels[order]) == part[order]).all()


def test_equal_pictures_share_a_part_even_with_different_labels() -> None:
    ids = image_ids(*range(40), *range(40))
    part = split_by_content(ids, np.repeat([0, 1], 40))
    assert (part[:40] == part[40:]).all()


@given(st.integers(0, 10**6), st.integers(3, 6))
def test_a_class_of_three_is_in_all_three_parts(prefix: int, n: int) -> None:
    ids, labels = some(n, prefix=f"{prefix}-")
    assert set(split_by_content(ids, labels).tolist()) == {0, 1, 2}


def test_each_class_is_covered_on_its_own() -> None:
    ids, labels = some(60, classes=12)
    part = split_by_content(ids, labels, (0.9, 0.05, 0.05))
    for label in range(12):
        assert set(part[labels == label].tolist()) == {0, 1, 2}


def test_filling_a_part_moves_only_what_it_must() -> None:
    ids, labels = some(300, classes=20)
    alone = by_hash_alone(ids)
    moved = split_by_content(ids, labels) != alone
    for label in range(20):
        mine = labels == label
        empty = 3 - len(set(alone[mine].tolist()))
        assert moved[mine].sum() == empty
    assert moved.any(), "no class was small enough to need it"


def test_too_few_different_pictures_are_left_where_the_hash_puts_them() -> None:
    ids = image_ids("a", "b", "a", "b", "a")
    part = split_by_content(ids, np.zeros(5, np.int64))
    assert part.tolist() == by_hash_alone(ids).tolist()


@pytest.mark.parametrize("fractions", [DEFAULT_SPLIT, (0.1, 0.8, 0.1), (0.5, 0.0, 0.5), (0.8, 0.2)])
@pytest.mark.parametrize("n", [1, 2])
def test_a_class_of_few_pictures_has_one_to_train_on(n: int, fractions: tuple[float, ...]) -> None:
    moved = 0
    for prefix in range(40):
        ids, _ = some(n, prefix=f"{prefix}-")
        ids = np.concatenate([ids, ids])  # equal pictures count once
        part = split_by_content(ids, np.zeros(2 * n, np.int64), fractions)
        assert 0 in part
        assert (part[:n] == part[n:]).all()
        if n < np.count_nonzero(fractions):
            alone = by_hash_alone(ids, fractions)
            changed = (part != alone).sum() // 2
            assert changed == (0 not in alone), "only what is needed moves"
            moved += changed
    assert moved or n >= np.count_nonzero(fractions)


def test_a_class_whose_only_picture_has_two_labels_has_it_to_train_on() -> None:
    ids, _ = some(40)
    labels = np.zeros(41, np.int64)
    labels[40] = 1
    for i in range(40):
        both = np.concatenate([ids, ids[i : i + 1]])
        part = split_by_content(both, labels)
        assert part[40] == part[i] == 0


def test_without_a_share_to_train_on_a_picture_stays_where_the_hash_puts_it() -> None:
    ids, labels = some(1)
    assert split_by_content(ids, labels, (0.0, 0.5, 0.5))[0] in (1, 2)


def test_pictures_without_a_label_stay_where_the_hash_puts_them() -> None:
    ids, _ = some(2)
    by_hash = by_hash_alone(ids)
    assert (split_by_content(ids, np.full(2, NO_LABEL)) == by_hash).all()


def test_a_part_with_no_share_gets_nothing() -> None:
    ids, labels = some(400, classes=4)
    assert set(split_by_content(ids, labels, (0.5, 0.0, 0.5)).tolist()) == {0, 2}
    assert set(split_by_content(ids, labels, (0.0, 0.5, 0.5)).tolist()) == {1, 2}
    assert set(split_by_content(ids, labels, (0.8, 0.2, 0.0)).tolist()) == {0, 1}


def test_a_part_with_no_share_gets_nothing_though_shares_are_rounded() -> None:
    ids, labels = some(400, classes=4)
    part = split_by_content(ids, labels, (0.3333333333, 0.6666666666, 0.0))
    assert set(part.tolist()) == {0, 1}


def test_salts_make_independent_splits() -> None:
    ids, labels = some(4000)
    one = split_by_content(ids, labels, (0.5, 0.5))
    other = split_by_content(ids, labels, (0.5, 0.5), salt="val")
    # Independent halves agree on half of the pictures; 0.04 is five standard deviations.
    assert abs((one == other).mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    "fractions",
    [
        (1.0,),
        (0.7, 0.2),
        (0.7, 0.4, -0.1),
        (0.0, 0.0, 0.0),
        (float("inf"), 0.5, 0.5),
        (float("nan"), 0.5, 0.5),
        (0.5, 0.5, float("nan")),
    ],
)
def test_shares_that_do_not_sum_to_one_are_refused(fractions: tuple[float, ...]) -> None:
    ids, labels = some(3)
    with pytest.raises(UsageError, match="sum to 1"):
        split_by_content(ids, labels, fractions)
