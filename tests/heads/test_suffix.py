"""At which rates the layers of a suffix learn, and which numbers they begin at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_network
from support.heads import overlapping, space_for

from featpipe.heads.suffix import SuffixHead

TINY = tiny_network.TINY


def suffix(*, pretrained: bool = True, **params: Any) -> SuffixHead:
    head = SuffixHead(**{"compute": "fp32", "epochs": 2, **params})
    head.attach([space_for("suffix")])
    head.classes_ = np.array(["a", "b"])
    names = (*head.body, *head.tail)
    head.start_from(TINY.random_tensors(0, names), pretrained=pretrained)
    return head


def test_pretrained_layers_learn_at_the_factor_and_new_ones_at_the_rate() -> None:
    head = suffix(backbone_rate_factor=0.2)
    assert head.top == "own"
    factors = head.rate_factors(head.new_module(head.suffixes.rows))
    assert set(factors) == {*head.body, *head.tail} and set(factors.values()) == {0.2}
    drawn = suffix(pretrained=False)
    assert drawn.top == "linear"
    assert drawn.rate_factors(drawn.new_module(drawn.suffixes.rows)) == {}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_wide_new_layers_learn_more_slowly_where_steps_have_one_size(optimizer: str) -> None:
    head = suffix(pretrained=False, optimizer=optimizer)
    module = torch.nn.Sequential(torch.nn.Linear(2048, 3), torch.nn.Linear(512, 3))
    assert head.rate_factors(module) == ({"0.weight": 0.25} if optimizer == "adamw" else {})


def test_frozen_layers_stay_bit_for_bit_and_only_the_last_one_learns() -> None:
    head = suffix(backbone_rate_factor=0)
    start = TINY.random_tensors(0, (*head.body, *head.tail))
    data = (*overlapping(40, 0, "suffix"), *overlapping(20, 1, "suffix"))
    head.fit(*data, seed=0, device="cpu", tick=lambda _: None)
    layers = head.layers()
    assert all(np.array_equal(layers[f"module.{name}"], start[name]) for name in start)
    assert head.start is not None and head.start["drawn"] == ["last"]


def test_initial_weights_of_a_scheme_are_those_of_drawn_layers_alone() -> None:
    head = suffix(init="xavier", backbone_rate_factor=0)
    start = TINY.random_tensors(0, (*head.body, *head.tail))
    data = (*overlapping(40, 0, "suffix"), *overlapping(20, 1, "suffix"))
    head.fit(*data, seed=0, device="cpu", tick=lambda _: None)
    assert all(np.array_equal(head.layers()[f"module.{name}"], start[name]) for name in start)
