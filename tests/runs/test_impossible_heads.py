"""Heads whose files are whole but say impossible things are refused, not used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from support.runs import load_head, save_head, trained_head

from featpipe.base.errors import DamageError, DataError, OwnCodeError
from featpipe.base.space import FeatureSpace


def rewrite(
    folder: Path,
    edit: Callable[[dict[str, Any]], None] = lambda document: None,
    **tensors: Any,
) -> None:
    """Change a head's files, with digests that are right."""
    found = load((folder / "head.safetensors").read_bytes())
    for name, value in tensors.items():
        found[name] = np.asarray(value(found[name]) if callable(value) else value)
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in found.items()})
    (folder / "head.safetensors").write_bytes(data)
    document = json.loads((folder / "head.json").read_text())
    del document["sha256"]
    document["tensors_sha256"] = hashlib.sha256(data).hexdigest()
    edit(document)
    text = json.dumps(document, sort_keys=True)
    document["sha256"] = hashlib.sha256(text.encode("ascii")).hexdigest()
    (folder / "head.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("linear", {"weight": lambda t: t * np.nan}),
        ("linear", {"bias": lambda t: t + np.inf}),
        ("linear", {"mean": lambda t: t * np.nan}),
        ("linear", {"scale": lambda t: t * 0}),
        ("linear", {"scale": lambda t: -t}),
        ("linear", {"scale": np.array([0], np.int32)}),
        ("linear", {"temperature": np.array([5e-324])}),
        ("linear", {"temperature": np.array([-1.0])}),
        ("mlp", {"hidden.weight": lambda t: t * np.inf}),
        ("knn", {"rows": lambda t: t * np.float32(np.nan)}),
        ("knn", {"vote_weight": lambda t: -t}),
        ("knn", {"vote_weight": lambda t: t * 0}),
    ],
)
def test_numbers_that_no_training_gives_are_damage(
    tmp_path: Path, kind: str, tensors: dict[str, Any]
) -> None:
    folder = save_head(tmp_path / "run", trained_head(kind))
    if "temperature" in tensors:
        rewrite(folder, lambda document: document.update(format=2), **tensors)
    else:
        rewrite(folder, **tensors)
    with pytest.raises(DamageError, match="expected a whole head in"):
        load_head(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda document: document["history"].update(best=1.0),
        lambda document: document["history"]["rows"][0].update(val_loss=10**400),
        lambda document: document["history"]["rows"][0].update(val_loss=float("nan")),
        lambda document: document.update(classes=["cat", "cow\ud800", "dog"]),
        lambda document: document.update(kind=["linear"]),
    ],
)
def test_a_description_that_nothing_could_work_with_is_damage(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    folder = save_head(tmp_path / "run", trained_head())
    rewrite(folder, edit)
    with pytest.raises(DamageError, match="expected a whole head in"):
        load_head(folder)


def test_what_comes_out_as_no_number_is_an_error_not_the_first_class(tmp_path: Path) -> None:
    head = trained_head().head
    with pytest.raises(DataError, match="expected probabilities, found values that are no numbers"):
        head.predict(np.full((2, 4), np.nan, np.float32))
    folder = save_head(tmp_path / "run", trained_head())
    rewrite(folder, weight=lambda t: np.full_like(t, 3e38) * np.array([[1], [-1], [1]], np.float32))
    with pytest.raises(DataError, match="no numbers"):
        load_head(folder).head.predict_proba(np.full((1, 4), 100, np.float32))


def space_edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Another feature space than the one that a head was trained on, with the id it has."""

    def edit(document: dict[str, Any]) -> None:
        space = FeatureSpace.from_json(json.dumps(document["feature_space"]))
        size = changes.pop("size", space.preprocessing.size)
        preprocessing = dataclasses.replace(space.preprocessing, size=size)
        space = dataclasses.replace(space, preprocessing=preprocessing, **changes)
        document["feature_space"] = json.loads(space.canonical_json)
        document["feature_space_id"] = space.id

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        space_edit(backbone="resnet18", tap="layer3"),
        space_edit(backbone="resnet18", tap="layer3", shape=(256, 2**20, 2**20), size=2**24),
        space_edit(backbone="no-network"),
        space_edit(backbone="pixels", tap="input"),
        space_edit(tap="conv"),
        space_edit(tap="no-tap"),
        space_edit(pooling="avg"),
        space_edit(shape=(2, 2**15, 2**15)),
        lambda document: document["params"].update(top=None),
        lambda document: document["params"].update(top="linear"),
        lambda document: document["params"].update(top="no-top"),
        lambda document: document["params"].update(dropout=7),
    ],
)
def test_a_suffix_of_another_network_or_tap_is_damage(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None]
) -> None:
    folder = save_head(tmp_path / "run", trained_head("suffix"))
    assert load_head(folder).head.kind == "suffix"
    rewrite(folder, edit)
    with pytest.raises(DamageError, match="expected a whole head in"):
        load_head(folder)


@pytest.mark.parametrize("name", ["mean", "scale", "module.conv.weight", "module.last.bias"])
def test_a_suffix_with_other_tensors_is_damage(tmp_path: Path, name: str) -> None:
    folder = save_head(tmp_path / "run", trained_head("suffix"))
    rewrite(folder, **{name: lambda t: t * np.nan})
    with pytest.raises(DamageError, match="expected a whole head in"):
        load_head(folder)
    rewrite(folder, **{name: lambda t: np.ones((*t.shape, 2), np.float32)})
    with pytest.raises(DamageError, match="expected a whole head in"):
        load_head(folder)


def test_a_suffix_of_code_of_ones_own_is_not_imported(tmp_path: Path) -> None:
    folder = save_head(tmp_path / "run", trained_head("suffix"))
    rewrite(folder, space_edit(backbone="os:system", tap="0"))
    with pytest.raises(OwnCodeError, match="found 'os:system', which is code to be run"):
        load_head(folder)
