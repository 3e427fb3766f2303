"""The JSON Schema of recipes, for editors that complete and check TOML."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featpipe.specs.code import CodeName
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.fields import Option, options_of
from featpipe.specs.head_params import HEAD_PARAMS, HeadParams, OwnNetworkParams
from featpipe.specs.heads import HeadSpec
from featpipe.specs.recipe import (
    DATASET_KEYS,
    EVALUATE_KEYS,
    EVALUATE_SPLITS,
    EXTRACT_KEYS,
    HEAD_KEYS,
)
from featpipe.specs.value_kinds import Choice


def recipe_schema() -> dict[str, Any]:
    """Schema of a recipe, made from the options of the specs."""
    extract, head = options_of(ExtractSpec), options_of(HeadSpec)
    dataset = {
        "data": {
            "type": "string",
            "description": "An image folder, a folder of idx files, a list, or sklearn:digits; a "
            "relative path counts from the recipe's folder.",
        },
        **_properties(extract, DATASET_KEYS),
    }
    evaluate = _properties(options_of(EvaluateSpec), EVALUATE_KEYS)
    evaluate["split"] |= Choice(EVALUATE_SPLITS).schema()
    kinds: list[tuple[dict[str, Any], type[HeadParams]]] = [
        *(({"const": kind}, params) for kind, params in HEAD_PARAMS.items()),
        (CodeName().schema(), OwnNetworkParams),
    ]
    heads = [
        {
            "type": "object",
            "properties": {
                "kind": kind,
                **_properties(head, HEAD_KEYS),
                **_properties(options_of(params), params.option_names()),
            },
            "required": ["kind"],
            "additionalProperties": False,
        }
        for kind, params in kinds
    ]
    extraction = _table(_properties(extract, EXTRACT_KEYS))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "featpipe recipe",
        "type": "object",
        "properties": {
            "dataset": _table(dataset, required=["name", "data"]),
            "extract": {
                "oneOf": [extraction, {"type": "array", "items": extraction, "minItems": 1}]
            },
            "head": {"type": "array", "items": {"oneOf": heads}, "minItems": 1},
            "evaluate": _table(evaluate),
        },
        "required": ["dataset", "head"],
        "additionalProperties": False,
    }


def _properties(options: dict[str, Option], names: Iterable[str]) -> dict[str, Any]:
    return {
        name: {**options[name].kind.schema(), "description": options[name].help} for name in names
    }


def _table(properties: dict[str, Any], *, required: Iterable[str] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
