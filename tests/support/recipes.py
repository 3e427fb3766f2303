"""A recipe of the cheapest features and two heads, and others like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from featpipe.base.errors import UsageError
from featpipe.specs.recipe import load_recipe

GOOD: dict[str, Any] = {
    "dataset": {"name": "colours", "data": "photos"},
    "extract": {
        "weights": "random:0",
        "tap": "block1_pool",
        "size": 16,
        "resize": "squash",
        "precision": "fp32",
        "device": "cpu",
    },
    "head": [
        {"kind": "linear", "epochs": 20, "device": "cpu"},
        {"kind": "logistic", "C": 0.01, "seed": 3},
    ],
}


def toml_value(value: Any) -> str:
    """A value in TOML's spelling, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)  # TOML, unlike JSON, has inf and nan
    return json.dumps(value)


def toml(document: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(name)} = {toml_value(v)}\n" for name, v in document.items())


def changed(**changes: Any) -> dict[str, Any]:
    """The good recipe with other tables; a table of None is left out."""
    return {name: table for name, table in {**GOOD, **changes}.items() if table is not None}


def write(folder: Path, document: dict[str, Any] | str | bytes) -> Path:
    path = folder / "recipe.toml"
    text = toml(document) if isinstance(document, dict) else document
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(folder: Path, document: dict[str, Any] | str | bytes) -> str:
    """What is said against a recipe, less the name of the file it begins with."""
    path = write(folder, document)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")
