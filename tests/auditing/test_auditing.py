"""Neighbours, near duplicates, outliers and label errors: what the parts promise, on arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featpipe.auditing import label_errors, neighbours
from featpipe.auditing.label_errors import (
    class_thresholds,
    confident_joint,
    find_label_errors,
    out_of_fold,
    why_not,
)
from featpipe.auditing.near_duplicates import groups_of, largest_distance, near_pairs
from featpipe.auditing.neighbours import nearest
from featpipe.auditing.outliers import outlier_scores, outside
from featpipe.auditing.rows import directions, pooled


def unit_rows(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return directions(np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32))


def two_classes(n: int, wrong: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of two well parted classes, labels of which some are wrong, and which those are."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    X = (rng.normal(size=(n, 8)) + 3 * (2 * truth - 1)[:, None]).astype(np.float32)
    flipped = rng.choice(n, wrong, replace=False)
    y = truth.copy()
    y[flipped] = 1 - y[flipped]
    return X, y, np.sort(flipped)


# Rows.


def test_maps_are_averaged_and_vectors_stay() -> None:
    maps = np.random.default_rng(0).normal(size=(5, 3, 4, 2)).astype(np.float16)
    assert np.allclose(pooled(maps), maps.astype(np.float32).mean(axis=(2, 3)), atol=1e-6)
    assert np.array_equal(pooled(maps[..., 0, 0]), maps[..., 0, 0].astype(np.float32))


def test_only_a_block_of_maps_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    class Rows:
        shape = (100, 3, 4, 4)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: slice) -> np.ndarray:
            taken.append(index.stop - index.start)
            return np.ones((len(range(*index.indices(100))), 3, 4, 4), np.float16)

    monkeypatch.setattr("featpipe.heads.base._BLOCK_BYTES", 7 * 4 * 48)
    assert np.array_equal(pooled(Rows()), np.ones((100, 3), np.float32))
    assert max(taken) == 7


def test_directions_have_length_one_and_rows_of_zeros_stay() -> None:
    found = directions(np.array([[3, 4], [0, 0]], np.float32))
    assert np.allclose(found, [[0.6, 0.8], [0, 0]])


# Neighbours.


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_neighbours_are_those_of_the_whole_matrix(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ROWS", 7)
    monkeypatch.setattr(neighbours, "_COLUMNS", 13)
    rows = unit_rows(n)
    done: list[int] = []
    similarity, index = nearest(rows, 4, tick=done.append)
    whole = rows @ rows.T
    np.fill_diagonal(whole, -np.inf)
    k = min(4, n - 1)
    assert similarity.shape == index.shape == (n, k)
    assert np.allclose(similarity, -np.sort(-whole, axis=1)[:, :k], atol=1e-6)
    assert np.allclose(np.take_along_axis(whole, index, axis=1), similarity, atol=1e-6)
    assert sum(done) == (n if k else 0)


def test_no_row_is_its_own_neighbour_however_many_are_equal() -> None:
    similarity, index = nearest(np.ones((30, 1), np.float32), 10)
    assert (similarity == 1).all()
    assert (index != np.arange(30)[:, None]).all()
    pairs, _ = near_pairs(similarity, index, 0.1)
    assert len(np.unique(groups_of(30, pairs))) == 1


# Near duplicates.


def test_copies_are_near_duplicates_and_nothing_else_is() -> None:
    rows = unit_rows(200)
    noise = np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32)
    copies = directions(rows[:20] + 0.03 * noise)
    similarity, index = nearest(np.concatenate([rows, copies]), 10)
    pairs, found = near_pairs(similarity, index, largest_distance(similarity, 0.2))
    assert sorted(map(tuple, pairs.tolist())) == [(i, 200 + i) for i in range(20)]
    assert (np.diff(found) <= 0).all()


def test_groups_are_connected_rows() -> None:
    pairs = np.array([[5, 7], [1, 2], [2, 6], [7, 8], [0, 8]])
    assert groups_of(9, pairs).tolist() == [0, 1, 1, 3, 4, 0, 1, 0, 0]
    chain = np.stack([np.arange(99), np.arange(1, 100)], axis=1)[::-1]
    assert groups_of(100, chain).tolist() == [0] * 100
    assert groups_of(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_a_single_row_has_neither_duplicate_nor_outlier() -> None:
    similarity, index = nearest(unit_rows(1), 10)
    assert len(near_pairs(similarity, index, largest_distance(similarity, 0.2))[0]) == 0
    assert outlier_scores(similarity).tolist() == [0.0]
    assert len(outside(outlier_scores(similarity))) == 0


# Outliers.


def test_a_row_unlike_all_others_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 8)).astype(np.float32) * 0.3 + 1
    rows[42] = [-1, 1, -1, 1, -1, 1, -1, 1]
    scores = outlier_scores(nearest(directions(rows), 10)[0])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert outside(scores)[0] == 42


# Label errors.


def test_flipped_labels_are_found() -> None:
    X, y, flipped = two_classes(200, 8)
    p = out_of_fold(X, y, np.arange(200), folds=5, seed=0)
    found = find_label_errors(p, y)
    assert sorted(found.rows.tolist()) == flipped.tolist()
    assert (found.suggested == 1 - y[found.rows]).all()
    assert abs(found.estimate - 8) <= 2


def test_probabilities_come_from_other_folds_and_groups_stay_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y, _ = two_classes(60, 0)
    group = np.arange(60) // 3
    seen: list[tuple[set[int], set[int]]] = []

    class Spy(label_errors.LogisticHead):
        def fit(self, X: Any, y: Any, X_val: Any, y_val: Any, **options: Any) -> Any:
            seen.append((set(X[:, -1].astype(int)), set(X_val[:, -1].astype(int))))
            return super().fit(X, y, X_val, y_val, **options)

    monkeypatch.setattr(label_errors, "LogisticHead", Spy)
    X = np.concatenate([X, np.arange(60)[:, None]], axis=1).astype(np.float32)
    p = out_of_fold(X, y, group, folds=4, seed=0)
    assert not np.isnan(p).any()
    assert np.allclose(p.sum(axis=1), 1)
    assert set().union(*(held for _, held in seen)) == set(range(60))
    for used, held in seen:
        assert not {group[i] for i in used} & {group[i] for i in held}


def test_a_copy_does_not_vouch_for_its_own_wrong_label() -> None:
    X, y, _ = two_classes(100, 0)
    y[:2] = 1 - y[0]
    X[1] = X[0]
    group = np.array([0, 0, *range(2, 100)])
    found = find_label_errors(out_of_fold(X, y, group, folds=5, seed=0), y)
    assert sorted(found.rows.tolist()) == [0, 1]


def test_a_class_of_one_picture_is_not_judged() -> None:
    X, y, _ = two_classes(40, 0)
    y[0] = 2
    p = out_of_fold(X, y, np.arange(40), folds=4, seed=0)
    assert np.isnan(p[0]).all()
    assert not np.isnan(p[1:]).any()
    assert 0 not in find_label_errors(p, y).rows


def test_the_run_of_one_seed_repeats_itself() -> None:
    X, y, _ = two_classes(50, 2)
    first, again = (out_of_fold(X, y, np.arange(50), folds=3, seed=7) for _ in range(2))
    assert np.array_equal(first, again)


def test_thresholds_and_joint_are_those_of_the_paper() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    y = np.array([0, 0, 0, 1, 1, 1])
    assert np.allclose(class_thresholds(p, y), [0.6, 0.5])
    # Every picture reaches one threshold: label 0 has one of class 1, label 1 one of class 0.
    assert np.allclose(confident_joint(p, y), [[2, 1], [1, 2]])
    found = find_label_errors(p, y)
    assert found.rows.tolist() == [2, 4]
    assert found.suggested.tolist() == [1, 0]
    assert found.estimate == 2


@pytest.mark.parametrize(
    ("y", "group", "words"),
    [
        ([0, 0, 0], [0, 1, 2], "two classes"),
        ([0, 1, 2], [0, 1, 2], "folds"),
        ([0, 0, 1, 1], [0, 0, 1, 1], "folds"),
        ([0, 0, 1, 1], [0, 1, 2, 3], ""),
        ([], [], "two classes"),
    ],
)
def test_too_few_pictures_are_a_reason_not_to_judge(y: Any, group: Any, words: str) -> None:
    reason = why_not(np.array(y, np.int64), np.array(group, np.int64), 3)
    assert words in reason
    assert bool(reason) == bool(words)
