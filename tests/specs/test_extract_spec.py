"""Options by name: the same words as flags, recipe keys and keywords, and nothing else passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.base.errors import UsageError
from featpipe.specs.extract import ExtractSpec, FeatureOptions
from featpipe.specs.fields import default_of, options_of, unknown_name
from featpipe.specs.heads import HeadSpec
from featpipe.specs.shards import Shard

WHOLE = ["batch_size", "workers", "max_pixels", "size"]


def test_no_options_mean_the_defaults() -> None:
    assert FeatureOptions.from_options({}) == FeatureOptions()


def test_none_means_the_default_for_every_option() -> None:
    everything = dict.fromkeys(FeatureOptions.option_names())
    assert FeatureOptions.from_options(everything) == FeatureOptions()


@pytest.mark.parametrize("name", FeatureOptions.option_names())
def test_every_default_passes_its_own_check(name: str) -> None:
    default = default_of(FeatureOptions, name)
    if default is not None:
        assert options_of(FeatureOptions)[name].kind.check("it", default) == default


def test_every_option_arrives_where_it_belongs() -> None:
    options: dict[str, Any] = {
        "name": "pets",
        "backbone": "vgg11",
        "weights": "random:3",
        "tap": ["block1_pool", "block2_pool"],
        "pool": ["avg"],
        "size": 32,
        "resize": "squash",
        "channels": "rgb",
        "decoder": "pillow-draft",
        "precision": "bf16",
        "dtype": "float32",
        "device": "cpu",
        "views": 4,
        "augment": "standard",
        "augment_seed": 7,
        "views_of": ["train", "test"],
        "batch_size": 5,
        "workers": 3,
        "max_pixels": 7,
        "split": [0.5, 0.25, 0.25],
        "root": "elsewhere",
        "follow_links": True,
        "max_bad": 0.5,
        "retry_quarantined": True,
        "rehash": True,
        "shard": "2/8",
    }
    assert set(options) == set(ExtractSpec.option_names())
    spec = ExtractSpec.from_options(options)
    kept = {
        "tap": ("block1_pool", "block2_pool"),
        "pool": ("avg",),
        "views_of": ("train", "test"),
        "split": (0.5, 0.25, 0.25),
        "root": Path("elsewhere"),
        "shard": Shard(2, 8),
    }
    assert {name: getattr(spec, name) for name in options} == {**options, **kept}


@pytest.mark.parametrize(("name", "value"), [("tap", "block1_pool"), ("pool", "avg")])
def test_one_name_is_a_list_of_one(name: str, value: str) -> None:
    one, several = (FeatureOptions.from_options({name: given}) for given in (value, [value]))
    assert one == several
    assert getattr(one, name) == (value,)


@pytest.mark.parametrize("name", ["batch_size", "workers"])
def test_auto_is_the_default_where_it_is_a_choice(name: str) -> None:
    assert FeatureOptions.from_options({name: "auto"}) == FeatureOptions()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", [64, "64"])
def test_whole_numbers_may_come_as_text_as_on_the_command_line(name: str, value: object) -> None:
    assert getattr(FeatureOptions.from_options({name: value}), name) == 64


@pytest.mark.parametrize("name", WHOLE)
def test_text_is_no_number_where_values_have_types(name: str) -> None:
    with pytest.raises(UsageError, match="expected a whole number"):
        FeatureOptions.from_options({name: "64"}, text=False)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("value", ["ten", "", 1.5, True, [], {}, float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        FeatureOptions.from_options({name: value})
    auto = " or 'auto'" if name in ("batch_size", "workers") else ""
    assert str(caught.value) == (
        f"expected a whole number{auto} for --{name.replace('_', '-')}, found {value!r}"
    )


@pytest.mark.parametrize("name", ["batch_size", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1])
def test_nothing_below_one_is_taken(name: str, value: int) -> None:
    with pytest.raises(UsageError) as caught:
        FeatureOptions.from_options({name: value})
    option = name.replace("_", "-")
    assert str(caught.value) == f"expected --{option} of at least 1, found {value}"


@pytest.mark.parametrize("value", [0, -1, 1025])
def test_workers_are_a_few_processes(value: int) -> None:
    with pytest.raises(UsageError) as caught:
        FeatureOptions.from_options({"workers": value})
    assert str(caught.value) == f"expected --workers of 1 to 1024 processes, found {value}"


@pytest.mark.parametrize("name", ["tap", "pool"])
def test_a_list_of_anything_but_names_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^expected one name or a list of names for --{name}"):
        FeatureOptions.from_options({name: ["block1_pool", 5]})


@pytest.mark.parametrize("name", ["tap", "pool"])
@pytest.mark.parametrize("value", [5, 1.5, True])
def test_a_number_instead_of_names_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"--{name}"):
        FeatureOptions.from_options({name: value})


def test_a_table_instead_of_names_is_refused() -> None:
    with pytest.raises(UsageError, match="--tap"):
        FeatureOptions.from_options({"tap": {"block1_pool": 1}})


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("taps", "tap"),
        ("pooling", "pool"),
        ("batchsize", "batch_size"),
        ("weight", "weights"),
        ("Size", "size"),
        ("worker", "workers"),
    ],
)
def test_an_unknown_option_is_refused_and_the_nearest_named(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        FeatureOptions.from_options({name: "x"})
    assert str(caught.value) == f"expected a known option, found {name!r}; did you mean '{near}'?"


def test_a_missing_name_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^expected --name, found none$"):
        ExtractSpec.from_options({"size": 64})


def test_the_nearest_name_is_found_even_where_nothing_is_near() -> None:
    assert unknown_name("key", "zzz", ["abc"]) == (
        "expected a known key, found 'zzz'; did you mean 'abc'?"
    )


def test_the_options_are_listed_in_the_docstring() -> None:
    for name, known in options_of(ExtractSpec).items():
        assert f"    {name} : " in (ExtractSpec.__doc__ or "")
        assert known.help in (ExtractSpec.__doc__ or "")


_VALUES = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
)


@settings(deadline=None)  # the first tap that is none imports torch
@given(
    st.dictionaries(st.sampled_from(FeatureOptions.option_names()) | st.text(max_size=8), _VALUES),
    st.booleans(),
)
def test_any_options_give_a_spec_or_a_usage_error(options: dict[str, Any], text: bool) -> None:
    try:
        spec = FeatureOptions.from_options(options, text=text)
    except UsageError as error:
        assert str(error).startswith("expected ")
        return
    assert set(options) <= set(FeatureOptions.option_names())
    assert FeatureOptions(**{name: getattr(spec, name) for name in options}) == spec


@pytest.mark.parametrize("value", ["1_6", " 16 ", "\u0661\u0662", "16.0", "0x10", "9" * 40])
def test_only_plain_digits_are_a_whole_number(value: str) -> None:
    with pytest.raises(UsageError, match="whole number"):
        FeatureOptions.from_options({"size": value})


@pytest.mark.parametrize("value", ["", Path()])
def test_an_empty_text_is_no_folder(value: Any) -> None:
    if value == "":
        with pytest.raises(UsageError, match="expected a folder for --root, found an empty text"):
            ExtractSpec.from_options({"name": "x", "root": value})
    else:
        # pathlib has no empty path: it is this folder, and whoever says Path() means it.
        assert ExtractSpec.from_options({"name": "x", "root": value}).root == Path()


def test_a_number_beyond_all_floats_is_refused() -> None:
    with pytest.raises(UsageError, match="beyond all floats"):
        HeadSpec.from_options({"learning_rate": 10**400})


def test_an_unknown_option_is_refused_also_where_it_is_none() -> None:
    with pytest.raises(UsageError, match="'bogus'"):
        HeadSpec.from_options({"bogus": None})
