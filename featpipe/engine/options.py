"""Option names as people write them: flags, recipe keys and keywords are the same words."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from featpipe.base.errors import UsageError
from featpipe.engine.loop import EngineOptions
from featpipe.engine.plan import FeatureRequest

_SEVERAL = {"tap": "taps", "pool": "pools"}
_REQUEST = {f.name for f in dataclasses.fields(FeatureRequest)} - set(_SEVERAL.values())
_ENGINE = {f.name for f in dataclasses.fields(EngineOptions)}
OPTION_NAMES = frozenset(_REQUEST | _ENGINE | set(_SEVERAL))


def parse_options(given: Mapping[str, Any]) -> tuple[FeatureRequest, EngineOptions]:
    """What to compute and how to run, from options by name; None and ``auto`` mean the default.

    ``tap`` and ``pool`` take one name or several.

    Raises
    ------
    UsageError
        An option is unknown (the nearest known one is named) or has the wrong kind of value.
    """
    request: dict[str, Any] = {}
    engine: dict[str, Any] = {}
    for name, value in given.items():
        if name not in OPTION_NAMES:
            raise UsageError(unknown_name("option", name, OPTION_NAMES))
        if value is None:
            continue
        if name in _ENGINE:
            if value != "auto":
                engine[name] = _whole_number(name, value)
        elif name in _SEVERAL:
            several = [value] if isinstance(value, str) else value
            is_list = isinstance(several, list | tuple)
            if not is_list or not all(isinstance(item, str) for item in several):
                raise UsageError(
                    f"expected one name or a list of names for '{name}', found {value!r}"
                )
            request[_SEVERAL[name]] = tuple(several)
        elif name == "size":
            request[name] = _whole_number(name, value)
        else:
            request[name] = str(value)
    return FeatureRequest(**request), EngineOptions(**engine)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """A message for a name nobody knows, with the nearest known one."""
    near = difflib.get_close_matches(name, sorted(known), 1, 0.0)
    return f"expected a known {what}, found {name!r}; did you mean '{near[0]}'?"


def _whole_number(name: str, value: object) -> int:
    try:
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return int(str(value))
    except ValueError:
        raise UsageError(
            f"expected a whole number (or 'auto' where that is a choice) for "
            f"'{name.replace('_', '-')}', found {value!r}"
        ) from None
