"""A recipe of several extractions: one data set, every row computed once, each head on its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, json_of
from support.recipes import GOOD, changed, write
from support.runs import load_head

from featpipe.base.errors import NotFoundError
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import spaces_of
from featpipe.specs.recipe import load_recipe
from featpipe.stages.recipe import RecipeResult, run_recipe

SMALL = {**GOOD["extract"], "workers": 1}
LARGE = {**SMALL, "size": 32, "pool": "avg", "tap": ["block1_pool", "block2_pool"]}
HEADS = [
    {"kind": "logistic", "size": 16, "C": 0.01},
    {"kind": "logistic", "tap": "block2_pool", "C": 0.01},
]


@pytest.fixture
def done(tmp_path: Path, photo_folder: Path, cache: Path) -> RecipeResult:
    path = write(tmp_path, changed(extract=[SMALL, LARGE], head=HEADS))
    return run_recipe(load_recipe(path), cache=cache, out=tmp_path / "out")


def test_one_data_set_has_the_features_of_all_extractions(done: RecipeResult, cache: Path) -> None:
    held = {space.id for space, _ in spaces_of(load_dataset(cache, "colours"))}
    assert held == {space.id for extracted in done.extracts for space in extracted.spaces}
    assert [len(extracted.spaces) for extracted in done.extracts] == [1, 2]
    assert [extracted.computed for extracted in done.extracts] == [40, 40]


def test_each_head_learns_from_the_features_it_chose(done: RecipeResult) -> None:
    spaces = [load_head(trained.head).space for trained, _ in done.heads]
    shown = [(space.tap, space.preprocessing.size, space.pooling) for space in spaces]
    assert shown == [("block1_pool", 16, "none"), ("block2_pool", 32, "avg")]
    assert done.comparison is not None
    assert {row["space"] for row in done.comparison.document["heads"]} == {s.id for s in spaces}


def test_no_row_is_computed_twice_and_every_extraction_is_told(
    done: RecipeResult, inside: Run, tmp_path: Path
) -> None:
    command = ("run", "recipe.toml", "--cache", "cache", "--out", "again")
    found = json_of(inside(*command, "--json"))
    assert [extracted["computed"] for extracted in found["extracts"]] == [0, 0]
    assert found["extract"] == found["extracts"][0]
    assert [len(extracted["spaces"]) for extracted in found["extracts"]] == [1, 2]
    lines = inside(*command, "--overwrite").stdout.splitlines()
    told = [
        line for line in lines if line.startswith("colours: 40 pictures: 0 computed, 40 reused")
    ]
    assert len(told) == 2
    table = lines.index("") + 1
    row = r"logistic C=0.01  vgg16 {} +100.00%  +100.00%  again/"
    assert lines[table].split() == ["head", "features", "val", "test", "report"]
    for line, features in zip(
        lines[table + 1 :], ("block1_pool none 16px", "block2_pool avg 32px"), strict=False
    ):
        assert re.match(row.format(features), line), line


def test_progress_says_which_extraction_and_which_head(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    told: list[str] = []

    class Silent:
        def advance(self, steps: int = 1, **notes: Any) -> None:
            pass

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Silent]:
        told.append(what)
        yield Silent()

    path = write(tmp_path, changed(extract=[SMALL, LARGE], head=HEADS))
    run_recipe(load_recipe(path), cache=cache, out=tmp_path / "out", progress=progress)
    assert told == [
        "extract, 1 of 2",
        "extract, 2 of 2",
        "train logistic, 1 of 2",
        "train logistic, 2 of 2",
    ]


def test_a_device_is_for_every_extraction_and_every_head(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    elsewhere = [{**table, "device": "cuda:7"} for table in (SMALL, LARGE)]
    heads = [{**head, "device": "cuda:7"} for head in HEADS]
    path = write(tmp_path, changed(extract=elsewhere, head=heads))
    run_recipe(load_recipe(path), cache=cache, out=tmp_path / "out", device="cpu")


def test_a_sweep_over_taps_has_those_of_one_extraction(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    sweep = {"kind": "logistic", "sweep": True, "tap": "all", "size": 32, "C": 0.01}
    path = write(tmp_path, changed(extract=[SMALL, LARGE], head=[sweep]))
    ((trained, _),) = run_recipe(load_recipe(path), cache=cache, out=tmp_path / "out").heads
    assert trained.sweep is not None
    assert {row["params"]["tap"] for row in trained.sweep.rows} == {"block1_pool", "block2_pool"}


def test_a_split_that_is_missing_is_said_before_a_head_is_trained(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    dataset = {**GOOD["dataset"], "split": [0.5, 0.5, 0]}
    path = write(tmp_path, changed(dataset=dataset, evaluate={"split": "test"}))
    with pytest.raises(NotFoundError, match="expected a split 'test' in data set 'colours'"):
        run_recipe(load_recipe(path), cache=cache, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_damaged_is_quarantined_in_every_extraction(
    tmp_path: Path, photo_folder: Path, inside: Run
) -> None:
    (photo_folder / "red" / "broken.png").write_bytes(b"not a picture")
    write(tmp_path, changed(extract=[SMALL, LARGE], head=HEADS[:1]))
    done = inside("run", "recipe.toml", "--json")
    assert done.returncode == 3, done.stderr
    assert [one["quarantined"] for one in json_of(done)["extracts"]] == [1, 1]
