"""Training reads rows and labels of train and val: no picture, no backbone, no test split."""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from support.heads import MAP_KINDS, ROW_KINDS, STAGE_KINDS, space_for
from support.library import extract, train_head
from support.runs import load_head
from support.samples import in_splits, small_space, stored_set

import featpipe
from featpipe.backbones import network
from featpipe.base.errors import DamageError, DataError, NotFoundError, UsageError
from featpipe.datasets.files import load_dataset
from featpipe.datasets.training_split import training_rows
from featpipe.decoding import pool as pool_module
from featpipe.engine import extractor as runner
from featpipe.specs.head_params import HEAD_KINDS, check_params
from featpipe.specs.heads import HeadSpec
from featpipe.stages.train import TrainResult
from featpipe.store.feature_store import FeatureStore

QUICK: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 0.02, "epochs": 15, "batch_size": 16},
    "mlp": {"learning_rate": 0.02, "epochs": 15, "batch_size": 16, "hidden": 16},
    "logistic": {},
    "knn": {},
    **{kind: {"epochs": 6, "learning_rate": 0.003} for kind in MAP_KINDS},
}

_opened: list[str] | None = None


@functools.cache
def listen() -> None:
    """Have the interpreter itself report every open; such a hook cannot be taken out again."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and _opened is not None:
            _opened.append(str(arguments[0]))

    sys.addaudithook(hook)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path the process opens from here on, by whatever call."""
    listen()
    found: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "_opened", found)
    return found


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Train a head on the data set ``set`` into ``tmp_path/run``, quickly."""

    def go(name: str = "set", head: str = "logistic", **options: Any) -> TrainResult:
        params = {**QUICK[head], **options.pop("params", {})}
        options = {"out": tmp_path / "run", "overwrite": True, "device": "cpu", **options}
        return train_head(name, cache=cache, head=head, params=params, **options)

    return go


def test_three_heads_one_after_another_open_no_picture_and_build_no_backbone(
    photo_folder: Path,
    cache: Path,
    tiny: dict[str, Any],
    train: Callable[..., TrainResult],
    tmp_path: Path,
    opened: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract(photo_folder, name="set", cache=cache, **tiny)

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("training touched a picture or the backbone")

    monkeypatch.setattr(PIL.Image, "open", refuse)
    monkeypatch.setattr(pool_module.DecodePool, "__init__", refuse)
    monkeypatch.setattr(network.Network, "__init__", refuse)
    monkeypatch.setattr(runner.Extractor, "run", refuse)
    opened.clear()
    for kind in ROW_KINDS:
        result = train(head=kind, out=tmp_path / "runs" / kind)
        assert result.val["accuracy"] == 1.0
    assert any(path.endswith(".h5") for path in opened), "the listener heard nothing"
    touched = [p for p in opened if p.startswith(str(photo_folder)) or p.endswith(".png")]
    assert touched == []
    # Nor is any needed: the rows are enough.
    shutil.rmtree(photo_folder)
    again = train(head="linear")
    first = load_head(tmp_path / "runs" / "linear").head.tensors()
    for name, tensor in load_head(again.head).head.tensors().items():
        assert tensor.tobytes() == first[name].tobytes()


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_trained_head_is_described_and_can_be_loaded(
    kind: str, cache: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    dataset = stored_set(cache, in_splits(train=20, val=8, test=5), spaces=[space_for(kind)])
    result = train(head=kind, seed=3)
    assert result.head == tmp_path / "run"
    assert (result.kind, result.classes) == (kind, ["cat", "dog"])
    assert result.space == space_for(kind).id
    assert (result.train["n"], result.val["n"]) == (40, 16)
    assert result.val["accuracy"] >= 0.9
    document = json.loads(json.dumps(result.as_json()))
    assert document["head"] == str(tmp_path / "run")
    assert set(document) >= {"kind", "classes", "train", "val", "seconds"}
    loaded = load_head(result.head)
    assert loaded.history.rows[loaded.history.best] == result.best
    assert result.val["loss"] == result.best.val_loss
    assert loaded.space == space_for(kind) and loaded.weights_name == "random:0"
    assert loaded.dataset["sha256"] == dataset.digest()
    assert loaded.dataset["val"] == "given"
    assert loaded.info["seed"] == 3 and loaded.info["torch"] == torch.__version__.split("+")[0]
    assert len(loaded.train_ids) == 56


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_one_seed_gives_the_same_files(
    kind: str, cache: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=20, val=8), spaces=[space_for(kind)])
    runs = {
        name: train(head=kind, seed=seed, out=tmp_path / name).head / "head.safetensors"
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    same = runs["a"].read_bytes()
    assert runs["b"].read_bytes() == same
    # Neither Newton's method nor a vote of neighbours draws numbers.
    assert (runs["c"].read_bytes() == same) == (kind in ("logistic", "knn"))


def test_test_rows_are_never_read(
    cache: Path, train: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored_set(cache, in_splits(train=10, val=5, test=7))
    read: list[bytes] = []
    real = FeatureStore.rows

    def watched(store: FeatureStore, ids: np.ndarray) -> Any:
        read.extend(row.tobytes() for row in ids)
        return real(store, ids)

    monkeypatch.setattr(FeatureStore, "rows", watched)
    train()
    wanted = np.concatenate([dataset.in_split("train"), dataset.in_split("val")])
    assert sorted(read) == sorted(dataset.image_sha256[i].tobytes() for i in wanted)


def test_other_test_pictures_change_no_bit(
    cache: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    heads = []
    for n in (4, 9):
        stored_set(cache, in_splits(train=10, test=n), name=f"set{n}")
        heads.append(train(f"set{n}", "linear", out=tmp_path / str(n)).head)
    assert len({(head / "head.safetensors").read_bytes() for head in heads}) == 1


def test_validation_is_set_aside_by_content(cache: Path, train: Callable[..., TrainResult]) -> None:
    dataset = stored_set(cache, in_splits(train=100, test=20))
    rows, val = training_rows(dataset, 0.2)
    assert not set(rows) & set(val)
    assert set(rows) | set(val) == set(dataset.in_split("train"))
    assert 20 <= len(val) <= 60
    assert set(dataset.label[val]) == {0, 1}
    result = train()
    assert (result.train["n"], result.val["n"]) == (len(rows), len(val))
    assert load_head(result.head).dataset["val"] == "0.2 of train, by content"
    wider = training_rows(dataset, 0.5)[1]
    assert set(val) < set(wider)


def test_what_is_set_aside_is_stable_as_the_data_grow(cache: Path) -> None:
    few, many = in_splits(train=40, test=5), in_splits(train=80, test=9)

    def set_aside(samples: list[tuple[str, str, str]], name: str) -> set[str]:
        dataset = stored_set(cache, samples, name=name)
        return {dataset.paths[i] for i in training_rows(dataset, 0.2)[1]}

    before = set_aside(few, "few")
    after = set_aside(many[::-1], "many")
    assert before and before == after & {path for path, _, _ in few}


def test_duplicates_are_not_straddled(cache: Path) -> None:
    samples = in_splits(train=60, test=5)
    contents = {path: path.replace("1", "0") for path, _, _ in samples}
    dataset = stored_set(cache, samples, contents=contents)
    rows, val = training_rows(dataset, 0.3)
    ids = [{dataset.image_sha256[i].tobytes() for i in part} for part in (rows, val)]
    assert len(ids[0] | ids[1]) < len(rows) + len(val), "no duplicates: nothing was tested"
    assert not ids[0] & ids[1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(
    share: float, cache: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=10, test=5))
    with pytest.raises(UsageError, match="expected --val above 0 and below 1, found"):
        train(val=share)


def test_a_given_validation_split_is_used(cache: Path, train: Callable[..., TrainResult]) -> None:
    dataset = stored_set(cache, in_splits(train=10, val=3, test=5))
    rows, val = training_rows(dataset, 0.2)
    assert np.array_equal(rows, dataset.in_split("train"))
    assert np.array_equal(val, dataset.in_split("val"))
    assert train().val["n"] == 6


def test_one_class_is_not_enough(cache: Path, train: Callable[..., TrainResult]) -> None:
    stored_set(cache, [s for s in in_splits(train=10, val=5) if s[1] == "cat"])
    with pytest.raises(DataError, match=r"at least two classes in the train split .* found 'cat'"):
        train()


def test_one_class_in_train_is_not_enough(cache: Path, train: Callable[..., TrainResult]) -> None:
    samples = [s for s in in_splits(train=10, val=5) if s[1:] != ("dog", "train")]
    stored_set(cache, samples)
    with pytest.raises(DataError, match="at least two classes in the train split"):
        train()


def test_unlabelled_data_cannot_be_trained_on(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, [(f"{i}.png", None, None) for i in range(10)])
    with pytest.raises(DataError, match="expected labelled pictures in data set 'set', found none"):
        train()


def test_unlabelled_pictures_are_left_out(cache: Path, train: Callable[..., TrainResult]) -> None:
    bare = [(f"train/{i}.png", None, "train") for i in range(7)]
    stored_set(cache, in_splits(train=10, val=5) + bare)
    result = train()
    assert result.train["n"] == 20 and result.classes == ["cat", "dog"]


def test_a_class_missing_in_train_is_no_class_of_the_head(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    # It sorts before the others, so their numbers are not the data set's.
    strangers = [(f"val/ant/{i}.png", "ant", "val") for i in range(4)]
    stored_set(cache, in_splits(train=20, val=5) + strangers)
    result = train()
    assert result.classes == ["cat", "dog"]
    assert result.val["n"] == 10
    assert result.val["accuracy"] >= 0.9


def test_a_class_missing_in_val_is_learned_all_the_same(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    strangers = [(f"train/ant/{i}.png", "ant", "train") for i in range(20)]
    stored_set(cache, in_splits(train=20, val=5) + strangers)
    result = train()
    assert result.classes == ["ant", "cat", "dog"]
    assert result.train["n"] == 60 and result.val["accuracy"] >= 0.9


def test_a_validation_split_of_strangers_alone_is_refused(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    strangers = [(f"val/ant/{i}.png", "ant", "val") for i in range(4)]
    stored_set(cache, in_splits(train=20) + strangers)
    with pytest.raises(DataError, match=r"to validate with .* found too few"):
        train()


def test_too_few_pictures_to_validate_with_is_said(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    contents = {f"train/{label}/{i}.png": label for label in ("cat", "dog") for i in range(5)}
    stored_set(cache, in_splits(train=5, test=2), contents=contents)
    with pytest.raises(DataError, match="at least two different ones per class"):
        train(val=1e-6)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_damaged_row_is_refused(
    kind: str, cache: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=10, val=5), spaces=[space_for(kind)])
    store = FeatureStore(cache, space_for(kind))
    (segment,) = store.segments_folder.glob("*.h5")
    data = bytearray(segment.read_bytes())
    dataset = load_dataset(cache, "set")
    row = np.asarray(store.rows(dataset.image_sha256[:1])[0])
    data[data.index(row.tobytes())] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    with pytest.raises(DamageError, match="the row is damaged; run 'featpipe cache verify'"):
        train(head=kind)
    assert not (tmp_path / "run").exists()


def test_rows_that_are_gone_are_not_found(cache: Path, train: Callable[..., TrainResult]) -> None:
    stored_set(cache, in_splits(train=10, val=5))
    for path in FeatureStore(cache, small_space()).segments_folder.glob("*.h5"):
        path.unlink()
    with pytest.raises(NotFoundError, match="30 missing; run the same 'featpipe extract' again"):
        train()


def test_a_folder_that_holds_a_head_is_kept_unless_told_otherwise(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=10, val=5))
    first = train(overwrite=False)
    before = {path.name: path.read_bytes() for path in first.head.iterdir()}
    with pytest.raises(UsageError, match="replace it with --overwrite"):
        train(overwrite=False, params={"C": 1.0})
    assert {path.name: path.read_bytes() for path in first.head.iterdir()} == before
    train(overwrite=True, params={"C": 1.0})
    assert load_head(first.head).head.params["C"] == 1.0


def test_a_folder_without_a_head_is_used(
    cache: Path, tmp_path: Path, train: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=10, val=5))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(overwrite=False)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_runs_are_numbered(
    cache: Path,
    tmp_path: Path,
    train: Callable[..., TrainResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored_set(cache, in_splits(train=10, val=5))
    monkeypatch.chdir(tmp_path)
    heads = [train(out=None).head for _ in range(2)] + [train(head="linear", out=None).head]
    assert [str(head) for head in heads] == [
        "runs/set-logistic-1",
        "runs/set-logistic-2",
        "runs/set-linear-1",
    ]


def test_a_failed_training_leaves_no_run_behind(
    cache: Path,
    tmp_path: Path,
    train: Callable[..., TrainResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored_set(cache, [s for s in in_splits(train=10, val=5) if s[1] == "cat"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        train(out=None)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int, cache: Path) -> None:
    with pytest.raises(UsageError, match=f"expected --seed of 0 to 4294967295, found {seed}"):
        train_head("set", cache=cache, seed=seed)


def test_bad_options_are_refused_before_anything_is_read(
    cache: Path, train: Callable[..., TrainResult]
) -> None:
    # There is not even a data set: the options are looked at first.
    with pytest.raises(
        UsageError, match=r"--head to be one of linear, .* or package\.module:factory, found 'svm'"
    ):
        train_head("set", cache=cache, head="svm")
    with pytest.raises(UsageError, match="expected --epochs of at least 1"):
        train(head="linear", params={"epochs": 0})
    with pytest.raises(NotFoundError, match="data set 'set'"):
        train()


def test_tap_and_pool_choose_the_space(cache: Path, train: Callable[..., TrainResult]) -> None:
    spaces = [small_space(), small_space(tap="block2_pool", pooling="none", shape=(2, 3, 3))]
    stored_set(cache, in_splits(train=20, val=5), spaces=spaces)
    with pytest.raises(UsageError, match=r"differ in --tap \(.*\), --pool \("):
        train()
    result = train(tap="block2_pool")
    assert result.space == spaces[1].id
    assert load_head(result.head).head.mean_.shape == (18,)
    assert train(pool="avg").space == spaces[0].id


def test_progress_hears_of_every_epoch(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    heard: list[Any] = []

    class Bar:
        def __init__(self, what: str, total: int) -> None:
            heard.append((what, total))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            heard.append("end")

        def advance(self, steps: int = 1, **notes: object) -> None:
            heard.append((steps, notes))

    result = train_head(
        "set",
        cache=cache,
        params={"epochs": 3},
        device="cpu",
        out=tmp_path / "run",
        progress=Bar,
    )
    losses = [row.val_loss for row in load_head(result.head).history.rows]
    assert heard == [
        ("train linear", 3),
        *((1, {"val_loss": f"{loss:.4f}"}) for loss in losses),
        "end",
    ]


def test_only_given_hyper_parameters_are_passed_on() -> None:
    given = {"head": "mlp", "hidden": 5, "dropout": None}
    assert HeadSpec.from_options(given).params == {"hidden": 5}
    with pytest.raises(
        UsageError, match=r"hyper-parameters of 'logistic' \(.*C, .*max_iter.*\), found "
    ):
        check_params("logistic", {"batch_size": 5})


def test_the_python_api_trains_by_keywords(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=20, test=5))
    result = featpipe.train_head(
        "set", head="mlp", hidden=5, epochs=2, val=0.4, cache=str(cache), out=str(tmp_path / "run")
    )
    assert load_head(result.head).head.params["hidden"] == 5
    assert load_head(result.head).dataset["val"] == "0.4 of train, by content"
    with pytest.raises(
        UsageError, match=r"hyper-parameters of 'mlp' \(.*, hidden, .*found 'hiden'"
    ):
        featpipe.train_head("set", head="mlp", hiden=5, cache=cache)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_photographs_of_dogs_and_cats_are_told_apart(
    shared: Path, cache: Path, tmp_path: Path
) -> None:
    options = {
        "name": "dogscats",
        "weights": str(shared / "weights" / "vgg16_imagenet1k_v1_features.safetensors"),
        "size": 180,
        "resize": "squash",
        "tap": "block5_pool",
        "cache": cache,
    }
    photographs = shared / "data" / "dogscats"
    first = featpipe.extract(photographs, **options)
    assert first.quarantined == 0 and first.computed + first.duplicates == first.images
    again = featpipe.extract(photographs, **options)
    assert again.computed == 0 and again.reused == first.computed
    accuracy = {}
    for kind in ROW_KINDS:
        trained = featpipe.train_head("dogscats", head=kind, cache=cache, out=tmp_path / kind)
        accuracy[kind] = featpipe.evaluate(trained.head, cache=cache).metrics["accuracy"]
    # Neighbours are compared as they are: nothing is learned.
    assert accuracy.pop("knn") >= 0.97
    assert min(accuracy.values()) >= 0.985, accuracy
