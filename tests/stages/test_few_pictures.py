"""Where pictures are too few or too much alike for a score to mean much, somebody says so."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run
from support.library import evaluate, extract, train_head
from support.runs import load_head
from support.samples import image_ids, in_splits, stored_set

from featpipe.reports.metrics import score
from featpipe.reports.notes import largest_error_rate, on_pictures


def notes_of(y: list[int], wrong: int = 0, classes: int = 3, ids: Any = None) -> list[str]:
    """Notes on pictures of these classes, of which the first ``wrong`` are taken for others."""
    names = [f"c{i}" for i in range(classes)]
    p = np.full((len(y), classes), 0.01)
    given = [(k + 1) % classes if i < wrong else k for i, k in enumerate(y)]
    p[np.arange(len(y)), given] = 1 - 0.01 * (classes - 1)
    ids = image_ids(*range(len(y))) if ids is None else ids
    return on_pictures(score(np.array(y), p, names), ids, bounds_error=True)


def test_classes_of_few_pictures_are_counted_and_named_fewest_first() -> None:
    assert notes_of([0] * 3 + [1] + [2] * 5, wrong=1) == [
        "2 classes have fewer than 5 pictures here (c1 1, c0 3): their scores say little"
    ]
    assert notes_of([0] * 4 + [1] * 5 + [2] * 5, wrong=1) == [
        "1 class has fewer than 5 pictures here (c0 4): its scores say little"
    ]
    assert notes_of(list(range(40)), wrong=1, classes=40) == [
        "40 classes have fewer than 5 pictures here (c0 1, c1 1, c10 1, c11 1, c12 1, …): their "
        "scores say little"
    ]
    assert notes_of([0, 1, 2] * 5, wrong=1) == []


def test_a_perfect_score_has_a_bound_of_its_error_rate() -> None:
    # 13 pictures all right with a chance of 5 %.
    assert (1 - largest_error_rate(13)) ** 13 == pytest.approx(0.05)
    assert notes_of([0] * 6 + [1] * 7, classes=2) == [
        "no mistake in 13 pictures: the error rate may still be up to 20.6 %"
    ]
    assert notes_of([0] * 5)[-1].endswith("up to 45.1 %")
    assert "no mistake in 1 picture: the error rate may still be up to 95.0 %" in notes_of([0])


def test_copies_among_the_pictures_are_counted_and_bound_nothing() -> None:
    ids = image_ids(*"abcdefgggg", *range(3))
    assert notes_of([0] * 6 + [1] * 7, classes=2, ids=ids) == [
        "3 of these 13 pictures are copies of others among them and count again",
        "no mistake in 10 different pictures: the error rate may still be up to 25.9 %",
    ]
    ids = image_ids(*"aa", *range(11))
    assert notes_of([0] * 6 + [1] * 7, wrong=1, classes=2, ids=ids) == [
        "1 of these 13 pictures is a copy of others among them and counts again"
    ]


def test_classes_without_a_picture_are_named() -> None:
    assert notes_of([0] * 6 + [2] * 6, wrong=1) == [
        "there is no picture of 'c1' here, and so no ROC-AUC"
    ]
    assert notes_of([0] * 6 + [1] * 6, wrong=1, classes=9) == [
        "there is no picture of 'c2', 'c3', 'c4', 'c5', 'c6', … (7 in all) here, and so no ROC-AUC"
    ]


def flowers(**counts: int) -> list[tuple[str, str, str]]:
    """Pictures of cat, dog and a few of tulip."""
    tulips = [(f"{s}/tulip/{i}.png", "tulip", s) for s, n in counts.items() for i in range(n)]
    return in_splits(train=20, val=6, test=6) + tulips


def test_an_evaluation_has_the_notes_of_its_pictures(cache: Path, tmp_path: Path) -> None:
    copy = {"test/cat/1.png": "same", "test/cat/0.png": "same"}
    stored_set(cache, flowers(train=3, val=1, test=1), contents=copy)
    head = train_head("set", head="logistic", cache=cache, out=tmp_path / "run").head
    found = evaluate(head, cache=cache)
    assert found.notes == [
        "1 class has fewer than 5 pictures here (tulip 1): its scores say little",
        "1 of these 13 pictures is a copy of others among them and counts again",
        "no mistake in 12 different pictures: the error rate may still be up to 22.1 %",
    ]
    assert json.loads((head / "metrics.json").read_text())["notes"] == found.notes


@pytest.mark.parametrize(("split", "bounded"), [("val", True), ("train", False), ("all", False)])
def test_no_bound_is_told_of_pictures_that_were_trained_on(
    split: str, bounded: bool, cache: Path, tmp_path: Path
) -> None:
    stored_set(cache, in_splits(train=20, val=6, test=6))
    head = train_head("set", head="logistic", cache=cache, out=tmp_path / "run").head
    found = evaluate(head, cache=cache, split=split)
    assert found.metrics["accuracy"] == 1
    assert any("the error rate may" in note for note in found.notes) == bounded


FEW = (
    "val has fewer than 3 pictures of 'tulip': chance has a part in what it chooses; add pictures "
    "of it, or let folds of train choose, with --head logistic --folds 5"
)


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, [FEW]), ({"folds": 2}, []), ({"C": 1.0}, [])],
    ids=["val", "folds", "given"],
)
def test_training_names_classes_of_few_validation_pictures(
    options: dict[str, Any],
    said: list[str],
    cache: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored_set(cache, flowers(train=3, val=2, test=1))
    with caplog.at_level(logging.WARNING, "featpipe"):
        train_head("set", head="logistic", cache=cache, out=tmp_path / "run", **options)
    found = [record.getMessage() for record in caplog.records]
    assert [text for text in found if text.startswith("val has")] == said


@pytest.mark.parametrize(
    ("split", "told"), [("given", "given"), ([0.7, 0.07, 0.23], "7 % of all, by content")]
)
def test_a_head_tells_a_given_validation_split_from_one_by_content(
    split: Any, told: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = stored_set(cache, in_splits(train=20, val=6))
    dataset.info.split = split
    monkeypatch.setattr("featpipe.stages.train.load_dataset", lambda cache, name: dataset)
    head = train_head("set", head="logistic", C=1.0, cache=cache, out=tmp_path / "run").head
    assert load_head(head).dataset["val"] == told


def test_calibration_that_changes_nothing_is_told_once(inside: Run, workspace: Path) -> None:
    done = inside(
        *("train-head", "colours", "--cache", workspace / "cache", "--head", "logistic"),
        *("--calibrate", "--out", "run"),
    )
    assert "the probabilities stay as they are" in done.stderr
    assert "calibrated" not in done.stdout and done.stdout.endswith("  run\n")


RECIPE = """
[dataset]
name = "colours"
data = "photos"
[extract]
weights = "random:0"
tap = "block1_pool"
size = 16
resize = "squash"
precision = "fp32"
device = "cpu"
[evaluate]
split = "val"
[[head]]
kind = "linear"
epochs = 2
[[head]]
kind = "logistic"
[[head]]
kind = "logistic"
C = 1.0
"""


def test_a_recipe_says_for_which_heads_a_note_is(
    inside: Run, tmp_path: Path, photo_folder: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = inside("run", "recipe.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for line in (
        "  linear: these pictures chose the epoch: the scores are somewhat too high",
        "  2-logistic: these pictures chose C: the scores are somewhat too high",
        "  3-logistic: the head was validated with these pictures, but they chose nothing of it",
    ):
        assert line in lines


def test_results_are_short_to_print(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=20, val=6, test=6))
    head = train_head("set", head="linear", cache=cache, out=tmp_path / "run", epochs=20).head
    assert len(repr(load_head(head))) < 1500
    assert len(repr(evaluate(head, cache=cache))) < 700


def test_an_extraction_is_short_to_print(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    assert len(repr(extract(photo_folder, name="set", cache=cache, **tiny))) < 400
