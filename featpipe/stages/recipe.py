"""Recipes: a TOML file that chains extract, train-head and evaluate."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featpipe.base.disk import read_regular
from featpipe.base.errors import NotFoundError, StorageError, UsageError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.text import visible
from featpipe.datasets.files import SPLITS
from featpipe.datasets.splits import (
    DEFAULT_FRACTIONS,
    DEFAULT_VAL_FRACTION,
    check_shares,
    check_val_fraction,
)
from featpipe.engine.options import OPTION_NAMES, parse_options, unknown_name
from featpipe.heads import HEAD_KINDS, head_class
from featpipe.stages.evaluate import Evaluation, evaluate
from featpipe.stages.extract import ExtractResult, check_max_bad, check_name, extract
from featpipe.stages.train import TrainResult, check_seed, check_seeds, head_params, train_head

_DATASET_KEYS = {"name": str, "data": str, "root": str, "split": list, "max_bad": float}
_TRAIN_KEYS = {
    "kind": str, "tap": str, "pool": str, "seed": int, "val": float, "device": str,
    "sweep": bool, "seeds": int,
}  # fmt: skip
_EVALUATE_KEYS = {"on": str, "split": str}
_SECTIONS = ("dataset", "extract", "head", "evaluate")
_MAX_TEXT = 2**15
_MAX_LINE = 2**12
"""Far above any recipe: a dotted key of many parts would keep the TOML parser busy for minutes."""
_MAX_DEPTH = 16
_MAX_NUMBER = 2**63
"""The whole numbers TOML has; Python would read larger ones, but not print them."""


@dataclass(frozen=True)
class HeadRecipe:
    """One ``[[head]]`` table.

    Attributes
    ----------
    kind : str
    options : dict
        Arguments of ``train_head``.
    params : dict
        Hyper-parameters.
    """

    kind: str
    options: dict[str, Any]
    params: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes
    ----------
    path : Path
    dataset : dict
        ``name``, ``data`` and what else ``[dataset]`` holds.
    extract : dict
        Options of the extraction, by name.
    heads : list of HeadRecipe
    evaluate : dict
        ``on`` and ``split``.
    """

    path: Path
    dataset: dict[str, Any]
    extract: dict[str, Any]
    heads: list[HeadRecipe]
    evaluate: dict[str, Any] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """DATA; a relative path counts from the recipe's folder."""
        data = str(self.dataset["data"])
        if data.startswith("sklearn:") or Path(data).is_absolute():
            return data
        return os.path.normpath(self.path.parent / data)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe gave: one extraction, and a head with its evaluation for each ``[[head]]``."""

    recipe: str
    extract: ExtractResult
    heads: list[tuple[TrainResult, Evaluation]]

    def as_json(self) -> dict[str, Any]:
        """The result as the command prints it."""
        heads = [
            {"train": train.as_json(), "evaluation": done.as_json()} for train, done in self.heads
        ]
        return {"recipe": self.recipe, "extract": self.extract.as_json(), "heads": heads}


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe; nothing is run.

    Raises
    ------
    NotFoundError
        There is no such file.
    UsageError
        It is no TOML, or has an unknown key (the nearest known one is named) or a value of
        the wrong kind.
    """
    shown = visible(str(path))
    try:
        text = read_regular(path).decode("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise NotFoundError(
            f"expected a recipe at {shown}, found none; the ones that come with featpipe are in "
            "its 'pipelines' folder"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"expected UTF-8 text in {shown}, found: {error}") from error
    except ValueError as error:
        raise UsageError(f"expected the name of a recipe, found {str(path)!r}: {error}") from error
    if len(text) > _MAX_TEXT or any(len(line) > _MAX_LINE for line in text.split("\n")):
        raise UsageError(
            f"expected TOML of at most {_MAX_TEXT} characters, and {_MAX_LINE} a line, found more "
            f"in {shown}; is it a recipe?"
        )
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        found = visible(str(error))
        raise UsageError(f"expected TOML in {shown}, found: {found}") from error
    try:
        _check_measure(document)
        return _validated(path, document)
    except UsageError as error:
        raise UsageError(f"{shown}: {error}") from error


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


def _validated(path: Path, document: dict[str, Any]) -> Recipe:
    _known("section", document, _SECTIONS)
    dataset = _table(document, "dataset")
    _typed("[dataset]", dataset, _DATASET_KEYS)
    for key in ("name", "data"):
        if key not in dataset:
            raise UsageError(f"expected '{key}' in [dataset], found none")
    check_name(Path(), dataset["name"])
    check_shares(dataset.get("split", DEFAULT_FRACTIONS))
    check_max_bad(dataset.get("max_bad", 1.0))
    options = _table(document, "extract")
    _known("key of [extract]", options, OPTION_NAMES)
    for key in ("tap", "pool"):
        given = options.get(key, "default")
        several = given if isinstance(given, list) else [given]
        if not several or not all(isinstance(name, str) for name in several):
            raise UsageError(
                f"expected one name or a list of names for '{key}' in [extract], found {given!r}"
            )
    parse_options(options)
    heads = document.get("head", [])
    if not isinstance(heads, list) or not heads or not all(isinstance(h, dict) for h in heads):
        raise UsageError("expected at least one [[head]] table, found none; add one with a 'kind'")
    scoring = _table(document, "evaluate")
    _typed("[evaluate]", scoring, _EVALUATE_KEYS)
    if scoring.get("split", "test") not in (*SPLITS, "all"):
        raise UsageError(f"expected split = train, val, test or all, found {scoring['split']!r}")
    for table in heads:
        for key in ("tap", "pool"):
            if isinstance(options.get(key), list) and len(options[key]) > 1 and key not in table:
                raise UsageError(
                    f"expected '{key}' in every [[head]], as [extract] has several, found none "
                    f"in that of kind {table.get('kind')!r}"
                )
    return Recipe(path, dataset, options, [_head(table) for table in heads], scoring)


def check_data(recipe: Recipe) -> None:
    """Check that the recipe's own DATA is there.

    Raises
    ------
    NotFoundError
    """
    if not recipe.data.startswith("sklearn:") and not os.path.exists(recipe.data):
        raise NotFoundError(
            f"expected the pictures of recipe {visible(str(recipe.path))} in "
            f"{visible(recipe.data)}, found nothing there; name yours with --data"
        )


def _head(table: dict[str, Any]) -> HeadRecipe:
    kind = table.get("kind")
    if kind not in HEAD_KINDS:
        raise UsageError(
            f"expected kind = one of {', '.join(HEAD_KINDS)} in [[head]], found {kind!r}"
        )
    params = head_class(kind).param_names()
    for other in HEAD_KINDS:
        for key in set(table) & set(head_class(other).param_names()) - {*_TRAIN_KEYS, *params}:
            raise UsageError(
                f"expected only what a '{kind}' head has ({', '.join(params)}) in its [[head]], "
                f"found '{key}', which is for '{other}'"
            )
    _known("key of [[head]]", table, (*_TRAIN_KEYS, *params))
    _typed("[[head]]", {k: v for k, v in table.items() if k in _TRAIN_KEYS}, _TRAIN_KEYS)
    check_seed(table.get("seed", 0))
    check_seeds(kind, table.get("seed", 0), table.get("seeds", 1), sweep=table.get("sweep", False))
    check_val_fraction(table.get("val", DEFAULT_VAL_FRACTION))
    given = {k: v for k, v in table.items() if k in params}
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"expected a number for '{key}' in [[head]], found {value!r}")
    head_class(kind)(**given)
    options = {k: v for k, v in table.items() if k in _TRAIN_KEYS and k != "kind"}
    return HeadRecipe(kind, options, given)


def _table(document: dict[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise UsageError(f"expected a table [{name}], found {table!r}")
    return table


def _known(what: str, table: Mapping[str, Any], known: Any) -> None:
    for name in table:
        if name not in known:
            raise UsageError(unknown_name(what, name, known))


def _typed(where: str, table: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    _known(f"key of {where}", table, kinds)
    for name, value in table.items():
        kind = kinds[name]
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise UsageError(
                f"expected a {_KIND_NAMES[kind]} for '{name}' in {where}, found {value!r}"
            )
        if kind is list and not all(isinstance(v, int | float) for v in value):
            raise UsageError(f"expected a list of numbers for '{name}' in {where}, found {value!r}")


_KIND_NAMES = {
    bool: "truth value",
    str: "text",
    int: "whole number",
    float: "number",
    list: "list of numbers",
}


def run_recipe(
    recipe: Recipe,
    *,
    cache: Path,
    data: str | None = None,
    out: Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> RecipeResult:
    """Extract, then train and evaluate every head.

    Parameters
    ----------
    recipe : Recipe
    cache : Path
    data : str, optional
        Instead of the recipe's DATA; a relative path counts from the current folder.
    out : Path, optional
        Run folders are made in it, one per head, named by number and kind.
    device : str, optional
        Instead of the recipe's.
    overwrite : bool
        Replace heads that ``out`` already holds.
    progress : Progress
    """
    if data is None:
        check_data(recipe)
    options = recipe.extract if device is None else {**recipe.extract, "device": device}
    request, engine_options = parse_options(options)
    dataset = recipe.dataset
    extracted = extract(
        data if data is not None else recipe.data,
        name=dataset["name"],
        cache=cache,
        request=request,
        options=engine_options,
        fractions=dataset.get("split", DEFAULT_FRACTIONS),
        root=recipe.path.parent / dataset["root"] if "root" in dataset else None,
        max_bad=float(dataset.get("max_bad", 1.0)),
        progress=progress,
    )
    done = []
    for number, head in enumerate(recipe.heads, 1):
        given = dict(head.options)
        trained = train_head(
            dataset["name"],
            cache=cache,
            head=head.kind,
            params=head_params(head.kind, head.params),
            val_fraction=float(given.pop("val", DEFAULT_VAL_FRACTION)),
            out=None if out is None else out / f"{number}-{head.kind}",
            overwrite=overwrite,
            progress=progress,
            **{**given, **({} if device is None else {"device": device})},
        )
        scoring = {k: v for k, v in recipe.evaluate.items() if v is not None}
        done.append((trained, evaluate(trained.head, cache=cache, **scoring)))
    return RecipeResult(str(recipe.path), extracted, done)
