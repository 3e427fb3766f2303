"""Command line, recipes and Python know the same options: those that the specs declare."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command import Run

from featpipe import api
from featpipe.base.errors import UsageError
from featpipe.cli.app import COMMANDS, app
from featpipe.heads import head_class
from featpipe.integrations.sklearn import CachedFeatures
from featpipe.specs.advise import AdviseSpec
from featpipe.specs.audit import AuditSpec, RelabelSpec
from featpipe.specs.code import AllowCode
from featpipe.specs.compare import CompareSpec, RunsSpec
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.export import ExportSpec
from featpipe.specs.extract import ExtractSpec, FeatureOptions
from featpipe.specs.fields import Spec, default_of, options_of
from featpipe.specs.head_params import HEAD_KINDS, HEAD_PARAMS, OwnNetworkParams
from featpipe.specs.heads import HeadSpec
from featpipe.specs.predict import PredictSpec
from featpipe.specs.recipe import (
    DATASET_KEYS,
    EVALUATE_KEYS,
    EXTRACT_KEYS,
    HEAD_KEYS,
    NOT_IN_RECIPES,
)
from featpipe.specs.schema import recipe_schema

ABOUT_THE_COMMAND = {"cache", "as_json", "quiet", "verbose", "help"}
"""Flags that say where things lie and what is printed."""
HYPER_PARAMETERS = {name for params in HEAD_PARAMS.values() for name in params.option_names()}


def options_on_the_command_line(command: str) -> dict[str, Any]:
    """The options of a command by the names of their parameters."""
    group: Any = typer.main.get_command(app)
    parameters = group.get_command(None, command).params
    return {p.name: p for p in parameters if p.param_type_name == "option"}


@pytest.mark.parametrize(
    ("name", "expected", "extra"),
    [
        ("extract", set(ExtractSpec.option_names()), {"strict", "dry_run"}),
        ("train-head", set(HeadSpec.option_names()) | HYPER_PARAMETERS, set()),
        ("evaluate", set(EvaluateSpec.option_names()), set()),
        ("predict", set(PredictSpec.option_names()), {"probabilities"}),
        ("compare", set(CompareSpec.option_names()), set()),
        (
            "run",
            set(AllowCode.option_names()),
            {"data", "out", "overwrite", "device", "check", "list_recipes", "schema"},
        ),
        ("runs", set(RunsSpec.option_names()), set()),
        ("export", set(ExportSpec.option_names()), set()),
        ("advise", set(AdviseSpec.option_names()), set()),
        ("audit", set(AuditSpec.option_names()), set()),
        ("relabel", set(RelabelSpec.option_names()), set()),
    ],
)
def test_flags_are_the_fields(name: str, expected: set[str], extra: set[str]) -> None:
    assert set(options_on_the_command_line(name)) - ABOUT_THE_COMMAND == expected | extra


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("extract", ExtractSpec),
        ("train-head", HeadSpec),
        ("evaluate", EvaluateSpec),
        ("predict", PredictSpec),
        ("compare", CompareSpec),
        ("runs", RunsSpec),
        ("export", ExportSpec),
        ("advise", AdviseSpec),
        ("audit", AuditSpec),
        ("relabel", RelabelSpec),
    ],
)
def test_every_flag_has_the_fields_name_and_help_and_no_default_of_its_own(
    name: str, spec: type[Spec]
) -> None:
    given = options_on_the_command_line(name)
    for option, known in options_of(spec).items():
        assert given[option].opts == [f"--{option.replace('_', '-')}"]
        assert known.help.rstrip(".") in given[option].help
        assert given[option].default in (None, False)


def test_recipe_keys_are_the_fields() -> None:
    own = set(NOT_IN_RECIPES)
    assert set(EVALUATE_KEYS) == set(EvaluateSpec.option_names()) - own
    assert set(DATASET_KEYS) | set(EXTRACT_KEYS) == set(ExtractSpec.option_names()) - own
    assert set(HEAD_KEYS) | {"head"} == set(HeadSpec.option_names()) - own


def test_the_schema_has_every_key_of_a_recipe() -> None:
    tables = recipe_schema()["properties"]
    assert set(tables["dataset"]["properties"]) == {"data", *DATASET_KEYS}
    one, several = tables["extract"]["oneOf"]
    assert several["items"] == one and set(one["properties"]) == set(EXTRACT_KEYS)
    heads = tables["head"]["items"]["oneOf"]
    kinds = [head["properties"]["kind"] for head in heads]
    assert [kind["const"] for kind in kinds[:-1]] == list(HEAD_KINDS)
    assert kinds[-1] == {"type": "string", "pattern": ":"}, "a network of the user's own"
    every = [*HEAD_PARAMS.values(), OwnNetworkParams]
    for head, params in zip(heads, every, strict=True):
        assert set(head["properties"]) == {"kind", *HEAD_KEYS, *params.option_names()}


def test_the_schema_is_printed(featpipe: Run) -> None:
    done = featpipe("run", "--schema")
    assert json.loads(done.stdout) == json.loads(json.dumps(recipe_schema()))


@pytest.mark.parametrize(
    ("call", "spec"),
    [
        (lambda empty, **options: api.extract(empty / "photos", **options), ExtractSpec),
        (lambda empty, **options: api.train_head("pets", **options), HeadSpec),
        (lambda empty, **options: api.evaluate(empty / "run", **options), EvaluateSpec),
        (lambda empty, **options: api.predict(empty / "run", [], **options), PredictSpec),
        (lambda empty, **options: api.export("pets", **options), ExportSpec),
        (lambda empty, **options: api.advise("pets", **options), AdviseSpec),
        (lambda empty, **options: api.audit("pets", **options), AuditSpec),
        (lambda empty, **options: api.relabel("pets", empty / "fixes", **options), RelabelSpec),
    ],
    ids=["extract", "train_head", "evaluate", "predict", "export", "advise", "audit", "relabel"],
)
def test_python_takes_the_fields_and_nothing_else(
    call: Any, spec: type[Spec], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    must = {
        ExtractSpec: {"name": "pets"},
        ExportSpec: {"format": "npz", "out": tmp_path / "pets.npz"},
    }.get(spec, {})
    with pytest.raises(UsageError, match="found 'no_such_option'"):
        call(tmp_path, cache=cache, **must, no_such_option=1)
    # Every field is known: what is refused then is that there are no pictures and no head.
    everything = {**dict.fromkeys(spec.option_names()), **must}
    with pytest.raises(LookupError):
        call(tmp_path, cache=cache, **everything)


def test_cached_features_take_the_options_of_features() -> None:
    named = set(inspect.signature(CachedFeatures).parameters) - {"cache"}
    assert named == set(FeatureOptions.option_names())


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_head_has_the_hyper_parameters_of_its_kind(kind: str) -> None:
    assert issubclass(head_class(kind), HEAD_PARAMS[kind])
    assert head_class(kind)().params == {
        name: default_of(HEAD_PARAMS[kind], name) for name in HEAD_PARAMS[kind].option_names()
    }


def test_an_option_of_a_space_or_a_training_is_no_hyper_parameter() -> None:
    # All of them are keys of one [[head]] table and flags of one command.
    assert not set(HeadSpec.option_names()) & HYPER_PARAMETERS


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_of_each_what_its_own_help_says(command: str) -> None:
    group: Any = typer.main.get_command(app)
    first_line = group.get_command(None, command).help.partition("\n")[0]
    assert first_line.partition(":")[0].rstrip(".") == COMMANDS[command].partition(":")[0].rstrip(
        "."
    )
