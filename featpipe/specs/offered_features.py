"""Which of the features that a recipe extracts a head means."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from featpipe.base.errors import UsageError
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.fields import Spec
from featpipe.specs.head_params import params_of
from featpipe.specs.heads import HeadSpec
from featpipe.specs.spaces import ALL, SpaceQuery

Offer = Mapping[str, Any]
"""Features that a head can mean: values by the names of the options that ask for them."""

CHOOSING = tuple(n for n in ExtractSpec.option_names() if n in SpaceQuery.option_names())
"""Options that both an extraction and a head have: by these a head chooses its features."""

_UNDECIDED = (None, "auto")
"""What they mean is decided when the extraction begins: until then, they fit any value."""


WHOLE, SUFFIX = "none", "suffix"
"""The pooling that leaves maps as they are, and the head that is a part of the backbone."""


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


def check_maps(head: HeadSpec, offers: Sequence[Offer]) -> None:
    """Refuse a head on maps where the features that it means are none, or no cut for a suffix.

    Raises
    ------
    UsageError
    """
    if params_of(head.head).joins_taps:
        return
    fits = fitting(head, offers)
    pooled = [offer["pool"] for offer in fits if offer["pool"] not in (WHOLE, *_UNDECIDED)]
    if pooled:
        raise UsageError(
            f"expected features with pool = {WHOLE!r} for the [[head]] of kind {head.head!r}, "
            f"which is trained on maps, found {pooled[0]!r}; change 'pool' in [extract], or choose "
            "other features by a key of that [[head]]"
        )
    if head.head == SUFFIX:
        _check_cuts(fits)


def _check_cuts(offers: Sequence[Offer]) -> None:
    # Not at the top: only the graph of a network says where it can be cut, and needs torch.
    from featpipe.backbones.catalog import get_backbone

    for offer in offers:
        backbone = get_backbone(offer["backbone"])
        try:
            backbone.suffix(offer["tap"], offer["size"] or backbone.default_size)
        except UsageError as error:
            raise UsageError(
                f"expected another 'tap' in [extract] for a [[head]] of kind {SUFFIX!r}: {error}"
            ) from error


def agreed(query: Spec, offers: Sequence[Offer]) -> dict[str, Any]:
    """The options in which all offers have one value, unless the query ranges over them."""
    left = set(differing(offers)) | ranging(query)
    return {name: offers[0][name] for name in CHOOSING if offers and name not in left}
