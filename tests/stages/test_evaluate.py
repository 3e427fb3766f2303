"""Evaluation scores a head on pictures it has not seen, and says so where it has."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.library import evaluate, extract, train_head
from support.runs import load_head
from support.samples import class_picture, in_splits, small_space, stored_set

import featpipe
from featpipe.base.errors import DataError, NotFoundError, SpaceMismatchError, UsageError
from featpipe.datasets.files import load_dataset
from featpipe.integrations.arrays import open_features
from featpipe.stages.evaluate import Evaluation

KEYS = (
    "head dataset split n accuracy accuracy_ci95 balanced_accuracy macro_f1 baseline_accuracy "
    "log_loss ece roc_auc per_class confusion calibration duplicates trained_on notes predictions "
    "report seconds tta"
).split()


@pytest.fixture
def head(cache: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train a logistic head on a data set and return its run folder."""

    def go(name: str = "set", **options: Any) -> Path:
        out = tmp_path / f"run-{name}"
        options = {"head": "logistic", "params": {"C": 0.1}, "out": out, **options}
        return train_head(name, cache=cache, device="cpu", **options).head

    return go


def picture_folders(root: Path, **counts: int) -> Path:
    """``root/SPLIT/{blue,red}/N.png``, all pictures different."""
    for number, (split, count) in enumerate(counts.items()):
        for label, channel in (("red", 0), ("blue", 2)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                class_picture(channel, 1000 * number + i).save(folder / f"{i}.png")
    return root


def extracted(folder: Path, cache: Path, tiny: dict[str, Any], name: str = "set") -> None:
    extract(folder, name=name, cache=cache, **tiny)


def test_scores_are_those_of_the_test_split(cache: Path, head: Callable[..., Path]) -> None:
    dataset = stored_set(cache, in_splits(train=20, val=5, test=30))
    folder = head()
    found = evaluate(folder, cache=cache)
    rows = dataset.in_split("test")
    assert (found.dataset, found.split, found.metrics["n"]) == ("set", "test", 60)
    X, y = open_features("set", "test", cache=cache)
    predicted = load_head(folder).head.predict_proba(X).argmax(axis=1)
    assert found.metrics["accuracy"] == (predicted == y).mean()
    assert np.sum(found.metrics["confusion"]) == len(rows)
    assert found.metrics["accuracy"] >= 0.95
    assert found.duplicates == []


def test_metrics_and_report_are_written_beside_the_head(
    cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    folder = head()
    found = evaluate(folder, cache=cache)
    document = json.loads((folder / "metrics.json").read_text("ascii"))
    assert document.pop("schema") == 1
    assert document.pop("head_sha256") == json.loads((folder / "head.json").read_text())["sha256"]
    assert set(document) == set(KEYS)
    assert document == found.as_json()
    assert Path(document["report"]) == found.report == folder / "report.html"
    assert document["head"] == str(folder)
    page = found.report.read_text("utf-8")
    assert f"{found.metrics['accuracy']:.1%}" in page and "60 pictures" in page
    names = "head.json head.safetensors metrics.json predictions.csv report.html".split()
    assert sorted(path.name for path in folder.iterdir()) == names


def test_evaluating_twice_gives_the_same_numbers(cache: Path, head: Callable[..., Path]) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    folder = head()
    first = evaluate(folder, cache=cache)
    page = first.report.read_bytes()
    again = evaluate(folder / "head.json", cache=cache)
    assert dataclasses.replace(again, seconds=first.seconds) == first
    assert again.report.read_bytes() == page


def test_other_splits_and_sets_have_files_of_their_own(
    cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    stored_set(cache, in_splits(test=7), name="other")
    folder = head()
    results: list[Evaluation] = [
        evaluate(folder, cache=cache),
        evaluate(folder, cache=cache, split="val"),
        evaluate(folder, cache=cache, on="other"),
        evaluate(folder, cache=cache, split="all"),
    ]
    assert [result.metrics["n"] for result in results] == [60, 10, 14, 110]
    assert len({result.report for result in results}) == 4
    for result in results:
        assert result.report.exists()
        path = result.report.with_name(result.report.stem.replace("report", "metrics") + ".json")
        assert json.loads(path.read_text())["n"] == result.metrics["n"]


def test_duplicates_between_given_folders_are_named(
    tmp_path: Path, cache: Path, tiny: dict[str, Any], head: Callable[..., Path]
) -> None:
    folder = picture_folders(tmp_path / "photos", train=15, test=6)
    shutil.copy(folder / "train" / "red" / "3.png", folder / "test" / "red" / "copy of 3.png")
    shutil.copy(folder / "train" / "blue" / "1.png", folder / "test" / "blue" / "1.png")
    extracted(folder, cache, tiny)
    found = evaluate(head(), cache=cache)
    assert found.duplicates == ["test/blue/1.png", "test/red/copy of 3.png"]
    assert found.metrics["n"] == 13
    assert "2 of these pictures were also trained on" in found.report.read_text("utf-8")


def test_duplicates_of_validation_pictures_are_named_too(
    cache: Path, head: Callable[..., Path]
) -> None:
    # The state was chosen by them.
    contents = {"test/cat/0.png": "val/cat/2.png"}
    stored_set(cache, in_splits(train=20, val=5, test=5), contents=contents)
    assert evaluate(head(), cache=cache).duplicates == ["test/cat/0.png"]


def test_duplicates_are_known_after_the_data_set_is_gone(
    cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    folder = head()
    (cache / "datasets" / "set.h5").unlink()
    contents = {"test/cat/1.png": "train/cat/1.png"}
    stored_set(cache, in_splits(test=5), name="other", contents=contents)
    assert evaluate(folder, cache=cache, on="other").duplicates == ["test/cat/1.png"]


@pytest.mark.parametrize("split", ["all", "train"])
def test_duplicates_in_any_split_of_another_set_are_named(
    split: str, cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    samples = [(f"new/{path}", label, part) for path, label, part in in_splits(train=5)]
    contents = {"new/train/cat/1.png": "train/cat/1.png"}
    stored_set(cache, samples, name="other", contents=contents)
    found = evaluate(head(), cache=cache, on="other", split=split)
    assert found.duplicates == ["new/train/cat/1.png"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"precision": "bf16"}, "precision: fp32, not bf16"),
        (
            {"preprocessing": dataclasses.replace(small_space().preprocessing, size=32)},
            "preprocessing.size: 8, not 32",
        ),
        ({"weights": "cd" * 32}, "weights: abababababab…, not cdcdcdcdcdcd…"),
        ({"tap": "block5_pool", "pooling": "max"}, "tap: block1_pool, not block5_pool"),
    ],
)
def test_features_of_another_space_are_refused(
    change: dict[str, Any], field: str, cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=5))
    # The same rows, the same shape: only the space tells them apart.
    stored_set(cache, in_splits(test=5), name="other", spaces=[small_space(**change)])
    with pytest.raises(SpaceMismatchError) as refused:
        evaluate(head(), cache=cache, on="other")
    assert field in str(refused.value)
    assert refused.value.exit_code == 12
    assert "featpipe extract pretended --name other --weights random:0 " in str(refused.value)


def test_a_set_that_has_the_heads_space_among_others_is_scored_in_it(
    cache: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=5))
    spaces = [small_space(precision="bf16"), small_space()]
    stored_set(cache, in_splits(test=5), name="other", spaces=spaces)
    assert evaluate(head(), cache=cache, on="other").metrics["n"] == 10


def test_a_class_the_head_does_not_know_is_refused(cache: Path, head: Callable[..., Path]) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    stored_set(cache, [*in_splits(test=5), ("emu.png", "emu", "test")], name="other")
    with pytest.raises(DataError, match=r"the head knows \('cat', 'dog'\) .* found 'emu'; train"):
        evaluate(head(), cache=cache, on="other")


def test_classes_are_matched_by_name_not_by_number(cache: Path, head: Callable[..., Path]) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=10))
    folder = head()
    # 'ant' has no picture here, but it comes first: cat is now number one.
    dataset = stored_set(cache, in_splits(test=10), name="other", classes=["ant"])
    assert dataset.classes == ["ant", "cat", "dog"]
    shutil.rmtree(cache / "spaces")
    stored_set(cache, in_splits(train=20, val=5, test=10))
    expected = evaluate(folder, cache=cache).metrics
    found = evaluate(folder, cache=cache, on="other").metrics
    assert found["confusion"] == expected["confusion"]
    assert found["accuracy"] >= 0.9


def test_a_split_with_one_class_is_scored(cache: Path, head: Callable[..., Path]) -> None:
    samples = [s for s in in_splits(train=20, val=5, test=10) if s[1:] != ("dog", "test")]
    stored_set(cache, samples)
    found = evaluate(head(), cache=cache)
    assert found.metrics["roc_auc"] is None
    assert found.metrics["per_class"][1]["support"] == 0


def test_a_missing_split_is_named_with_those_found(cache: Path, head: Callable[..., Path]) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    folder = head()
    with pytest.raises(NotFoundError, match=r"a split 'test' in data set 'set', found: train, val"):
        evaluate(folder, cache=cache, split="test")
    with pytest.raises(NotFoundError, match=r"a data set 'nowhere' .*, found: set"):
        evaluate(folder, cache=cache, on="nowhere")
    assert not (folder / "metrics.json").exists()


def test_no_head_is_not_found(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="expected a head"):
        evaluate(tmp_path, cache=cache)


def test_unlabelled_pictures_cannot_be_scored(cache: Path, head: Callable[..., Path]) -> None:
    stored_set(cache, [*in_splits(train=20, val=5, test=3), ("test/x.png", None, "test")])
    folder = head()
    assert evaluate(folder, cache=cache).metrics["n"] == 6
    stored_set(cache, [("x.png", None, "test"), ("y.png", None, "test")], name="bare")
    with pytest.raises(DataError, match="labelled pictures in split 'test' of 'bare', found none"):
        evaluate(folder, cache=cache, on="bare")


def test_all_mistakes_are_shown_worst_first(
    tmp_path: Path, cache: Path, tiny: dict[str, Any], head: Callable[..., Path]
) -> None:
    folder = picture_folders(tmp_path / "photos", train=15, test=3)
    # Red pictures among the blue ones: all of them are mistakes.
    for i in range(15):
        class_picture(0, 9000 + i).save(folder / "test" / "blue" / f"red {i}.png")
    extracted(folder, cache, tiny)
    run = head()
    (folder / "test" / "blue" / "red 2.png").unlink()
    class_picture(0, 1).save(folder / "test" / "blue" / "red 3.png")
    found = evaluate(run, cache=cache)
    assert found.metrics["confusion"] == [[3, 15], [0, 3]]
    page = found.report.read_text("utf-8")
    assert page.count("<figure ") == 15
    dataset = load_dataset(cache, "set")
    X, _ = open_features("set", "test", cache=cache)
    truth = load_head(run).head.predict_proba(X)[:, 0]
    paths = [dataset.paths[i] for i in dataset.in_split("test")]
    worst = [paths[i] for i in np.argsort(truth) if "/red " in paths[i]]
    places = [page.index(f"<code>{path}</code>") for path in worst]
    assert places == sorted(places)
    # The two whose files are not what was scored are shown without their picture.
    assert page.count("gone or changed</div>") == 2
    assert page.count("<img ") == 13


def test_pictures_that_are_gone_can_still_be_scored(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], head: Callable[..., Path]
) -> None:
    extracted(photo_folder, cache, tiny)
    run = head()
    shutil.rmtree(photo_folder)
    assert evaluate(run, cache=cache).metrics["accuracy"] == 1.0


def test_class_names_that_are_no_text_are_evaluated(cache: Path, head: Callable[..., Path]) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    samples = [
        (path, name if label == "cat" else label, split)
        for path, label, split in in_splits(train=20, val=5, test=5)
    ]
    stored_set(cache, samples)
    assert evaluate(head(), cache=cache).metrics["n"] == 10


def test_commands_are_functions_that_chain(
    photo_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny: dict[str, Any] = {
        "weights": "random:0",
        "tap": "block1_pool",
        "size": 16,
        "resize": "squash",
        "precision": "fp32",
        "device": "cpu",
    }
    monkeypatch.setenv("FEATPIPE_CACHE", str(cache))
    result = featpipe.extract(photo_folder, name="photos", workers=1, batch_size=8, **tiny)
    assert (result.images, result.computed) == (40, 40)
    X, y = featpipe.open_features("photos", "train")
    assert X.shape == (result.splits["train"], 64, 8, 8) and set(y.tolist()) == {0, 1}
    trained = featpipe.train_head("photos", head="logistic", C=0.1, out=tmp_path / "run")
    found = featpipe.evaluate(trained.head)
    assert found.metrics["n"] == result.splits["test"] and found.metrics["accuracy"] == 1.0
    predictions = featpipe.predict(str(trained.head), photo_folder / "red", device="cpu")
    assert [p.label for p in predictions] == ["red"] * 20
    assert set(featpipe.__all__) <= set(dir(featpipe))
    for name in featpipe.__all__:
        assert getattr(featpipe, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = featpipe.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("wieghts", "weights"), ("taps", "tap"), ("batchsize", "batch_size"), ("resise", "resize")],
)
def test_an_unknown_keyword_names_the_nearest(
    given: str, nearest: str, photo_folder: Path, cache: Path
) -> None:
    with pytest.raises(UsageError, match=f"found '{given}'; did you mean '{nearest}'?"):
        featpipe.extract(photo_folder, name="set", cache=cache, **{given: "x"})
    assert not cache.exists()
