"""A class that a split has no picture of is said where it matters: at extraction and training."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import TINY_FLAGS, Run, json_of
from support.library import extract
from support.samples import class_picture, in_splits, stored_set

from featpipe.datasets.coverage import coverage_warnings, training_warnings
from featpipe.datasets.dataset import SPLITS, Dataset, Status
from featpipe.datasets.files import load_dataset
from featpipe.datasets.training_split import training_rows


def splits_of(dataset: Dataset, label: str) -> list[str]:
    rows = dataset.label == dataset.classes.index(label)
    return [SPLITS[k] for k in dataset.split[rows]]


def add_class(photos: Path, label: str, count: int, first: int = 0) -> None:
    (photos / label).mkdir()
    for i in range(count):
        class_picture(5, 90 + first + i).save(photos / label / f"{i}.png")


def test_the_only_picture_of_a_class_is_trained_on_and_named(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(6):
        add_class(photo_folder, f"g{n}", 1, n)
    with caplog.at_level(logging.WARNING, "featpipe"):
        extract(photo_folder, name="set", cache=cache, **tiny)
    dataset = load_dataset(cache, "set")
    assert [splits_of(dataset, f"g{n}") for n in range(6)] == [["train"]] * 6
    assert [record.getMessage() for record in caplog.records] == [
        "there is only one picture each of 'g0', 'g1', 'g2', 'g3', 'g4', … (6 in all), and it is "
        "in train: no other split can measure them; add pictures of them"
    ]


def test_a_data_set_with_a_class_of_one_picture_trains_and_evaluates(
    photo_folder: Path, inside: Run
) -> None:
    add_class(photo_folder, "gold", 1)
    inside("extract", "photos", "--name", "x", *TINY_FLAGS)
    done = inside("train-head", "x", "--out", "run", "--epochs", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "gold" in json_of(done)["classes"]
    assert "warning: val has no picture of 'gold': its scores say nothing of it\n" in done.stderr
    assert "warning: test has no picture of 'gold': its scores say nothing of it\n" in done.stderr
    done = inside("evaluate", "run", "--json")
    assert done.returncode == 0, done.stderr


def test_two_pictures_of_a_class_are_trained_on_first(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    for n in range(4):
        add_class(photo_folder, f"gold{n}", 2, 2 * n)
    extract(photo_folder, name="set", cache=cache, **tiny)
    dataset = load_dataset(cache, "set")
    for n in range(4):
        assert "train" in splits_of(dataset, f"gold{n}")
    assert any("too few pictures of 'gold" in said for said in coverage_warnings(dataset))


def test_a_part_of_a_list_is_not_judged_and_the_whole_is(photo_folder: Path, inside: Run) -> None:
    add_class(photo_folder, "gold", 1)
    for shard in ("1/2", "2/2"):
        done = inside("extract", "photos", "--name", "x", "--shard", shard, *TINY_FLAGS)
        said = "warning: there is only one picture of 'gold', and it is in train"
        assert (said in done.stderr) == (shard == "2/2"), done.stderr


def given(photos: Path, **folders: list[str]) -> None:
    """Move the class folders of ``photos`` into split folders: copies, as if they differed."""
    for split, labels in folders.items():
        for number, label in enumerate(labels):
            (photos / split / label).mkdir(parents=True)
            for i in range(4):
                seed = 20 * SPLITS.index(split) + i
                class_picture(number, seed).save(photos / split / label / f"{i}.png")
    for label in ("red", "blue"):
        shutil.rmtree(photos / label, ignore_errors=True)


def test_a_given_split_whose_train_lacks_a_class_is_warned_of(
    photo_folder: Path, inside: Run
) -> None:
    given(photo_folder, train=["a", "b"], val=["a", "b", "c"], test=["a", "b", "c", "d"])
    done = inside("extract", "photos", "--name", "x", *TINY_FLAGS)
    assert done.stderr.splitlines()[-1] == (
        "warning: train has no picture of 'c', 'd': no head will know them, and evaluate refuses "
        "a split with them; put pictures of every class into train, or leave such a class out"
    )
    done = inside("train-head", "x", "--out", "run", "--epochs", "2", "--quiet")
    assert done.returncode == 0
    assert done.stderr == (
        "warning: train has no picture of 'c', 'd': the head will not know them; put pictures of "
        "every class into train\n"
    )


def test_training_says_what_val_and_test_cannot_measure(cache: Path) -> None:
    samples = [(f"train/{label}/{i}.png", label, "train") for label in "efghijk" for i in range(3)]
    dataset = stored_set(cache, in_splits(train=5, val=3, test=2) + samples)
    train, val = training_rows(dataset, 0.2)
    names = "'e', 'f', 'g', 'h', 'i', … (7 in all)"
    assert training_warnings(dataset, train, val) == [
        f"val has no picture of {names}: its scores say nothing of them",
        f"test has no picture of {names}: its scores say nothing of them",
    ]


def test_an_old_data_set_whose_only_picture_is_in_test_tells_the_way_out(cache: Path) -> None:
    dataset = stored_set(cache, [*in_splits(train=5, val=3, test=2), ("x.png", "emu", "test")])
    dataset.info.split = [0.7, 0.15, 0.15]
    train, val = training_rows(dataset, 0.2)
    assert training_warnings(dataset, train, val) == [
        "train has no picture of 'emu': the head will not know it; extract the data set again, "
        "which puts one picture of every class there"
    ]


def test_the_only_train_picture_of_a_class_is_not_set_aside_to_validate(cache: Path) -> None:
    for n in range(10):
        lone = (f"{n}.png", "emu", "train")
        dataset = stored_set(cache, [*in_splits(train=10, test=3), lone], name=f"set{n}")
        train, val = training_rows(dataset, 0.5)
        emu = np.flatnonzero(dataset.label == dataset.classes.index("emu"))
        assert set(emu) <= set(train) and not set(emu) & set(val)


@pytest.mark.parametrize("split", ["given", [0.7, 0.15, 0.15]])
def test_a_data_set_without_a_readable_picture_has_nothing_to_warn_of(
    split: Any, cache: Path
) -> None:
    dataset = stored_set(cache, in_splits(train=1, val=1))
    dataset.info.split = split
    dataset.status[:] = Status.QUARANTINED
    assert coverage_warnings(dataset) == []


def test_whole_splits_need_no_warning(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=5, val=3, test=2))
    assert coverage_warnings(dataset) == []
    assert training_warnings(dataset, *training_rows(dataset, 0.2)) == []


def test_a_picture_under_two_labels_is_named_with_both(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    red, blue = photo_folder / "red", photo_folder / "blue"
    shutil.copy(red / "03.png", blue / "same.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        extract(photo_folder, name="set", cache=cache, **tiny)
    assert [record.getMessage() for record in caplog.records] == [
        "1 picture appears under more than one label: 'blue/same.png' as 'blue', 'red/03.png' as "
        "'red'"
    ]
    caplog.clear()
    for n in range(4):
        shutil.copy(red / f"1{n}.png", blue / f"x{n}.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        extract(photo_folder, name="set", cache=cache, **tiny)
    assert caplog.records[-1].getMessage() == (
        "5 pictures appear under more than one label: 'blue/same.png' as 'blue', 'red/03.png' as "
        "'red'; 'blue/x0.png' as 'blue', 'red/10.png' as 'red'; 'blue/x1.png' as 'blue', "
        "'red/11.png' as 'red'; …"
    )
