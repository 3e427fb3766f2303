"""Cached features in a ``DataLoader``: the same rows, however many workers read them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from support.samples import in_splits, small_space, stored_set
from torch.utils.data import DataLoader

from featpipe.base.errors import DamageError, NotFoundError, UsageError
from featpipe.integrations.arrays import open_features
from featpipe.integrations.torch import FeatureDataset
from featpipe.store.feature_store import FeatureStore

MAPS = small_space(tap="block2_pool", pooling="none", shape=(2, 3, 3))


@pytest.fixture
def maps(cache: Path) -> FeatureDataset:
    stored_set(cache, in_splits(train=15, test=4), spaces=[MAPS])
    return FeatureDataset("set", cache=cache)


def test_items_are_float32_features_and_a_label(maps: FeatureDataset, cache: Path) -> None:
    X, y = open_features("set", cache=cache)
    assert len(maps) == 30
    for i in (0, 7, 29, -1):
        row, label = maps[i]
        assert row.dtype == torch.float32 and row.shape == (2, 3, 3)
        assert np.array_equal(row.numpy(), np.asarray(X)[i].astype(np.float32))
        assert type(label) is int and label == y[i]


def test_a_batch_is_its_items(maps: FeatureDataset) -> None:
    wanted = [5, 0, 29, 5]
    for (row, label), i in zip(maps.__getitems__(wanted), wanted, strict=True):
        assert torch.equal(row, maps[i][0]) and label == maps[i][1]


def test_items_belong_to_their_taker(maps: FeatureDataset) -> None:
    # Augmenting in place must neither fail nor reach the store.
    for row in (maps[3][0], maps.__getitems__([3])[0][0], maps.__getitems__([3, 4])[0][0]):
        before = row.clone()
        row += 1
        assert torch.equal(maps[3][0], before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_every_row_once(workers: int, maps: FeatureDataset, cache: Path) -> None:
    X, y = open_features("set", cache=cache)
    loader = DataLoader(maps, batch_size=8, num_workers=workers)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6]
    rows = torch.cat([rows for rows, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64
    assert np.array_equal(rows.numpy(), np.asarray(X, np.float32))
    assert np.array_equal(labels.numpy(), y)


@pytest.mark.parametrize("workers", [0, 2])
def test_shuffling_keeps_rows_and_labels_together(workers: int, maps: FeatureDataset) -> None:
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(maps, batch_size=7, num_workers=workers, shuffle=True, generator=generator)
    known = {maps[i][0].numpy().tobytes(): maps[i][1] for i in range(len(maps))}
    seen = []
    for rows, labels in loader:
        for row, label in zip(rows, labels, strict=True):
            assert known[row.numpy().tobytes()] == int(label)
            seen.append(row.numpy().tobytes())
    assert sorted(seen) == sorted(known)
    assert seen != list(known)


def test_a_copy_for_another_process_carries_no_rows(cache: Path) -> None:
    wide = small_space(shape=(1000,))
    stored_set(cache, in_splits(train=50), spaces=[wide])
    dataset = FeatureDataset("set", cache=cache)
    row = dataset[0][0]
    data = pickle.dumps(dataset)
    # A worker started afresh gets this; it maps the files itself.
    assert len(data) < 100 * 1000
    assert torch.equal(pickle.loads(data)[0][0], row)


def test_split_tap_and_pool_choose_the_rows(cache: Path) -> None:
    stored_set(cache, in_splits(train=15, val=6, test=4), spaces=[MAPS, small_space()])
    with pytest.raises(UsageError, match=r"--tap .*, --pool "):
        FeatureDataset("set", cache=cache)
    assert FeatureDataset("set", "val", tap="block1_pool", cache=cache)[0][0].shape == (4,)
    assert len(FeatureDataset("set", "val", pool="avg", cache=cache)) == 12
    assert len(FeatureDataset("set", "all", tap="block2_pool", cache=cache)) == 50
    with pytest.raises(NotFoundError, match="a split 'dev'"):
        FeatureDataset("set", "dev", pool="avg", cache=cache)


def test_unlabelled_rows_are_minus_one(cache: Path) -> None:
    stored_set(cache, [("a.png", None, None), ("b.png", "cat", None)])
    dataset = FeatureDataset("set", "all", cache=cache)
    assert [dataset[i][1] for i in range(2)] == [-1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_row_stops_the_loader(workers: int, cache: Path) -> None:
    stored_set(cache, in_splits(train=15))
    X, _ = open_features("set", cache=cache)
    (segment,) = FeatureStore(cache, small_space()).segments_folder.glob("*.h5")
    data = bytearray(segment.read_bytes())
    data[data.index(np.asarray(X[4]).tobytes())] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    loader = DataLoader(FeatureDataset("set", cache=cache), batch_size=4, num_workers=workers)
    with pytest.raises(DamageError, match="the row is damaged"):
        list(loader)
