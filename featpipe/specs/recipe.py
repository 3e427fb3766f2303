"""Recipes: a TOML file that asks for extractions, heads and their evaluation."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.base.disk import read_regular
from featpipe.base.errors import NotFoundError, StorageError, UsageError
from featpipe.base.text import escape
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.fields import Label, unknown_name
from featpipe.specs.head_params import HEAD_PARAMS, HeadKind
from featpipe.specs.heads import HeadSpec
from featpipe.specs.offered_features import (
    Offer,
    check_maps,
    differing,
    fitting,
    offers_of,
    ranging,
)
from featpipe.specs.offered_views import check_views
from featpipe.specs.value_kinds import Choice, Text

SECTIONS = ("dataset", "extract", "head", "evaluate")
DATASET_KEYS = ("name", "root", "follow_links", "split", "max_bad")
"""Options of an extraction that say something of the pictures; ``data`` stands beside them."""
NOT_IN_RECIPES = ("shard", "out", "overwrite", "allow_code")
"""Options of one job or one run, which the command line gives. A recipe may come from elsewhere, so
it cannot permit the code that it names."""
EXTRACT_KEYS = tuple(
    name for name in ExtractSpec.option_names() if name not in (*DATASET_KEYS, *NOT_IN_RECIPES)
)
HEAD_KEYS = tuple(name for name in HeadSpec.option_names() if name not in ("head", *NOT_IN_RECIPES))
"""``kind`` stands beside them, for the option ``head``; and the kind's hyper-parameters."""
EVALUATE_KEYS = tuple(name for name in EvaluateSpec.option_names() if name not in NOT_IN_RECIPES)
EVALUATE_SPLITS = ("train", "val", "test", "all")

_MAX_TEXT = 2**15
_MAX_LINE = 2**12
"""Far above any recipe: a dotted key of many parts would keep the TOML parser busy for minutes."""
_MAX_DEPTH = 16
_MAX_NUMBER = 2**63
"""The whole numbers TOML has; Python would read larger ones, but not print them."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes
    ----------
    path : Path
    data : str
        DATA; a relative path in the file counts from the recipe's folder.
    extracts : tuple of ExtractSpec
        At least one; of the same data set.
    heads : tuple of HeadSpec
    evaluate : EvaluateSpec
    """

    path: Path
    data: str
    extracts: tuple[ExtractSpec, ...]
    heads: tuple[HeadSpec, ...]
    evaluate: EvaluateSpec


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; nothing is run.

    Raises
    ------
    NotFoundError
        There is no such file.
    UsageError
        It is no TOML, or has an unknown key (the nearest known one is named) or a value that
        cannot be meant.
    """
    shown = escape(str(path))
    text = _read(path, shown)
    if len(text) > _MAX_TEXT or any(len(line) > _MAX_LINE for line in text.split("\n")):
        raise UsageError(
            f"expected TOML of at most {_MAX_TEXT} characters, and {_MAX_LINE} a line, found more "
            f"in {shown}; is it a recipe?"
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = escape(str(error))
        raise UsageError(f"expected TOML in {shown}, found: {found}") from error
    try:
        _check_measure(document)
        return _parsed(path, document)
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error


def _read(path: Path, shown: str) -> str:
    try:
        return read_regular(path).decode("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(
            f"expected a recipe at {shown}, found none; 'featpipe run --list' names those that "
            "come with featpipe"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"expected UTF-8 text in {shown}, found: {error}") from error
    except ValueError as error:
        raise UsageError(f"expected the name of a recipe, found {str(path)!r}: {error}") from error


def _check_measure(document: dict[str, Any]) -> None:
    """Refuse what could not even be shown in a message."""
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise UsageError(
                f"expected tables and lists at most {_MAX_DEPTH} deep, found deeper ones"
            )
        if isinstance(value, int) and not -_MAX_NUMBER <= value < _MAX_NUMBER:
            raise UsageError("expected whole numbers of at most 64 bits, found a longer one")
        inner = value.values() if isinstance(value, dict) else value
        if isinstance(value, dict | list):
            waiting += [(one, depth + 1) for one in inner]


def _parsed(path: Path, document: dict[str, Any]) -> Recipe:
    _check_names("section", document, SECTIONS)
    dataset = _table(document, "dataset")
    _check_names("key of [dataset]", dataset, (*DATASET_KEYS, "data"))
    for key in ("name", "data"):
        if key not in dataset:
            raise UsageError(f"expected '{key}' in [dataset], found none")
    data = Text().check("'data' in [dataset]", dataset["data"])
    options = {name: value for name, value in dataset.items() if name != "data"}
    extracts = _extracts(document, options, path.parent)
    if not data.startswith("sklearn:"):
        data = os.path.normpath(path.parent / data)
    tables = document.get("head", [])
    if not _is_list_of_tables(tables):
        raise UsageError("expected at least one [[head]] table, found none; add one with a 'kind'")
    offers = offers_of(extracts)
    heads = tuple(_head(table, offers) for table in tables)
    evaluation = _evaluation(_table(document, "evaluate"))
    check_views(heads, evaluation, extracts)
    return Recipe(path, data, extracts, heads, evaluation)


def _extracts(
    document: dict[str, Any], dataset: dict[str, Any], folder: Path
) -> tuple[ExtractSpec, ...]:
    """The extractions: of one table ``[extract]``, or of several ``[[extract]]``."""
    tables, section = document.get("extract", {}), "[[extract]]"
    if not _is_list_of_tables(tables):
        if isinstance(tables, list):
            raise UsageError(f"expected [[extract]] tables, found {tables!r}")
        tables, section = [_table(document, "extract")], "[extract]"

    def label(name: str) -> str:
        return f"'{name}' in {'[dataset]' if name in DATASET_KEYS else section}"

    specs: list[ExtractSpec] = []
    for table in tables:
        _check_names(f"key of {section}", table, EXTRACT_KEYS)
        spec = ExtractSpec.from_options({**dataset, **table}, text=False, label=label)
        if spec.root is not None:
            spec = dataclasses.replace(spec, root=folder / spec.root)
        if spec in specs:
            raise UsageError(
                f"expected {section} tables that differ, found number {len(specs) + 1} to be "
                f"number {specs.index(spec) + 1} again; leave it out"
            )
        specs.append(spec)
    return tuple(specs)


def _head(table: dict[str, Any], offers: Sequence[Offer]) -> HeadSpec:
    label = _label_in("[[head]]")
    if "kind" not in table:
        hyper = {name for params in HEAD_PARAMS.values() for name in params.option_names()}
        if "head" in table:  # as the command line calls it
            raise UsageError(f"expected {label('kind')}, found 'head'; call it 'kind'")
        _check_names("key of [[head]]", table, ("kind", *HEAD_KEYS, *hyper))
    kind = HeadKind().check(label("kind"), table.get("kind"))
    for name in ("head", *NOT_IN_RECIPES):
        if name in table:
            raise UsageError(unknown_name("key of [[head]]", name, ("kind", *HEAD_KEYS)))
    given = {name: value for name, value in table.items() if name != "kind"}
    spec = HeadSpec.from_options({"head": kind, **given}, text=False, label=label)
    if spec.space is None:
        _check_choice(spec, offers)
        check_maps(spec, offers)
    return spec


def _check_choice(head: HeadSpec, offers: Sequence[Offer]) -> None:
    """Refuse a head that may mean several of the features that are extracted.

    One that fits none of them may mean others that the data set has.
    """
    fits = fitting(head, offers)
    open_keys = {k: v for k, v in differing(fits).items() if k not in ranging(head)}
    if open_keys:
        listed = ", ".join(
            f"'{k}' ({', '.join(str(one or 'default') for one in v)})" for k, v in open_keys.items()
        )
        raise UsageError(
            f"expected keys in every [[head]] that choose one of the features that are extracted, "
            f"found {len(fits)} that fit the head of kind {head.head!r}; they differ in {listed}: "
            "add one of these keys"
        )


def _evaluation(table: dict[str, Any]) -> EvaluateSpec:
    label = _label_in("[evaluate]")
    _check_names("key of [evaluate]", table, EVALUATE_KEYS)
    spec = EvaluateSpec.from_options(table, text=False, what="key of [evaluate]", label=label)
    if spec.split is not None:
        Choice(EVALUATE_SPLITS).check(label("split"), spec.split)
    return spec


def _label_in(section: str) -> Label:
    return lambda name: f"'{name}' in {section}"


def _is_list_of_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"expected a table [{name}], found {table!r}")
    return table


def _check_names(what: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            raise UsageError(unknown_name(what, name, known))
