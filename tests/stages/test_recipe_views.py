"""Heads of a recipe draw from the views that it extracts, whatever else the data set holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.recipes import GOOD, changed, refusal, write

from featpipe.cli.formatting import of_recipe
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.heads import HeadSpec
from featpipe.specs.offered_features import offers_of
from featpipe.specs.offered_views import training_views
from featpipe.specs.recipe import load_recipe
from featpipe.stages.recipe import RecipeResult, run_recipe

SMALL = {**GOOD["extract"], "workers": 1}
LINEAR = {"kind": "linear", "epochs": 3, "device": "cpu"}
LOGISTIC = {"kind": "logistic", "C": 0.01}


def extracting(**options: Any) -> dict[str, Any]:
    return {**SMALL, **options}


def test_a_recipe_draws_its_own_views_whatever_is_cached(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    def go(head: dict[str, Any] = LINEAR, **options: Any) -> RecipeResult:
        path = write(tmp_path, changed(extract=extracting(**options), head=[head, LOGISTIC]))
        out = tmp_path / "out"
        return run_recipe(load_recipe(path), cache=cache, out=out, overwrite=True)

    def drawn(head: dict[str, Any] = LINEAR, **options: Any) -> tuple[str, int, int] | None:
        views = go(head, **options).heads[0][0].views
        return None if views is None else (views["policy"], views["seed"], views["number"])

    first = {"views": 2, "augment": "standard"}
    assert drawn(**first) == ("standard", 0, 2)
    assert drawn(views=2) == ("light", 0, 2)
    assert drawn(**{**first, "views": 1}) == ("standard", 0, 1)
    assert drawn() is None
    # A head that asks for earlier views has them.
    assert drawn({**LINEAR, "augment": "standard"}) == ("standard", 0, 2)


def test_views_of_other_pictures_are_none_to_draw_from() -> None:
    for split, number in (("train", 3), ("all", 3), ("test", None)):
        spec = ExtractSpec(name="x", views=3, views_of=(split,))
        found = training_views(HeadSpec(head="linear"), [(spec, offers_of([spec]))])
        assert (found and found.number) == number


def test_a_recipe_averages_over_its_own_views(
    tmp_path: Path, photo_folder: Path, cache: Path
) -> None:
    evaluate = {"tta": True}
    for policy, number in (("light", 2), ("flip", 1)):
        table = extracting(views=number, augment=policy, views_of=["test"])
        document = changed(extract=table, head=[LINEAR, LOGISTIC], evaluate=evaluate)
        path = write(tmp_path, document)
        out = tmp_path / "out"
        done = run_recipe(load_recipe(path), cache=cache, out=out, overwrite=True)
        for _, scored in done.heads:
            assert scored.tta == {"policy": policy, "seed": 0, "views": number}
        words = f"{number} view{'s' * (number > 1)} ({policy})"
        assert f"\n  probabilities averaged over each picture and its {words}\n" in of_recipe(done)


TWO = [extracting(views=2), extracting(views=4, augment="flip")]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (
            {"extract": TWO, "head": [LINEAR]},
            "expected 'augment' in [[head]] of kind 'linear' to choose one of the views that are "
            "extracted, found 2: 4 views (flip), 2 views (light); add 'augment'",
        ),
        (
            {"extract": extracting(views=2), "head": [{**LINEAR, "augment": "flip"}]},
            "expected 'augment' and 'augment_seed' in [[head]] to fit the views that [extract] "
            "asks for, found that of kind 'linear' to fit none of: 2 views (light); leave them "
            "out, or change 'augment' in [extract]",
        ),
        (
            {"head": [LINEAR], "evaluate": {"tta": True}},
            "expected views of the evaluated split for 'tta' in [evaluate], found none of test in "
            '[extract]; add \'views\' there, with views_of = ["train", "test"], or leave out '
            "'tta'",
        ),
        (
            {
                "extract": extracting(views=2),
                "head": [LOGISTIC],
                "evaluate": {"tta": True, "split": "val"},
            },
            "expected views of the evaluated split for 'tta' in [evaluate], found none of val in "
            '[extract]; add \'views\' there, with views_of = ["train", "val"], or leave out '
            "'tta'",
        ),
        (
            {
                "extract": [{**one, "views_of": ["all"]} for one in TWO],
                "head": [LOGISTIC],
                "evaluate": {"tta": True},
            },
            "expected 'augment' in [evaluate] to choose one of the views that are extracted, found "
            "2: 4 views (flip), 2 views (light); add 'augment'",
        ),
        (
            {"evaluate": {"tta": True, "scales": [16, 22]}},
            "expected 'tta' in [evaluate] or 'scales' in [evaluate], found both; views have the "
            "size of training alone: leave out one of the two",
        ),
    ],
)
def test_views_that_a_recipe_leaves_open_or_lacks_are_refused_beforehand(
    tables: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert refusal(tmp_path, changed(**tables)) == expected


@pytest.mark.parametrize(
    "tables",
    [
        {"extract": TWO, "head": [{**LINEAR, "augment": "flip"}, LOGISTIC]},
        {"extract": TWO, "head": [{**LINEAR, "no_views": True}]},
        {"head": [{**LINEAR, "augment": "flip"}]},
        {"extract": extracting(views=1, views_of=["val"]), "evaluate": {"tta": True}},
        {"evaluate": {"tta": True, "on": "others"}},
        {"extract": extracting(views=1, views_of=["all"]), "evaluate": {"tta": True}},
    ],
)
def test_views_that_are_chosen_are_good(tables: dict[str, Any], tmp_path: Path) -> None:
    load_recipe(write(tmp_path, changed(**tables)))


def test_a_head_on_maps_is_refused_beforehand_where_there_are_none(tmp_path: Path) -> None:
    suffix = {"kind": "suffix", "epochs": 1}
    pooled = changed(extract=extracting(pool="avg"), head=[LINEAR, suffix])
    assert refusal(tmp_path, pooled) == (
        "expected features with pool = 'none' for the [[head]] of kind 'suffix', which is trained "
        "on maps, found 'avg'; change 'pool' in [extract], or choose other features by a key of "
        "that [[head]]"
    )
    both = {**suffix, "pool": "none"}
    load_recipe(write(tmp_path, changed(extract=extracting(pool=["avg", "none"]), head=[both])))


def test_a_suffix_behind_no_cut_is_refused_beforehand(tmp_path: Path) -> None:
    table = {**SMALL, "backbone": "resnet18", "tap": "layer3.0.conv1", "size": 64}
    said = refusal(tmp_path, changed(extract=table, head=[{"kind": "suffix"}]))
    assert said.startswith("expected another 'tap' in [extract] for a [[head]] of kind 'suffix': ")
