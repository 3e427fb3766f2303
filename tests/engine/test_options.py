"""Options by name: the same words as flags, recipe keys and keywords, and nothing else passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe.base.errors import UsageError
from featpipe.engine.loop import EngineOptions
from featpipe.engine.options import OPTION_NAMES, parse_options, unknown_name
from featpipe.engine.plan import FeatureRequest


def test_no_options_mean_the_defaults_of_the_library() -> None:
    assert parse_options({}) == (FeatureRequest(), EngineOptions())


def test_none_means_the_default_for_every_option() -> None:
    everything = dict.fromkeys(OPTION_NAMES)
    assert parse_options(everything) == (FeatureRequest(), EngineOptions())


def test_the_names_are_those_of_the_request_and_the_engine_with_tap_and_pool_singular() -> None:
    fields = {f.name for kind in (FeatureRequest, EngineOptions) for f in dataclasses.fields(kind)}
    assert (fields - {"taps", "pools"}) | {"tap", "pool"} == OPTION_NAMES


def test_every_option_arrives_where_it_belongs() -> None:
    request, engine = parse_options(
        {
            "backbone": "vgg11",
            "weights": "random:3",
            "tap": ["block1_pool", "block2_pool"],
            "pool": ["avg"],
            "size": 32,
            "resize": "squash",
            "precision": "bf16",
            "dtype": "float32",
            "device": "cpu",
            "batch_size": 5,
            "workers": 3,
            "max_pixels": 7,
        }
    )
    assert request == FeatureRequest(
        backbone="vgg11",
        weights="random:3",
        taps=("block1_pool", "block2_pool"),
        pools=("avg",),
        size=32,
        resize="squash",
        precision="bf16",
        dtype="float32",
        device="cpu",
    )
    assert engine == EngineOptions(batch_size=5, workers=3, max_pixels=7)


@pytest.mark.parametrize(("name", "value"), [("tap", "block1_pool"), ("pool", "avg")])
def test_one_name_is_a_list_of_one(name: str, value: str) -> None:
    one, several = parse_options({name: value})[0], parse_options({name: [value]})[0]
    assert one == several
    assert getattr(one, f"{name}s") == (value,)


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels"])
def test_auto_is_the_default_of_the_engine(name: str) -> None:
    assert parse_options({name: "auto"})[1] == EngineOptions()


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels", "size"])
@pytest.mark.parametrize("value", [64, "64"])
def test_whole_numbers_may_come_as_text_as_on_the_command_line(name: str, value: object) -> None:
    request, engine = parse_options({name: value})
    assert getattr(request if name == "size" else engine, name) == 64


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels", "size"])
@pytest.mark.parametrize("value", ["ten", "", 1.5, True, [], {}, float("nan"), float("inf")])
def test_what_is_no_whole_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options({name: value})
    assert str(caught.value) == (
        f"expected a whole number (or 'auto' where that is a choice) for "
        f"'{name.replace('_', '-')}', found {value!r}"
    )


@pytest.mark.parametrize("name", ["batch_size", "workers", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1])
def test_the_engine_takes_nothing_below_one(name: str, value: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options({name: value})
    option = name.replace("_", "-")
    assert str(caught.value) == f"expected --{option} of at least 1, found {value}"


@pytest.mark.parametrize("name", ["tap", "pool"])
def test_a_list_of_anything_but_names_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^expected one name or a list of names for '{name}'"):
        parse_options({name: ["block1_pool", 5]})


@pytest.mark.parametrize("name", ["tap", "pool"])
@pytest.mark.parametrize("value", [5, 1.5, True])
def test_a_number_instead_of_names_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"'{name}'"):
        parse_options({name: value})


def test_a_table_instead_of_names_is_refused() -> None:
    with pytest.raises(UsageError, match="'tap'"):
        parse_options({"tap": {"block1_pool": 1}})


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
        parse_options({name: "x"})
    assert str(caught.value) == f"expected a known option, found {name!r}; did you mean '{near}'?"


def test_the_nearest_name_is_found_even_where_nothing_is_near() -> None:
    assert unknown_name("key", "zzz", ["abc"]) == (
        "expected a known key, found 'zzz'; did you mean 'abc'?"
    )


_VALUES = st.one_of(
    st.none(),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.lists(st.one_of(st.text(max_size=5), st.integers()), max_size=3),
)


# A bare number for tap or pool has its own test above.
@given(
    st.dictionaries(
        st.sampled_from(sorted(OPTION_NAMES - {"tap", "pool"})) | st.text(max_size=8), _VALUES
    )
)
def test_any_options_give_a_request_or_a_usage_error(options: dict[str, Any]) -> None:
    try:
        request, engine = parse_options(options)
    except UsageError as error:
        assert str(error).startswith("expected ")
        return
    assert set(options) <= OPTION_NAMES
    assert isinstance(request, FeatureRequest)
    assert isinstance(engine, EngineOptions)
