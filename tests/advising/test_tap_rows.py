"""Which rows are measured, how they are averaged, and where a network is to be retrained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.advising import vgg_space
from support.samples import small_space

from featpipe.advising.tap_rows import FLAT, MAX_FLAT, MEAN, STORED, mean_over, retrained_tap
from featpipe.advising.tap_rows import rows_to_measure as to_measure
from featpipe.backbones.catalog import get_backbone


def measured(*spaces: object, train: int = 10) -> list[tuple[str, str, int]]:
    found, _ = to_measure([(space, "random:0") for space in spaces], train)  # type: ignore[misc]
    return [(rows.space.tap, rows.how, rows.depth) for rows in found]


@pytest.mark.parametrize("axes", [(2, 3), (1,), (1, 2)])
def test_rows_are_averaged_over_places(axes: tuple[int, ...]) -> None:
    X = np.random.default_rng(0).normal(size=(7, 3, 4, 5)).astype(np.float16)
    expected = X.astype(np.float64).mean(axis=axes).reshape(7, -1)
    assert np.allclose(mean_over(X, axes), expected, atol=1e-5)
    assert mean_over(X[:0], axes).shape == (0, expected.shape[1])


def test_taps_come_in_the_order_of_the_network() -> None:
    deep, early = vgg_space("block5_pool"), vgg_space("block4_pool")
    assert measured(deep, early) == [
        ("block4_pool", MEAN, 0),
        ("block4_pool", FLAT, 0),
        ("block5_pool", MEAN, 1),
        ("block5_pool", FLAT, 1),
    ]


def test_a_stored_mean_is_not_computed_again() -> None:
    maps = vgg_space("block5_pool")
    mean = vgg_space("block5_pool", pooling="avg", shape=(16,))
    assert measured(maps, mean) == [("block5_pool", FLAT, 0), ("block5_pool", STORED, 0)]


def test_whole_maps_are_measured_only_where_they_are_small() -> None:
    space = vgg_space("block5_pool", shape=(512, 14, 14))
    most = MAX_FLAT // (512 * 14 * 14)
    assert [how for _, how, _ in measured(space, train=most)] == [MEAN, FLAT]
    assert [how for _, how, _ in measured(space, train=most + 1)] == [MEAN]


def test_pixels_are_no_features() -> None:
    assert measured(vgg_space("input", backbone="pixels", dtype="uint8")) == []


def test_each_network_has_an_order_of_its_own() -> None:
    small, large = vgg_space("block5_pool"), vgg_space("block4_pool")
    other = dataclasses.replace(large, precision="bf16")
    found, _ = to_measure([(small, "random:0"), (other, "random:0")], 10**9)
    assert [rows.depth for rows in found] == [0, 0]
    assert len({rows.network for rows in found}) == 2


def test_taps_of_a_network_that_cannot_be_asked_come_by_the_size_of_their_maps() -> None:
    names = {"a": (8, 2, 2), "b": (4, 6, 6), "c": (5, 12)}
    spaces = [
        small_space(backbone="mine:build", tap=tap, pooling="none", shape=shape)
        for tap, shape in names.items()
    ]
    found, notes = to_measure([(space, "own") for space in spaces], 10**9)
    assert [(rows.space.tap, rows.numbers) for rows in found] == [("b", 4), ("c", 12), ("a", 8)]
    assert len(notes) == 1 and "--allow-code mine:build" in notes[0]


@pytest.mark.parametrize(
    ("name", "deepest", "tap"),
    [
        ("vgg16", "block5_pool", "block4_pool"),
        ("vgg16", "block4_pool", "block4_conv1"),
        # What a shortcut goes past is no cut.
        ("resnet18", "layer4", "layer4.0"),
    ],
)
def test_about_the_last_block_is_retrained(name: str, deepest: str, tap: str) -> None:
    assert retrained_tap(get_backbone(name), deepest, 64) == tap


def test_nothing_lies_before_the_first_tap() -> None:
    vgg = get_backbone("vgg16")
    assert retrained_tap(vgg, next(iter(vgg.taps)), 64) is None
