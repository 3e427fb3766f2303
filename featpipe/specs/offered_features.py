"""Which of the features that a recipe extracts a head means."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from featpipe.specs.extract import ExtractSpec
from featpipe.specs.spaces import ALL, SpaceQuery

Offer = Mapping[str, Any]
"""Features that a head can mean: values by the names of the options that ask for them."""

CHOOSING = tuple(n for n in SpaceQuery.option_names() if n in ExtractSpec.option_names())
"""Options that both an extraction and a head have: by these a head chooses its features."""


def offers_of(extracts: Sequence[ExtractSpec]) -> list[Offer]:
    """What extractions offer: one for each tap and pooling of each, alike ones once."""
    found: dict[tuple[Any, ...], Offer] = {}
    for extract in extracts:
        values = [getattr(extract, name) for name in CHOOSING]
        choices = [value if isinstance(value, tuple) else (value,) for value in values]
        for chosen in itertools.product(*choices):
            found.setdefault(chosen, dict(zip(CHOOSING, chosen, strict=True)))
    return list(found.values())


def fitting(query: SpaceQuery, offers: Sequence[Offer]) -> list[Offer]:
    """The offers that have all that a query asks for; one it leaves open fits."""
    return [offer for offer in offers if all(_has(offer, query, name) for name in CHOOSING)]


def _has(offer: Offer, query: SpaceQuery, name: str) -> bool:
    value = getattr(query, name)
    if value in (None, ALL):
        return True
    if name == "precision" and offer[name] == "auto":
        # What it means is decided when the extraction begins.
        return True
    return offer[name] in (value if isinstance(value, tuple) else (value,))


def ranging(query: SpaceQuery) -> set[str]:
    """The options in which one query means several feature spaces."""
    values = {name: getattr(query, name) for name in CHOOSING}
    return {name for name, value in values.items() if value == ALL or isinstance(value, tuple)}


def differing(offers: Sequence[Offer]) -> dict[str, list[Any]]:
    """The options in which offers differ, with their values."""
    values = {name: list(dict.fromkeys(offer[name] for offer in offers)) for name in CHOOSING}
    return {name: found for name, found in values.items() if len(found) > 1}


def agreed(query: SpaceQuery, offers: Sequence[Offer]) -> dict[str, Any]:
    """The options in which all offers have one value, unless the query ranges over them."""
    left = set(differing(offers)) | ranging(query)
    return {name: offers[0][name] for name in CHOOSING if offers and name not in left}
