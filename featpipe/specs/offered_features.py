"""Which of the features that a recipe extracts a head means."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from featpipe.specs.extract import ExtractSpec
from featpipe.specs.fields import Spec
from featpipe.specs.spaces import ALL, SpaceQuery

Offer = Mapping[str, Any]
"""Features that a head can mean: values by the names of the options that ask for them."""

CHOOSING = tuple(n for n in ExtractSpec.option_names() if n in SpaceQuery.option_names())
"""Options that both an extraction and a head have: by these a head chooses its features."""

_UNDECIDED = (None, "auto")
"""What they mean is decided when the extraction begins: until then, they fit any value."""


def offers_of(extracts: Sequence[ExtractSpec]) -> list[Offer]:
    """What extractions offer: one for each tap and pooling of each, alike ones once."""
    found: dict[tuple[Any, ...], Offer] = {}
    for extract in extracts:
        values = [extract.taps if n == "tap" else getattr(extract, n) for n in CHOOSING]
        choices = [value if isinstance(value, tuple) else (value,) for value in values]
        for chosen in itertools.product(*choices):
            found.setdefault(chosen, dict(zip(CHOOSING, chosen, strict=True)))
    return list(found.values())


def fitting(query: Spec, offers: Sequence[Offer]) -> list[Offer]:
    """The offers that have all that a query asks for; one it leaves open fits."""
    return [offer for offer in offers if all(_has(offer, query, name) for name in CHOOSING)]


def _has(offer: Offer, query: Spec, name: str) -> bool:
    wanted = _wanted(query, name)
    if offer[name] in _UNDECIDED:
        return True
    return not wanted or offer[name] in wanted


def _wanted(query: Spec, name: str) -> tuple[Any, ...]:
    """The values that a query asks for; none where any will do."""
    value = getattr(query, name)
    values = value if isinstance(value, tuple) else (value,)
    return () if values in ((None,), (ALL,)) else values


def ranging(query: Spec) -> set[str]:
    """The options in which one query means several feature spaces."""
    is_all = {name for name in CHOOSING if getattr(query, name) in (ALL, (ALL,))}
    return is_all | {name for name in CHOOSING if len(_wanted(query, name)) > 1}


def differing(offers: Sequence[Offer]) -> dict[str, list[Any]]:
    """The options in which offers differ, with their values."""
    values = {name: list(dict.fromkeys(offer[name] for offer in offers)) for name in CHOOSING}
    return {name: found for name, found in values.items() if len(found) > 1}


def agreed(query: Spec, offers: Sequence[Offer]) -> dict[str, Any]:
    """The options in which all offers have one value, unless the query ranges over them."""
    left = set(differing(offers)) | ranging(query)
    return {name: offers[0][name] for name in CHOOSING if offers and name not in left}
