"""``train-head --sweep --tap all --pool all`` ranges over every cached feature space."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, json_of
from support.library import train_head
from support.runs import load_head
from support.samples import in_splits, small_space, stored_set

from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.space import FeatureSpace

SAMPLES = in_splits(train=20, val=8, test=5)


def spaces() -> list[FeatureSpace]:
    """Two taps with two poolings each."""
    first = small_space()
    others = [("block2_pool", "avg"), (first.tap, "max"), ("block2_pool", "max")]
    return [
        dataclasses.replace(first, pooling="avg"),
        *(dataclasses.replace(first, tap=tap, pooling=pooling) for tap, pooling in others),
    ]


def rows(path: Path) -> list[dict[str, Any]]:
    combinations: list[dict[str, Any]] = json.loads((path / "sweep.json").read_text())[
        "combinations"
    ]
    return combinations


def sweep(cache: Path, tmp_path: Path, **options: Any) -> Any:
    options = {"head": "logistic", "sweep": True, "out": tmp_path / "run", **options}
    return train_head("set", cache=cache, device="cpu", **options)


def test_every_tap_and_pooling_is_tried_and_the_lowest_validation_loss_kept(
    cache: Path, tmp_path: Path
) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    done = sweep(cache, tmp_path, tap="all", pool="all")
    table = rows(done.head)
    pairs = {(row["params"]["tap"], row["params"]["pool"]) for row in table}
    assert pairs == {(space.tap, space.pooling) for space in spaces()}
    losses = [row["val_loss"] for row in table]
    assert losses == sorted(losses)
    kept = load_head(done.head)
    best = table[0]["params"]
    assert (kept.space.tap, kept.space.pooling) == (best["tap"], best["pool"])
    assert done.val["loss"] == losses[0] and done.space == kept.space.id
    assert done.sweep.varied[:2] == ["tap", "pool"]
    assert not {"tap", "pool"} & set(done.sweep.at_edge)


def test_it_finds_what_a_sweep_of_each_space_alone_finds(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    alone = [
        sweep(cache, tmp_path, tap=s.tap, pool=s.pooling, overwrite=True).val["loss"]
        for s in spaces()
    ]
    assert sweep(cache, tmp_path, tap="all", pool="all", overwrite=True).val["loss"] == min(alone)


def test_only_what_is_all_varies(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    done = sweep(cache, tmp_path, tap="all", pool="max")
    assert {row["params"]["tap"] for row in rows(done.head)} == {s.tap for s in spaces()}
    assert load_head(done.head).space.pooling == "max"
    assert done.sweep.varied[0] == "tap" and "pool" not in done.sweep.varied


def test_with_seeds_the_best_mean_over_all_spaces_wins(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces()[:2])
    given = {"learning_rate": 1e-3, "weight_decay": 0.01, "epochs": 3}
    done = sweep(cache, tmp_path, head="linear", tap="all", pool="all", seeds=3, **given)
    means = [row["val_loss"]["mean"] for row in done.sweep.by_seed]
    assert len(means) == 2 and means == sorted(means)
    assert load_head(done.head).space.tap == done.sweep.by_seed[0]["params"]["tap"]


def test_a_field_that_is_left_open_is_still_ambiguous(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    with pytest.raises(UsageError, match=r"2 spaces that differ in --tap"):
        sweep(cache, tmp_path, pool="all")


def test_all_without_a_sweep_is_refused(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    with pytest.raises(UsageError) as caught:
        sweep(cache, tmp_path, tap="all", pool="avg", sweep=False)
    assert str(caught.value) == (
        "expected --tap all only with --sweep, found it without; add --sweep or name one tap"
    )


def test_nothing_that_fits_says_what_is_there(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    with pytest.raises(NotFoundError, match="expected features of data set 'set' with size 999"):
        sweep(cache, tmp_path, tap="all", pool="all", size=999)


def test_the_table_on_the_command_line_names_taps_and_poolings(featpipe: Run, cache: Path) -> None:
    stored_set(cache, SAMPLES, spaces=spaces())
    flags = ("--head", "logistic", "--sweep", "--tap", "all", "--pool", "all", "--cache", cache)
    done = featpipe("train-head", "set", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:3] == ["tap", "pool", "C"]
    shown = [tuple(line.split()[:2]) for line in done.stdout.splitlines()[1:5]]
    assert set(shown) == {(s.tap, s.pooling) for s in spaces()}, "the best of each, once"
    best = json_of(featpipe("train-head", "set", "--json", *flags))["sweep"]["best"]["params"]
    assert {best["tap"], best["pool"]} <= {*(s.tap for s in spaces()), "avg", "max"}
