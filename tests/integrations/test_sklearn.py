"""``CachedFeatures`` among scikit-learn's own: cloned, searched over, computing only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featpipe
from featpipe.backbones import network
from featpipe.base.errors import DataError, UsageError
from featpipe.datasets.files import load_dataset
from featpipe.integrations.arrays import open_features
from featpipe.integrations.sklearn import CachedFeatures

TINY: dict[str, Any] = {
    "weights": "random:0",
    "tap": "block1_pool",
    "size": 16,
    "resize": "squash",
    "precision": "fp32",
    "device": "cpu",
    "workers": 1,
    "batch_size": 8,
}


@pytest.fixture
def features(cache: Path) -> Callable[..., CachedFeatures]:
    return lambda **options: CachedFeatures(cache=cache, **{**TINY, **options})


@pytest.fixture
def paths(photo_folder: Path) -> list[str]:
    return [str(path) for path in sorted(photo_folder.glob("*/*.png"))]


@pytest.fixture
def labels(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pictures in each pass of the backbone."""
    sizes: list[int] = []

    class Counted(network.Network):
        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            sizes.append(len(pixels))
            return super().__call__(pixels)

    monkeypatch.setattr(network, "Network", Counted)
    return sizes


def test_paths_become_flat_float32_rows(
    features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    X = features().fit_transform(paths)
    assert X.shape == (40, 64 * 8 * 8) and X.dtype == np.float32
    assert features(pool="max").transform(paths[:3]).shape == (3, 64)


def test_rows_are_those_of_an_extraction_in_the_order_asked(
    features: Callable[..., CachedFeatures],
    photo_folder: Path,
    cache: Path,
    paths: list[str],
    computed: list[int],
) -> None:
    featpipe.extract(photo_folder, name="set", cache=cache, **TINY)
    computed.clear()
    asked = [*paths[::-3], paths[0], paths[0]]
    X = features().transform(asked)
    assert computed == []
    stored, _ = open_features("set", "all", cache=cache)
    place = {str(photo_folder / path): i for i, path in enumerate(load_dataset(cache, "set").paths)}
    expected = np.asarray(stored)[[place[path] for path in asked]].reshape(len(asked), -1)
    assert np.array_equal(X, expected.astype(np.float32))


@pytest.mark.parametrize(
    "shape",
    [
        list,
        tuple,
        lambda p: np.array(p),
        lambda p: np.array(p)[:, None],
        lambda p: [Path(q) for q in p],
    ],
    ids=["list", "tuple", "array", "column", "Path"],
)
def test_paths_may_come_in_any_array(
    shape: Callable[[list[str]], Any], features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    expected = features().transform(paths[:4])
    assert len(np.unique(expected, axis=0)) == 4
    assert np.array_equal(features().transform(shape(paths[:4])), expected)


def test_a_pipeline_learns_and_predicts(
    features: Callable[..., CachedFeatures], paths: list[str], labels: list[str]
) -> None:
    pipeline = make_pipeline(features(pool="avg"), LogisticRegression())
    pipeline.fit(paths[::2], labels[::2])
    assert pipeline.score(paths[1::2], labels[1::2]) == 1.0
    # Stateless: one that was never fitted transforms all the same.
    assert features().transform(paths[:1]).shape == (1, 4096)


def test_a_search_over_c_computes_each_picture_once(
    features: Callable[..., CachedFeatures],
    paths: list[str],
    labels: list[str],
    computed: list[int],
) -> None:
    pipeline = make_pipeline(features(pool="avg"), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.01, 1.0, 100.0]}, cv=3)
    search.fit(paths, labels)
    assert search.best_score_ >= 0.95
    assert sum(computed) == 40


def test_a_search_over_pool_computes_each_picture_once_per_space(
    features: Callable[..., CachedFeatures],
    paths: list[str],
    labels: list[str],
    computed: list[int],
) -> None:
    pipeline = make_pipeline(features(), LogisticRegression())
    grid = {"cachedfeatures__pool": ["avg", "max"], "logisticregression__C": [0.1, 1.0]}
    GridSearchCV(pipeline, grid, cv=2, refit=False, error_score="raise").fit(paths, labels)
    assert sum(computed) == 80


def test_a_clone_is_the_same_but_not_the_very_one(
    features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    first = features(pool="max")
    other = clone(first)
    assert other is not first and other.get_params() == first.get_params()
    assert np.array_equal(other.transform(paths[:2]), first.transform(paths[:2]))


def test_parameters_are_set_and_got(features: Callable[..., CachedFeatures], cache: Path) -> None:
    step = features()
    assert step.get_params() == {
        "cache": cache,
        "channels": None,
        "max_pixels": None,
        "backbone": None,
        "pool": None,
        "decoder": None,
        "dtype": None,
        **TINY,
    }
    assert step.set_params(pool="avg", size=32) is step
    assert (step.pool, step.size) == ("avg", 32)
    assert step.get_params()["tap"] == "block1_pool"
    with pytest.raises(ValueError, match="Invalid parameter 'pools'"):
        step.set_params(pools="avg")
    assert repr(CachedFeatures(tap="block1_pool")) == "CachedFeatures(tap='block1_pool')"


def test_what_is_not_given_is_the_commands_default(cache: Path, tmp_path: Path) -> None:
    assert set(CachedFeatures().get_params().values()) == {None}


@pytest.mark.parametrize("data", [b"no picture", None], ids=["broken", "gone"])
def test_an_unreadable_picture_is_named(
    data: bytes | None,
    features: Callable[..., CachedFeatures],
    paths: list[str],
    tmp_path: Path,
) -> None:
    bad = tmp_path / "bad.png"
    if data is not None:
        bad.write_bytes(data)
    with pytest.raises(DataError, match=r"readable pictures, found '.*bad\.png' \((open|read): "):
        features().transform([paths[0], str(bad), paths[1]])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"pool": "mean"}, "--pool to be one of none, avg, max, cls, found 'mean'"),
        ({"size": "large"}, "whole number for --size"),
        ({"batch_size": 0}, "--batch-size of at least 1"),
        ({"dtype": "int8"}, "--dtype to be one of float16, float32"),
    ],
)
def test_bad_options_are_refused(
    option: dict[str, Any],
    message: str,
    features: Callable[..., CachedFeatures],
    paths: list[str],
) -> None:
    with pytest.raises(UsageError, match=message):
        features(**option).transform(paths[:1])


@pytest.mark.parametrize(
    "option", [{"tap": ["block1_pool", "block2_pool"]}, {"pool": ["avg", "max"]}]
)
def test_several_taps_or_pools_are_refused(
    option: dict[str, Any], features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    with pytest.raises(UsageError):
        features(**option).transform(paths[:1])


def test_the_cache_is_found_in_the_environment(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATPIPE_CACHE", str(tmp_path / "from the environment"))
    CachedFeatures(**TINY).transform(paths[:2])
    assert list((tmp_path / "from the environment" / "spaces").glob("*/segments/*.h5"))


def test_columns_are_named_after_backbone_and_tap(
    features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    names = features().get_feature_names_out()
    assert names.dtype == object and len(names) == features().transform(paths[:1]).shape[1]
    assert names[:2].tolist() == ["vgg16-block1_pool_0", "vgg16-block1_pool_1"]
    # torchvision's name of a tap is the same tap; weights are not looked for.
    defaults = CachedFeatures(tap="features.30", pool="avg", weights="nowhere.pth")
    assert defaults.get_feature_names_out(["path"])[-1] == "vgg16-block5_pool_511"
    with pytest.raises(UsageError, match="expected one tap and one pool"):
        features(pool=["avg", "max"]).get_feature_names_out()


def test_a_data_frame_comes_out_where_it_is_asked_for(
    features: Callable[..., CachedFeatures], paths: list[str]
) -> None:
    pandas = pytest.importorskip("pandas")
    step = features(pool="avg").set_output(transform="pandas")
    pictures = pandas.Series(paths[:3], index=["a", "b", "c"])
    frame = step.fit_transform(pictures)
    assert isinstance(frame, pandas.DataFrame)
    assert frame.columns.tolist() == step.get_feature_names_out().tolist()
    assert frame.index.tolist() == ["a", "b", "c"]
    assert np.array_equal(frame.to_numpy(), features(pool="avg").transform(paths[:3]))


def test_a_pipeline_names_its_features(
    features: Callable[..., CachedFeatures], paths: list[str], labels: list[str]
) -> None:
    pipeline = make_pipeline(features(pool="max"), StandardScaler()).fit(paths, labels)
    assert pipeline.get_feature_names_out()[-1] == "vgg16-block1_pool_63"
