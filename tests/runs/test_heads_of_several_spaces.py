"""The files of a head on several taps: format 3. Heads of one space are written as before."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.heads import ROW_KINDS, SideBySide
from support.runs import (
    CLASSES,
    JSON_NAME,
    PARAMS,
    TENSORS_NAME,
    load_head,
    rewrite,
    rewrite_tensors,
    save_head,
    trained_head,
)
from support.samples import small_space

from featpipe.base.errors import DamageError
from featpipe.heads import new_head
from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead

SPACES = (small_space(), small_space(tap="block2_pool", shape=(1, 2, 1), weights="cd" * 32))


def head_of_two(kind: str = "linear") -> TrainedHead:
    """A head for two spaces of four and two numbers, trained for a moment."""
    rng, y = np.random.default_rng(0), np.arange(30) % 3
    first = (rng.normal(size=(30, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float16)
    X = SideBySide(first, (100 * rng.normal(size=(30, 2))).astype(np.float16))
    head = new_head(kind, PARAMS[kind])
    head.classes_ = np.array(CLASSES)
    history = head.fit(X, y, X, y, seed=0, device="cpu", tick=lambda row: None)
    return dataclasses.replace(trained_head(), head=head, spaces=SPACES, history=history)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(tmp_path / "run", head_of_two())


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_it_comes_back_bit_for_bit(kind: str, temperature: float, tmp_path: Path) -> None:
    before = head_of_two(kind)
    before.head.temperature_ = temperature
    folder = save_head(tmp_path / "run", before)
    after = load_head(folder)
    X = np.random.default_rng(5).normal(size=(50, 6)).astype(np.float16)
    assert after.predict_proba(X).tobytes() == before.predict_proba(X).tobytes()
    assert after.spaces == before.spaces == SPACES
    assert after.head.scale_.shape == (6,) and after.head.temperature_ == temperature
    assert Run(folder).load_description().spaces == SPACES


def test_its_description_lists_the_spaces(saved: Path) -> None:
    document = json.loads((saved / JSON_NAME).read_text())
    assert document["format"] == 3
    assert document["feature_spaces"] == [json.loads(space.canonical_json) for space in SPACES]
    assert document["feature_space_ids"] == [space.id for space in SPACES]
    assert not {"feature_space", "feature_space_id"} & set(document)
    scale = load_file(saved / TENSORS_NAME)["scale"]
    assert len(set(scale[:4])) == len(set(scale[4:])) == 1 and scale[4] > 10 * scale[0]


@pytest.mark.parametrize(("temperature", "version"), [(1.0, 1), (1.5, 2)])
def test_a_head_of_one_space_is_written_as_before(
    temperature: float, version: int, tmp_path: Path
) -> None:
    trained = trained_head()
    trained.head.temperature_ = temperature
    document = json.loads((save_head(tmp_path / "run", trained) / JSON_NAME).read_text())
    assert document["format"] == version
    assert document["feature_space"] == json.loads(small_space().canonical_json)
    assert document["feature_space_id"] == small_space().id
    assert not {"feature_spaces", "feature_space_ids"} & set(document)
    assert load_file(tmp_path / "run" / TENSORS_NAME)["scale"].shape == (1,)


def swap(document: dict[str, Any]) -> None:
    document["feature_spaces"].reverse()


def repeat(document: dict[str, Any]) -> None:
    for key in ("feature_spaces", "feature_space_ids"):
        document[key] = document[key][:1] * 2


def of_two_passes(document: dict[str, Any]) -> None:
    other = small_space(tap="block2_pool", shape=(2,), precision="bf16")
    document["feature_spaces"][1] = json.loads(other.canonical_json)
    document["feature_space_ids"][1] = other.id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(feature_spaces=[]), "its feature spaces are not listed"),
        (lambda d: d.update(feature_spaces=None), "its feature spaces are not listed"),
        (lambda d: d.update(feature_spaces="ab"), "feature space"),
        (lambda d: d.pop("feature_space_ids") and None, "feature_space_ids"),
        (lambda d: d["feature_space_ids"].pop() and None, "does not match its id"),
        (swap, "does not match its id"),
        (repeat, "one of its feature spaces is listed twice"),
        (of_two_passes, "do not come from one pass: block2_pool differs from block1_pool in"),
        (lambda d: d.update(format=2), "feature_space"),
    ],
)
def test_spaces_that_make_no_sense_are_damage(
    change: Callable[[dict[str, Any]], Any], message: str, saved: Path
) -> None:
    rewrite(saved, change)
    for read in (load_head, lambda path: Run(path).load_description()):
        with pytest.raises(DamageError, match=message):
            read(saved)


def test_a_scale_of_another_shape_is_damage(saved: Path, tmp_path: Path) -> None:
    rewrite_tensors(saved, lambda t: t.update(scale=np.ones(1, np.float32)))
    with pytest.raises(DamageError, match=r"its scale is \(1,\), not \(6,\)"):
        load_head(saved)
    one = save_head(tmp_path / "one", trained_head())
    rewrite_tensors(one, lambda t: t.update(scale=np.ones(4, np.float32)))
    with pytest.raises(DamageError, match=r"its scale is \(4,\), not \(1,\)"):
        load_head(one)


def test_tensors_of_another_width_are_damage(saved: Path) -> None:
    def narrow(tensors: dict[str, np.ndarray]) -> None:
        parts = {"mean": np.zeros(4), "scale": np.ones(4), "weight": np.zeros((3, 4))}
        tensors.update({name: part.astype(np.float32) for name, part in parts.items()})

    rewrite_tensors(saved, narrow)
    with pytest.raises(DamageError, match=r"takes 4 features, its space has \(6,\)"):
        load_head(saved)
