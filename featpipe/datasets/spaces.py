"""The feature spaces of a data set: choosing one, and requiring one."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import (
    DamageError,
    FeatpipeError,
    NotFoundError,
    SpaceMismatchError,
    UsageError,
)
from featpipe.base.joined_spaces import joining_problem, repeated
from featpipe.base.own_code import is_own_code
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.source_command import extract_command
from featpipe.specs.extract import ALL_PICTURES, FeatureOptions
from featpipe.specs.fields import default_of, flag
from featpipe.specs.spaces import SpaceQuery

ErrorT = TypeVar("ErrorT", bound=FeatpipeError)


def choose_space(dataset: Dataset, query: SpaceQuery) -> tuple[FeatureSpace, str]:
    """The one feature space of a data set that has the fields asked for.

    Returns
    -------
    space : FeatureSpace
    weights : str
        How its weights were named when its features were made.

    Raises
    ------
    NotFoundError
        No space has them.
    UsageError
        Several spaces have them; the fields in which those differ are named.

    Where several spaces are held, a table with the options that choose each of them is a note of
    the error (PEP 678).
    """
    held = _held(dataset)
    query = _with_own_tap_name(query, held)
    fitting = [space for space in held if _has(space, _weights_name(dataset, space), query)]
    if not held:
        raise NotFoundError(
            f"expected features of data set '{dataset.name}', found none; they were removed, or "
            f"never finished: run '{extract_command(dataset)}' again"
        )
    if not fitting:
        asked = _asked(query)
        if "view" not in asked and "space" not in asked:
            # Whoever asks for pictures themselves is not helped by views of them.
            held = [space for space in held if not space.view] or held
        missing = NotFoundError(
            f"expected features of data set '{dataset.name}' with {_words(asked)}, found: "
            f"{_listed(dataset, held, asked) or 'none'}; extract them, or choose one of those"
        )
        raise _with_table(missing, dataset, held)
    if len(fitting) > 1:
        choices = _differences(dataset, fitting)
        several = UsageError(
            f"expected options that choose one of the feature spaces of '{dataset.name}', found "
            f"{len(fitting)} spaces that differ in {', '.join(choices)}; for the "
            f"first add {_choosing(dataset, fitting)[0]}"
        )
        raise _with_table(several, dataset, fitting)
    space = fitting[0]
    weights = _weights_name(dataset, space)
    if not weights:
        raise DamageError(
            f"expected data set '{dataset.name}' to name the weights of {space.name}, found none; "
            "run the same 'featpipe extract' again"
        )
    return space, weights


def choose_spaces(
    dataset: Dataset, queries: Sequence[SpaceQuery], *, ranging: Sequence[str] = ()
) -> list[tuple[tuple[FeatureSpace, ...], str]]:
    """For each query the one feature space that fits: spaces whose rows can lie side by side.

    Parameters
    ----------
    dataset : Dataset
    queries : sequence of SpaceQuery
    ranging : sequence of str
        Fields of which every value is taken that features of all queries have.

    Returns
    -------
    list of (tuple of FeatureSpace, str)
        For each value of the ranging fields, the spaces in the order of the queries, and how their
        weights were named.

    Raises
    ------
    NotFoundError, UsageError
        As :func:`choose_space`; or the spaces do not come from one pass of one network.
    """
    if not ranging:
        return [_joined(dataset, [choose_space(dataset, query) for query in queries])]
    held = _held(dataset)
    found: list[dict[tuple[Any, ...], None]] = []
    for query in queries:
        asked = _with_own_tap_name(query, held)
        fitting = [space for space in held if _has(space, _weights_name(dataset, space), asked)]
        values = (tuple(_fields(space)[name] for name in ranging) for space in fitting)
        found.append(dict.fromkeys(values))
    common = [one for one in found[0] if all(one in others for others in found)]
    if not common and all(found):
        raise NotFoundError(
            f"expected {' and '.join(map(flag, ranging))} that features of every {flag('tap')} "
            f"have in data set '{dataset.name}', found none; extract those taps together"
        )
    given = [dict(zip(ranging, one, strict=True)) for one in common] or [{}]
    return [
        _joined(
            dataset,
            [choose_space(dataset, replace(query, **one)) for query in queries],
        )
        for one in given
    ]


def unpooled_where_open(dataset: Dataset, queries: Sequence[SpaceQuery]) -> list[SpaceQuery]:
    """Queries for a head that takes maps: each asks for those that are not pooled, if there are.

    Where there are none, the query stays open, so that a message says what there is.
    """
    found = []
    for query in queries:
        unpooled = replace(query, pool="none")
        asked = _with_own_tap_name(unpooled, held := _held(dataset))
        is_there = any(_has(space, _weights_name(dataset, space), asked) for space in held)
        found.append(unpooled if is_there else query)
    return found


def _joined(
    dataset: Dataset, found: list[tuple[FeatureSpace, str]]
) -> tuple[tuple[FeatureSpace, ...], str]:
    """Spaces of one pass, and the name of their weights."""
    spaces, weights = tuple(space for space, _ in found), found[0][1]
    if twice := repeated(spaces):
        raise UsageError(f"expected different taps, found {twice.tap} twice; leave one out")
    problem = joining_problem(spaces)
    for space, name in found:
        if name != weights and problem is None:
            problem = f"{space.tap} differs from {spaces[0].tap} in weights: {name}, not {weights}"
    if problem is not None:
        alike = [replace(spaces[0], tap=space.tap, pooling=space.pooling) for space in spaces]
        raise UsageError(
            f"expected features of one extraction side by side, found in data set "
            f"'{dataset.name}' that {problem}; extract them together: "
            + extract_command(dataset, extract_options(alike, weights))
        )
    return spaces, weights


def _weights_name(dataset: Dataset, space: FeatureSpace) -> str:
    return dataset.info.weights.get(space.id, "")


def _fields(space: FeatureSpace) -> dict[str, object]:
    """What a query can ask of a space, except for its weights, by the names of the options."""
    return {
        "backbone": space.backbone,
        "tap": space.tap,
        "pool": space.pooling,
        "size": space.preprocessing.size,
        "resize": space.preprocessing.resize,
        "channels": space.preprocessing.channels,
        "decoder": space.preprocessing.decoder,
        "precision": space.precision,
        "dtype": space.dtype,
        "view": space.view,
    }


def _has(space: FeatureSpace, weights: str, query: SpaceQuery) -> bool:
    if query.weights not in (None, weights) and not _is_digest(query.weights, space):
        return False
    fields = _fields(space)
    if query.space is not None:
        if not space.is_called(query.space):
            return False
        if query.view == 0:
            # View 0 may be no more than the default, and the id says which one is meant.
            del fields["view"]
    return all(getattr(query, name) in (None, value) for name, value in fields.items())


def _is_digest(weights: str | None, space: FeatureSpace) -> bool:
    """Whether a text is the beginning of the digest of a space's weights."""
    return weights is not None and len(weights) >= 8 and space.weights.startswith(weights)


def _held(dataset: Dataset) -> list[FeatureSpace]:
    """The feature spaces of a data set, each once."""
    spaces = [FeatureSpace.from_json(text) for text in dataset.spaces]
    return list({space.id: space for space in spaces}.values())


def _with_own_tap_name(query: SpaceQuery, held: list[FeatureSpace]) -> SpaceQuery:
    """The query with the name that spaces have for its tap: networks have several for a place."""
    if query.tap is None or any(space.tap == query.tap for space in held):
        return query
    for name in dict.fromkeys(space.backbone for space in held):
        if is_own_code(name):
            continue  # a cache may come from elsewhere
        try:
            tap = get_backbone(name).tap(query.tap).name
        except UsageError:
            continue
        return replace(query, tap=tap)
    return query


def _asked(query: SpaceQuery) -> dict[str, object]:
    """The fields that a query names, with their values; view 0 is not worth a word."""
    given = {name: getattr(query, name) for name in SpaceQuery.option_names()}
    return {name: v for name, v in given.items() if v is not None and (name, v) != ("view", 0)}


def _words(asked: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in asked.items()) or "view 0"


def _differing(dataset: Dataset, spaces: list[FeatureSpace]) -> dict[str, list[object]]:
    """The options in which spaces differ, with their values."""
    tables = [space_options(dataset, space) for space in spaces]
    values = {name: list(dict.fromkeys(table[name] for table in tables)) for name in tables[0]}
    return {name: found for name, found in values.items() if len(found) > 1}


def _differences(dataset: Dataset, spaces: list[FeatureSpace]) -> list[str]:
    """In what spaces differ, with the values: options, their views' augmentation, else weights."""
    found = {flag(name): values for name, values in _differing(dataset, spaces).items()}
    if len(drawn := _augmentations(spaces)) > 1:
        found["augmentation"] = [*drawn]
    found = found or {flag("weights"): [space.weights[:12] for space in spaces]}
    return [f"{name} ({', '.join(map(str, values))})" for name, values in found.items()]


def _augmentations(spaces: Sequence[FeatureSpace]) -> list[str]:
    """Policy and seed of each augmentation of views, and its version where that alone differs."""
    drawn = list(dict.fromkeys(one for s in spaces if (one := s.augmentation) is not None))
    words = [f"{one.policy} seed {one.seed}" for one in drawn]
    if len(set(words)) < len(words):
        words = [f"{text} version {one.version}" for text, one in zip(words, drawn, strict=True)]
    return words


def space_options(dataset: Dataset, space: FeatureSpace) -> dict[str, object]:
    """Every option of a query that a data set's space has a value for, except for its id."""
    return {"weights": _weights_name(dataset, space), **_fields(space)}


def _choosing(dataset: Dataset, spaces: list[FeatureSpace]) -> list[str]:
    """Of each of several spaces the fewest options that choose it among them, to be copied."""
    tables = [space_options(dataset, space) for space in spaces]
    differing = _differing(dataset, spaces)
    for count in range(1, len(differing) + 1):
        for names in itertools.combinations(differing, count):
            rows = [tuple(table[name] for name in names) for table in tables]
            if len(set(rows)) == len(rows):
                return [_as_flags(names, row) for row in rows]
    return [f"{flag('space')} {_short_id(space, spaces)}" for space in spaces]


def _as_flags(names: Iterable[str], values: Iterable[object]) -> str:
    pairs = zip(names, values, strict=True)
    return " ".join(f"{flag(name)} {shlex.quote(str(value))}" for name, value in pairs)


def _short_id(space: FeatureSpace, spaces: list[FeatureSpace]) -> str:
    """A beginning of a space's id that no other one has."""
    others = [other.id for other in spaces if other.id != space.id]
    length = _SHOWN_ID
    while any(other.startswith(space.id[:length]) for other in others):
        length += 1
    return space.id[:length]


def _with_table(error: ErrorT, dataset: Dataset, spaces: list[FeatureSpace]) -> ErrorT:
    """The error with a table of the spaces as its note, if there are several."""
    if len(spaces) < 2:
        return error
    rows = [["options that choose it", "or", "features"]]
    for space, options in zip(spaces, _choosing(dataset, spaces), strict=True):
        shape = " x ".join(map(str, space.shape))
        shown = ("view",) if space.view else ()
        what = f"{_listed(dataset, [space], shown)}, {shape} {space.dtype}"
        rows.append([options, f"{flag('space')} {_short_id(space, spaces)}", what])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        error.add_note("  ".join(map(str.ljust, row, widths)).rstrip())
    return error


def _listed(dataset: Dataset, spaces: list[FeatureSpace], fields: Iterable[str]) -> str:
    """Spaces in words; what is not said of every space is said of it where ``fields`` names it."""
    words = []
    for space in spaces:
        more = {"weights": _weights_name(dataset, space), **_fields(space)}
        rare = [f"{name} {more[name]}" for name in _RARELY_SHOWN if name in fields]
        if space.augmentation is not None and "view" in fields:
            rare[-1] += f" of {space.augmentation.policy} seed {space.augmentation.seed}"
        words.append(
            f"{space.tap}/{space.pooling} ({space.backbone} {space.preprocessing.size}px "
            f"{space.preprocessing.resize} {space.precision}{''.join(f', {r}' for r in rare)})"
        )
    return ", ".join(words)


_SHOWN_ID = 8
_RARELY_SHOWN = ("weights", "decoder", "dtype", "view")


def extract_options(spaces: Sequence[FeatureSpace], weights: str) -> str:
    """The options of ``extract`` that compute features of spaces in one pass, to be copied.

    Parameters
    ----------
    spaces : sequence of FeatureSpace
        They differ in tap and pooling alone.
    weights : str
        How their weights are named.
    """
    values: dict[str, tuple[object, ...]] = {"weights": (weights,)}
    for space in spaces:
        for name, value in _fields(space).items():
            values[name] = tuple(dict.fromkeys((*values.get(name, ()), value)))
    del values["view"]
    given = []
    for name, several in values.items():
        default = default_of(FeatureOptions, name)
        if several != (default if isinstance(default, tuple) else (default,)):
            given += [(name, value) for value in several]
    return _as_flags([name for name, _ in given], [value for _, value in given])


def options_of_extractions(dataset: Dataset) -> list[str]:
    """The options of ``extract`` that compute each feature space of a data set, to be copied."""
    held = spaces_of(dataset)
    found = []
    for space, weights in held:
        if space.view:
            continue
        of_pictures = extract_options([space], weights)
        views = [view for view, _ in held if view.view and view.original == space]
        numbers: dict[tuple[str, int, tuple[str, ...]], int] = {}
        for view in views:
            if (drawn := view.augmentation) is not None:
                splits = dataset.info.covers.get(view.id, (ALL_PICTURES,))
                key = (drawn.policy, drawn.seed, splits)
                numbers[key] = max(numbers.get(key, 0), view.view)
        of_views = [view_options(*key, number) for key, number in numbers.items()]
        found += [f"{of_pictures} {options}".lstrip() for options in of_views or [""]]
    return [options.rstrip() for options in found]


def view_options(policy: str, seed: int, splits: Sequence[str], number: int) -> str:
    """The options of ``extract`` that compute so many views of the pictures of splits."""
    names = ["views", "augment", "augment_seed", *("views_of" for _ in splits)]
    return _as_flags(names, [number, policy, seed, *splits])


def spaces_of(dataset: Dataset) -> list[tuple[FeatureSpace, str]]:
    """The feature spaces of a data set, each with the name of its weights."""
    return [(space, _weights_name(dataset, space)) for space in _held(dataset)]


def require_spaces(dataset: Dataset, wanted: Sequence[FeatureSpace], weights: str) -> None:
    """Check that a data set has features of exactly these spaces.

    Parameters
    ----------
    dataset : Dataset
    wanted : sequence of FeatureSpace
    weights : str
        How their weights are named; for the message.

    Raises
    ------
    SpaceMismatchError
        It lacks one; the fields in which its nearest one differs are named.
    """
    held = _held(dataset)
    ids = {space.id for space in held}
    missing = [space for space in wanted if space.id not in ids]
    if not missing:
        return
    first = missing[0]
    differences = min((first.differences(space) for space in held), key=len, default=[])
    if any(difference.startswith("tap:") for difference in differences):
        # What follows from another tap would only distract from it.
        consequences = ("weights:", "shape:")
        differences = [d for d in differences if not d.startswith(consequences)]
    found = f"others ({'; '.join(differences)})" if held else "no features at all"
    together = [space for space in missing if space.dtype == first.dtype]
    raise SpaceMismatchError(
        f"expected features of space {' and '.join(space.name for space in missing)} in data set "
        f"'{dataset.name}', found {found}; extract them: "
        + extract_command(dataset, extract_options(together, weights))
    )
