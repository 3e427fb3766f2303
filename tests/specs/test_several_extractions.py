"""A recipe may extract several kinds of features; each head chooses one by the keys it has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import GOOD, changed, refusal, write

from featpipe.specs.extract import ExtractSpec
from featpipe.specs.heads import HeadSpec
from featpipe.specs.offered_features import CHOOSING, agreed, differing, fitting, offers_of, ranging
from featpipe.specs.recipe import load_recipe

SMALL = {"weights": "random:0", "tap": "block1_pool", "size": 16}
LARGE = {"weights": "random:0", "tap": "block2_pool", "size": 32, "backbone": "vgg11"}


def both(*heads: dict[str, Any]) -> dict[str, Any]:
    """A recipe of both extractions."""
    return changed(extract=[SMALL, LARGE], head=[{"kind": "linear", **head} for head in heads])


def test_all_extractions_are_of_the_recipes_data_set(tmp_path: Path) -> None:
    dataset = {"name": "x", "data": "photos", "max_bad": 0.5, "root": "below"}
    document = {**both({"size": 16}), "dataset": dataset}
    recipe = load_recipe(write(tmp_path, document))
    common = {"name": "x", "max_bad": 0.5, "root": tmp_path / "below"}
    assert recipe.extracts == tuple(
        ExtractSpec.from_options({**common, **table}) for table in (SMALL, LARGE)
    )


@pytest.mark.parametrize(
    "keys",
    [{"size": 16}, {"tap": "block2_pool"}, {"backbone": "vgg11"}, {"space": "abcd"}],
    ids=str,
)
def test_a_key_that_only_one_extraction_has_is_enough(tmp_path: Path, keys: dict[str, Any]) -> None:
    assert load_recipe(write(tmp_path, both(keys))).heads == (HeadSpec(head="linear", **keys),)


def test_a_head_that_leaves_open_which_features_it_means_is_refused_with_the_keys(
    tmp_path: Path,
) -> None:
    assert refusal(tmp_path, both({"size": 16}, {"weights": "random:0"})) == (
        "expected keys in every [[head]] that choose one of the features that are extracted, found "
        "2 that fit the head of kind 'linear'; they differ in 'backbone' (vgg16, vgg11), 'tap' "
        "(block1_pool, block2_pool), 'size' (16, 32): add one of these keys"
    )


def test_several_taps_of_one_extraction_are_refused_in_the_same_words(tmp_path: Path) -> None:
    extract = {**SMALL, "tap": ["block1_conv1", "block1_pool"]}
    assert refusal(tmp_path, changed(extract=extract)).endswith(
        "they differ in 'tap' (block1_conv1, block1_pool): add one of these keys"
    )


def test_the_same_features_in_two_extractions_are_one_choice(tmp_path: Path) -> None:
    wider = {**SMALL, "tap": ["block1_pool", "block1_conv1"], "workers": 1}
    document = changed(extract=[SMALL, wider], head=[{"kind": "linear", "tap": "block1_pool"}])
    assert len(load_recipe(write(tmp_path, document)).heads) == 1


def test_a_sweep_over_taps_still_says_which_size(tmp_path: Path) -> None:
    sweep = {"sweep": True, "tap": "all"}
    assert "'size' (16, 32)" in refusal(tmp_path, both(sweep))
    assert "'tap'" not in refusal(tmp_path, both(sweep))
    assert load_recipe(write(tmp_path, both({**sweep, "size": 16}))).heads


def test_a_head_may_mean_features_that_no_extraction_of_the_recipe_has(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, both({"size": 224}))).heads[0].size == 224


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "expected [[extract]] tables, found []"),
        ([SMALL, 3], "expected [[extract]] tables, found [{"),
        (
            [SMALL, {"taps": "block1_pool"}],
            "expected a known key of [[extract]], found 'taps'; did you mean 'tap'?",
        ),
        (
            [SMALL, {"size": "big"}],
            "expected a whole number for 'size' in [[extract]], found 'big'",
        ),
        (
            [SMALL, LARGE, SMALL],
            "expected [[extract]] tables that differ, found number 3 to be number 1 again; leave "
            "it out",
        ),
    ],
)
def test_what_is_wrong_with_extractions_is_said(
    tmp_path: Path, tables: list[Any], message: str
) -> None:
    assert refusal(tmp_path, changed(extract=tables)).startswith(message)


def test_what_is_wrong_with_the_data_set_is_said_of_its_own_table(tmp_path: Path) -> None:
    document = {**both({"size": 16}), "dataset": {**GOOD["dataset"], "max_bad": "x"}}
    assert "'max_bad' in [dataset]" in refusal(tmp_path, document)


_TABLES = st.lists(
    st.fixed_dictionaries(
        {
            "tap": st.lists(
                st.sampled_from(["block1_pool", "block2_pool"]), min_size=1, unique=True
            ),
            "pool": st.lists(st.sampled_from(["none", "avg"]), min_size=1, unique=True),
            "size": st.sampled_from([16, 32]),
        }
    ),
    min_size=1,
    max_size=3,
)
_QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "tap": st.sampled_from(["block1_pool", "block2_pool"]),
        "pool": st.sampled_from(["none", "avg"]),
        "size": st.sampled_from([16, 32, 64]),
    },
)


@given(_TABLES, _QUERIES)
def test_what_fits_is_what_has_every_key(
    tables: list[dict[str, Any]], keys: dict[str, Any]
) -> None:
    offers = offers_of([ExtractSpec.from_options({"name": "x", **table}) for table in tables])
    assert len({json.dumps(offer) for offer in offers}) == len(offers)
    fits = fitting(HeadSpec(**keys), offers)
    assert fits == [offer for offer in offers if keys.items() <= offer.items()]
    # What all of them have, and what they differ in, is everything together.
    if fits:
        assert set(agreed(HeadSpec(**keys), fits)) | set(differing(fits)) == set(fits[0])


def test_a_query_of_several_taps_means_all_of_them() -> None:
    taps = ("block1_pool", "block2_pool", "block3_pool")
    offers = offers_of([ExtractSpec(name="x", tap=taps), ExtractSpec(name="x", size=32)])
    query: Any = SimpleNamespace(**{**dict.fromkeys(CHOOSING), "tap": taps[:2]})
    fits = fitting(query, offers)
    assert [offer["tap"] for offer in fits] == ["block1_pool", "block2_pool"]
    assert ranging(query) == {"tap"} and "tap" not in agreed(query, fits)


def test_a_precision_that_is_not_decided_yet_fits_any() -> None:
    offers = offers_of([ExtractSpec(name="x")])
    assert fitting(HeadSpec(precision="bf16"), offers) == offers
    decided = [{**offers[0], "precision": "fp32"}]
    assert fitting(HeadSpec(precision="bf16"), decided) == []
