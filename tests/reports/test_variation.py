"""What compared heads differ in is found where it is one thing alone, and drawn."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.samples import small_space

from featpipe.reports.documents import ComparedHead
from featpipe.reports.variation import (
    Compared,
    Variation,
    draw_accuracy,
    draw_times,
    find_variation,
)
from featpipe.specs.head_params import LinearParams, MLPParams


def compared(
    name: str,
    *,
    kind: str = "linear",
    params: dict[str, Any] | None = None,
    space: dict[str, Any] | None = None,
    train: str = "a",
    **more: Any,
) -> Compared:
    known: Any = {"linear": LinearParams, "mlp": MLPParams}[kind]
    all_params = dataclasses.asdict(known(**(params or {})))
    of = small_space(**(space or {}))
    row: ComparedHead = {
        "head": name,
        "kind": kind,
        "params": all_params,
        "info": {},
        "space": of.id,
        "features": of.words,
        "accuracy": 0.9,
        "accuracy_ci95": [0.8, 0.95],
        "log_loss": 0.3,
        "ece": 0.1,
        "seconds": 1.0,
        "seconds_per_epoch": None,
        "bytes": 100,
        "trained_on": 0,
    }
    return Compared({**row, **more}, (of,), "random:0", train)  # type: ignore[typeddict-item]


def of_batches(*sizes: int, **more: Any) -> list[Compared]:
    return [compared(f"{size}", params={"batch_size": size}, **more) for size in sizes]


def of_taps(*taps: str) -> list[Compared]:
    # The digest of the weights and the shape follow from the tap.
    spaces = [{"tap": t, "weights": f"{i}b" * 32, "shape": (i + 1,)} for i, t in enumerate(taps)]
    return [compared(space["tap"], space=space) for space in spaces]


def found(heads: list[Compared]) -> Variation:
    variation = find_variation(heads)
    assert variation is not None
    return variation


def texts(svg: str) -> str:
    """matplotlib keeps each text it drew as a comment."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg))


def test_a_hyper_parameter_is_found_and_its_values_are_sorted() -> None:
    variation = found(of_batches(64, 1, 1024))
    assert (variation.name, variation.words) == ("batch_size", "batch size")
    assert variation.values == [1, 64, 1024]
    assert [head["head"] for head in variation.heads] == ["1", "64", "1024"]
    assert variation.labels() == {
        "1": "batch size 1",
        "64": "batch size 64",
        "1024": "batch size 1,024",
    }
    assert variation.common_words() == f"linear, features {small_space().words}"


def test_taps_are_found_in_the_order_given() -> None:
    variation = found(of_taps("block2_pool", "block1_pool"))
    assert (variation.name, variation.values) == ("tap", ["block2_pool", "block1_pool"])
    assert variation.labels() == {"block2_pool": "block2_pool", "block1_pool": "block1_pool"}


def test_several_taps_side_by_side_are_one_more_choice() -> None:
    one, two = of_taps("block1_pool", "block2_pool")
    both = dataclasses.replace(one, row={**one.row, "head": "both"}, spaces=one.spaces + two.spaces)
    assert found([one, two, both]).values[2] == "block1_pool + block2_pool"


@pytest.mark.parametrize(
    "other",
    [
        {"kind": "mlp", "params": {"batch_size": 2}},
        {"params": {"batch_size": 2, "epochs": 3}},
        {"params": {"batch_size": 2}, "space": {"pooling": "max"}},
        {"params": {"batch_size": 2}, "space": {"tap": "block2_pool"}},
        {"params": {"batch_size": 2}, "info": {"n_shot": {"n": 5}}},
        {"params": {"batch_size": 2}, "train": "other pictures"},
        {"params": {"class_weight": "balanced"}},
        {"space": {"pooling": "max"}},
        {"space": {"tap": "block2_pool", "dtype": "float32"}},
        {},
    ],
    ids=str,
)
def test_heads_that_differ_in_anything_else_have_no_plot(other: dict[str, Any]) -> None:
    assert find_variation([compared("one"), compared("two", **other)]) is None


def test_a_parameter_that_was_left_to_the_head_is_no_number() -> None:
    one, two = compared("one"), compared("two")
    for head, value in ((one, None), (two, 1.0)):
        head.row["params"] = {"C": value}
    assert find_variation([one, two]) is None


def test_many_decades_are_drawn_on_a_logarithmic_axis_with_every_value() -> None:
    values = [2**i for i in range(11)]
    drawn = texts(draw_accuracy(found(of_batches(*values))))
    assert all(f"{value:,}" in drawn.split() for value in values)
    assert "90%" in drawn and "batch size" in drawn


def test_seconds_per_epoch_are_drawn_where_every_head_has_them() -> None:
    heads = [
        compared(f"{n}", params={"batch_size": n}, seconds_per_epoch=1 / n) for n in (1, 10, 100)
    ]
    variation = found(heads)
    assert variation.has_times
    assert "seconds per epoch" in texts(draw_times(variation))
    heads[1].row["seconds_per_epoch"] = None
    assert not found(heads).has_times


def test_hostile_names_of_taps_are_drawn_as_text() -> None:
    names = ("$\\frac{$ $$", "</svg><script>alert(1)</script>", "_hidden\x07")
    svg = draw_accuracy(found(of_taps(*names)))
    assert "<script" not in svg and "\x07" not in svg


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(1e-100, 1e100), st.floats(0, 1), st.floats(1e-100, 1e100), st.floats(0, 1)
        ),
        min_size=2,
        max_size=4,
        unique_by=lambda one: one[0],
    )
)
def test_any_numbers_are_drawn(numbers: list[tuple[float, float, float, float]]) -> None:
    heads = [
        compared(
            f"{i}",
            params={"learning_rate": rate},
            accuracy=accuracy,
            seconds_per_epoch=seconds,
            accuracy_ci95=sorted([bound, accuracy]),
        )
        for i, (rate, accuracy, seconds, bound) in enumerate(numbers)
    ]
    variation = found(heads)
    for svg in (draw_accuracy(variation), draw_times(variation)):
        assert svg.startswith("<svg role=") and svg.endswith("</svg>\n")
