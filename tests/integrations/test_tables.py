"""Features with what is known of their pictures: as a pair, a data frame, a Parquet file."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.library import train_head
from support.samples import in_splits, small_space, stored_set

import featpipe
from featpipe.base.errors import FeatpipeError, StorageError, UsageError
from featpipe.datasets.dataset import Dataset
from featpipe.integrations.arrays import open_features
from featpipe.integrations.tables import FeatureTable

NAMES = ["tiny-block1_pool_0", "tiny-block1_pool_1", "tiny-block1_pool_2", "tiny-block1_pool_3"]
CAFE = "caf\udce9"


@pytest.fixture
def dataset(cache: Path) -> Dataset:
    """Two classes in three splits, an unlabelled picture and one without a split."""
    more = [("x.png", None, "train"), ("y.png", "dog", None), ("a,\n猫.png", "cat", "test")]
    return stored_set(cache, [*in_splits(train=6, val=2, test=3), *more])


def test_features_unpack_to_two_as_ever(cache: Path, dataset: Dataset) -> None:
    table = open_features("set", "train", cache=cache)
    X, y = table
    assert isinstance(table, tuple) and len(table) == 2
    assert table[0] is X is table.X and table[1] is y is table.y
    assert X.shape == (13, 4) and y.dtype == np.int64
    assert repr(table) == (
        f"<FeatureTable of 'set': 13 rows of {small_space().name}, shape (4,), 2 classes>"
    )


def test_each_row_has_its_picture(cache: Path, dataset: Dataset) -> None:
    table = featpipe.open_features("set", "all", cache=cache)
    assert isinstance(table, featpipe.FeatureTable)
    assert table.paths == dataset.paths and table.classes == ["cat", "dog"]
    assert table.ids == [row.tobytes().hex() for row in dataset.image_sha256]
    place = table.paths.index("x.png")
    assert (table.labels[place], table.y[place]) == (None, -1)
    assert table.labels[0] == table.classes[table.y[0]] == "cat"
    assert table.splits[table.paths.index("y.png")] is None
    assert [table.splits.count(name) for name in ("train", "val", "test")] == [13, 4, 7]
    test = open_features("set", "test", cache=cache)
    assert test.paths == [dataset.paths[i] for i in dataset.in_split("test")]


def test_a_table_survives_pickling(cache: Path, dataset: Dataset) -> None:
    table = open_features("set", "val", cache=cache)
    again = pickle.loads(pickle.dumps(table))
    assert isinstance(again, FeatureTable) and again.paths == table.paths
    assert np.array_equal(again.X[:], table.X[:]) and again.space == table.space


def test_a_data_frame_has_a_column_per_feature(cache: Path, dataset: Dataset) -> None:
    pandas = pytest.importorskip("pandas")
    table = open_features("set", "all", cache=cache)
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == ["path", "id", "split", "label", *NAMES]
    assert frame["path"].tolist() == table.paths and frame["id"].tolist() == table.ids
    assert np.array_equal(frame[NAMES].to_numpy(), np.asarray(table.X).astype(np.float32))
    assert frame["label"].isna().sum() == 1 and frame["split"].isna().sum() == 1


def test_maps_are_flattened_in_the_order_c_h_w(cache: Path) -> None:
    pytest.importorskip("pandas")
    space = small_space(shape=(2, 3, 3), pooling="none")
    stored_set(cache, in_splits(train=3), spaces=[space])
    table = open_features("set", cache=cache)
    frame = table.to_pandas()
    assert frame.shape == (6, 4 + 18)
    assert frame["tiny-block1_pool_11"].tolist() == [row[1, 0, 2] for row in table.X]


def test_a_parquet_file_holds_it_all(cache: Path, dataset: Dataset, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = open_features("set", "all", cache=cache)
    (tmp_path / "set.parquet").write_bytes(b"an older one")
    table.to_parquet(tmp_path / "set.parquet")
    found = parquet.read_table(tmp_path / "set.parquet")
    assert found.column_names == ["path", "id", "split", "label", "features"]
    assert found["path"].to_pylist() == table.paths and found["id"].to_pylist() == table.ids
    assert found["label"].to_pylist() == table.labels
    assert found["split"].to_pylist() == table.splits
    expected = np.asarray(table.X).astype(np.float32)
    assert np.array_equal(np.array(found["features"].to_pylist(), np.float32), expected)
    about = json.loads(found.schema.metadata[b"featpipe"])
    assert about["feature_space_id"] == table.space.id and about["dataset"] == "set"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "set.parquet"]


def test_parquet_is_written_block_by_block(
    cache: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    # Five rows of four float32 numbers.
    monkeypatch.setattr("featpipe.heads.base._BLOCK_BYTES", 5 * 16)
    table = open_features("set", "all", cache=cache)
    table.to_parquet(tmp_path / "set.parquet")
    file = parquet.ParquetFile(tmp_path / "set.parquet")
    assert file.metadata.num_row_groups == 5
    assert file.read()["path"].to_pylist() == table.paths


def test_parquet_is_written_without_pandas(
    cache: Path, dataset: Dataset, tmp_path: Path, without: Callable[..., None]
) -> None:
    pytest.importorskip("pyarrow")
    without("pandas")
    open_features("set", cache=cache).to_parquet(tmp_path / "set.parquet")
    assert (tmp_path / "set.parquet").stat().st_size > 0


def test_names_that_are_no_text_become_escapes_in_parquet(cache: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    samples = [(f"{CAFE}.png", CAFE, "train"), ("b.png", "b", "train")]
    stored_set(cache, samples, contents={f"{CAFE}.png": "one"})
    open_features("set", cache=cache).to_parquet(tmp_path / "set.parquet")
    found = parquet.read_table(tmp_path / "set.parquet")
    assert found["path"].to_pylist() == ["caf\\xe9.png", "b.png"]
    assert found["label"].to_pylist() == ["caf\\xe9", "b"]


def test_a_file_that_cannot_be_written_is_a_storage_error(
    cache: Path, dataset: Dataset, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(StorageError, match=r"expected to write .*nowhere/set\.parquet, but: "):
        open_features("set", cache=cache).to_parquet(tmp_path / "nowhere" / "set.parquet")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that packages are not installed."""

    def go(*packages: str) -> None:
        for name in packages:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]

    return go


@pytest.mark.parametrize(
    ("call", "package", "extra"),
    [
        (lambda table: table.to_pandas(), "pandas", "pandas"),
        (lambda table: table.to_parquet("x.parquet"), "pyarrow", "parquet"),
    ],
    ids=["pandas", "parquet"],
)
def test_a_missing_package_names_the_extra(
    call: Callable[[Any], None],
    package: str,
    extra: str,
    cache: Path,
    dataset: Dataset,
    without: Callable[..., None],
) -> None:
    table = open_features("set", cache=cache)
    without(package)
    with pytest.raises(ImportError) as refused:
        call(table)
    assert isinstance(refused.value, FeatpipeError)
    assert str(refused.value) == (
        f"expected the package {package} for to_{extra}(), found none; "
        f"install it with: pip install 'featpipe[{extra}]'"
    )


@pytest.fixture
def run(cache: Path, dataset: Dataset, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    return train_head("set", cache=cache, head="logistic", params={"C": 1.0}, out=out).head


def test_a_loaded_head_answers_for_features(cache: Path, run: Path) -> None:
    head = featpipe.load_head(str(run))
    assert head.classes_.tolist() == ["cat", "dog"] and head.space == small_space()
    table = open_features("set", "test", cache=cache)
    probabilities = head.predict_proba(table.X)
    assert probabilities.shape == (7, 2) and np.allclose(probabilities.sum(axis=1), 1)
    assert np.array_equal(probabilities, head.head.predict_proba(table.X))
    assert np.array_equal(head.predict_proba(np.asarray(table.X).tolist()), probabilities)
    assert head.predict(table.X).tolist() == table.labels
    assert head.predict_proba(np.empty((0, 4))).shape == (0, 2)


def test_a_loaded_head_takes_maps_and_flat_rows(cache: Path, tmp_path: Path) -> None:
    space = small_space(shape=(2, 3, 3), pooling="none")
    stored_set(cache, in_splits(train=8, val=3), spaces=[space])
    head = featpipe.load_head(train_head("set", cache=cache, epochs=2, out=tmp_path / "run").head)
    X = np.asarray(open_features("set", "val", cache=cache).X)
    assert np.array_equal(head.predict_proba(X), head.predict_proba(X.reshape(6, 18)))
    # The same numbers in another order would be other features.
    with pytest.raises(UsageError, match=r"shape \(n, 2, 3, 3\), of block1_pool .*\(6, 3, 3, 2\)"):
        head.predict_proba(X.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("shape", [(3, 5), (3, 2, 2), (4,), ()])
def test_rows_of_another_shape_are_refused(shape: tuple[int, ...], run: Path) -> None:
    with pytest.raises(ValueError) as refused:
        featpipe.load_head(run).predict_proba(np.zeros(shape))
    assert str(refused.value) == (
        "expected rows of shape (n, 4), of block1_pool with pooling avg, found "
        f"{shape}; open the features that the head was trained on"
    )


def test_no_head_is_not_found_from_python(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="expected a head"):
        featpipe.load_head(tmp_path)
