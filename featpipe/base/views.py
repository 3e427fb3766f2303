"""How the files of heads name the views that were drawn in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class ViewsDocument(TypedDict):
    """So many views of one augmentation: views 1 to ``number``, beside the picture itself."""

    policy: str
    version: int
    seed: int
    number: int


def views_in(info: Mapping[str, Any]) -> ViewsDocument | None:
    """The views that a head's notes name; None if it was trained without, or names none rightly.

    Parameters
    ----------
    info : mapping
        See :class:`featpipe.runs.trained_head.TrainedHead`; it may come from elsewhere.
    """
    found: Any = info.get("views")
    if not isinstance(found, dict) or not isinstance(policy := found.get("policy"), str):
        return None
    counts: list[Any] = [found.get(name) for name in ("version", "seed", "number")]
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    version, seed, number = counts
    return {"policy": policy, "version": version, "seed": seed, "number": number}


def views_words(views: ViewsDocument) -> str:
    """``4 views (light)``; a seed other than 0 is told."""
    return counted_views(views["number"], views["policy"], views["seed"])


def counted_views(number: int, policy: str, seed: int) -> str:
    """As :func:`views_words`."""
    more = f", seed {seed}" if seed else ""
    return f"{number} view{'s' * (number != 1)} ({policy}{more})"
