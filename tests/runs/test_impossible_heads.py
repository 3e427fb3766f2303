"""Heads whose files are whole but say impossible things are refused, not used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save
from support.runs import load_head, save_head, trained_head

from featpipe.base.errors import DamageError, DataError


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
