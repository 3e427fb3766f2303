"""Evaluation takes the split there is, and says which and what the scores are worth."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.library import evaluate, train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

from featpipe.base.errors import NotFoundError
from featpipe.integrations.arrays import open_features
from featpipe.reports.notes import on_own_pictures
from featpipe.stages.evaluate import Evaluation

NO_TEST = "'set' has no labelled test split, so val is evaluated"
CHOSE_C = "these pictures chose C: the scores are somewhat too high"
NO_MISTAKE = "no mistake in 10 pictures: the error rate may still be up to 25.9 %"
CHOSE_EPOCH = "these pictures chose the epoch: the scores are somewhat too high"

Train = Callable[..., Path]


def of_split(found: Evaluation) -> list[str]:
    """Notes on the evaluated split; none of how few mistakes there are in it."""
    return [note for note in found.notes if not note.startswith("no mistake in ")]


@pytest.fixture
def head(cache: Path, tmp_path: Path) -> Train:
    """Train a head on ``set`` and return its run folder."""

    def go(kind: str = "logistic", **options: Any) -> Path:
        out = tmp_path / "run"
        return train_head("set", cache=cache, head=kind, out=out, device="cpu", **options).head

    return go


def test_test_is_evaluated_where_there_is_one(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=6))
    found = evaluate(head(), cache=cache)
    assert (found.split, of_split(found), found.report.name) == ("test", [], "report.html")


def test_val_is_evaluated_where_there_is_no_test(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    folder = head()
    found = evaluate(folder, cache=cache)
    assert (found.split, found.metrics["n"], found.trained_on) == ("val", 10, 10)
    assert of_split(found) == [NO_TEST, CHOSE_C]
    document = json.loads((folder / "metrics.json").read_text())
    assert (document["split"], document["notes"]) == ("val", found.notes)
    page = found.report.read_text("utf-8")
    assert found.report == folder / "report.html" and "chose C: the scores" in page
    assert "byte for byte" not in page


def test_val_is_evaluated_where_no_test_picture_has_a_label(cache: Path, head: Train) -> None:
    stored_set(cache, [*in_splits(train=20, val=5), ("test/1.png", None, "test")])
    assert evaluate(head(), cache=cache).split == "val"


def test_val_that_was_asked_for_has_files_of_its_own(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    found = evaluate(head(), cache=cache, split="val")
    assert of_split(found) == [CHOSE_C]
    assert (found.report.name, found.predictions.name) == (
        "report-set-val.html",
        "predictions-set-val.csv",
    )


def test_val_of_another_set_has_that_sets_files(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    samples = [(f"new/{path}", label, split) for path, label, split in in_splits(val=5)]
    stored_set(cache, samples, name="other")
    found = evaluate(head(), cache=cache, on="other")
    assert (found.split, found.report.name) == ("val", "report-other-val.html")
    # They chose nothing of this head.
    assert of_split(found) == [NO_TEST.replace("set'", "other'", 1)]


def test_neither_test_nor_val_is_not_found(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20))
    with pytest.raises(NotFoundError) as refused:
        evaluate(head(), cache=cache)
    assert str(refused.value) == (
        "expected a split 'test' or 'val' in data set 'set', found: train; name one of those with "
        "--split, or 'all'"
    )


@pytest.mark.parametrize(
    ("kind", "options", "note"),
    [
        ("linear", {"epochs": 2}, CHOSE_EPOCH),
        ("logistic", {}, CHOSE_C),
        (
            "logistic",
            {"C": 0.1},
            "the head was validated with these pictures, but they chose nothing of it",
        ),
        (
            "logistic",
            {"folds": 2},
            "the head was validated with these pictures, but they chose nothing of it",
        ),
        (
            "linear",
            {"epochs": 2, "sweep": True},
            "these pictures chose this head among several and the epoch: the scores are somewhat "
            "too high",
        ),
    ],
)
def test_what_validation_chose_is_said(
    kind: str, options: dict[str, Any], note: str, cache: Path, head: Train
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=5))
    assert of_split(evaluate(head(kind, **options), cache=cache, split="val")) == [note]


def test_a_temperature_was_chosen_by_validation_too(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=5))
    trained = load_head(head("linear", epochs=2))
    trained.head.temperature_ = 1.5
    assert on_own_pictures(trained, "val", 10, 10) == (
        "these pictures chose the epoch and the temperature: the scores are somewhat too high"
    )


@pytest.mark.parametrize(
    ("split", "note"),
    [
        (
            "train",
            "the head was trained on these pictures: the scores say nothing about new pictures",
        ),
        (
            "all",
            "the head was trained on or validated with 50 of these 60 pictures: the scores are "
            "too high",
        ),
    ],
)
def test_pictures_of_training_are_said_to_be(
    split: str, note: str, cache: Path, head: Train
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=5))
    assert evaluate(head(), cache=cache, split=split).notes == [note]


def test_pictures_that_came_to_val_later_chose_nothing(cache: Path, head: Train) -> None:
    stored_set(cache, in_splits(train=20, val=5))
    folder = head()
    stored_set(cache, in_splits(train=20, val=8))
    assert of_split(evaluate(folder, cache=cache)) == [
        NO_TEST,
        "10 of these 16 pictures chose C: the scores are somewhat too high",
    ]


def rows_of(path: Path) -> list[list[str]]:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


def test_every_prediction_is_written(cache: Path, head: Train) -> None:
    dataset = stored_set(cache, in_splits(train=20, val=5, test=6))
    folder = head()
    found = evaluate(folder, cache=cache)
    assert found.predictions == folder / "predictions.csv"
    assert found.as_json()["predictions"] == str(found.predictions)
    header, *rows = rows_of(found.predictions)
    assert header == ["path", "split", "truth", "prediction", "p:cat", "p:dog"]
    X, y = open_features("set", "test", cache=cache)
    probabilities = load_head(folder).head.predict_proba(X)
    assert [row[0] for row in rows] == [dataset.paths[i] for i in dataset.in_split("test")]
    assert {row[1] for row in rows} == {"test"}
    assert [row[2] for row in rows] == [dataset.classes[i] for i in y]
    assert [row[3] for row in rows] == [dataset.classes[i] for i in probabilities.argmax(axis=1)]
    assert np.array([row[4:] for row in rows], float) == pytest.approx(probabilities, rel=1e-8)


def test_predictions_of_all_splits_name_each_pictures(cache: Path, head: Train) -> None:
    stored_set(cache, [*in_splits(train=20, val=5, test=6), ("none.png", "cat", None)])
    found = evaluate(head(), cache=cache, split="all")
    _, *rows = rows_of(found.predictions)
    splits = [row[1] for row in rows]
    assert [splits.count(name) for name in ("train", "val", "test", "")] == [40, 10, 12, 1]


@pytest.mark.parametrize(
    "name", ["path", "a,b", 'say "x"', "line\nbreak", "a\rb", "caf\udce9", "猫"]
)
def test_names_come_back_from_predictions_as_they_were(name: str, cache: Path, head: Train) -> None:
    samples = [
        (f"{name} {path}", name if label == "cat" else label, split)
        for path, label, split in in_splits(train=20, val=5, test=3)
    ]
    stored_set(cache, samples, contents={path: repr(path) for path, _, _ in samples})
    header, *rows = rows_of(evaluate(head(C=1.0), cache=cache).predictions)
    assert f"p:{name}" in header and len(set(header)) == 6
    assert {tuple(row[0::2][:2]) for row in rows} == {
        (path, label) for path, label, split in samples if split == "test"
    }


@pytest.fixture
def given_folders(tmp_path: Path, photo_folder: Path) -> Path:
    """``given/{train,val}/{red,blue}``: the usual image folders without a test part."""
    for label in ("red", "blue"):
        for number, picture in enumerate(sorted((photo_folder / label).iterdir())):
            part = tmp_path / "given" / ("val" if number % 4 == 0 else "train") / label
            part.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, part / picture.name)
    return tmp_path / "given"


RECIPE = """
[dataset]
name = "given"
data = "given"
[extract]
weights = "random:0"
tap = "block1_pool"
size = 16
resize = "squash"
precision = "fp32"
device = "cpu"
[[head]]
kind = "logistic"
"""


def test_train_and_val_folders_go_all_the_way(
    inside: Run, tmp_path: Path, given_folders: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = inside("run", "recipe.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"head +val  report", lines[-5])
    assert re.fullmatch(r"logistic +100\.00%  out/1-logistic/report\.html", lines[-4])
    assert lines[-3:] == [
        f"  {NO_TEST.replace('set', 'given')}",
        f"  {CHOSE_C}",
        f"  {NO_MISTAKE}",
    ]

    text = inside("evaluate", "out/1-logistic").stdout.splitlines()
    assert text[0].endswith("on 10 pictures of given/val")
    assert text[-5:] == [
        f"  {NO_TEST.replace('set', 'given')}",
        f"  {CHOSE_C}",
        f"  {NO_MISTAKE}",
        "  predictions: out/1-logistic/predictions.csv",
        "  report: out/1-logistic/report.html",
    ]
    document = json_of(inside("evaluate", "out/1-logistic", "--json"))
    assert (document["split"], document["trained_on"], document["duplicates"]) == ("val", 10, [])
    assert document["predictions"] == "out/1-logistic/predictions.csv"


@pytest.mark.parametrize(("split", "title"), [("val", "val"), ("train", "val +train")])
def test_a_recipes_table_names_the_split_that_was_evaluated(
    split: str, title: str, inside: Run, tmp_path: Path, given_folders: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(f'{RECIPE}[evaluate]\nsplit = "{split}"\n')
    lines = inside("run", "recipe.toml", "--out", "out").stdout.splitlines()
    (header,) = (line for line in lines if line.startswith("head "))
    assert re.fullmatch(rf"head +{title}  report", header)
