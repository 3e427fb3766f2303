"""Mean and standard deviation of scores that differ by seed or by try."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np

from featpipe.heads.base import HistoryRow


class Spread(TypedDict):
    """Mean, and sample standard deviation (n - 1 below the root); null of a single value."""

    mean: float
    sd: float | None


class SeedsDocument(TypedDict):
    """One combination over its seeds; the scores are those of seeds that did not diverge."""

    params: dict[str, float | int | str | None]
    seeds: int
    diverged: int
    val_loss: Spread | None
    val_accuracy: Spread | None


def spread_of(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "sd": sd}


def over_seeds(params: dict[str, Any], kept: Sequence[HistoryRow | None]) -> SeedsDocument:
    """A combination's scores from the kept row of each seed; None is a seed that diverged."""
    rows = [row for row in kept if row is not None]
    return {
        "params": params,
        "seeds": len(kept),
        "diverged": len(kept) - len(rows),
        "val_loss": spread_of([row.val_loss for row in rows]) if rows else None,
        "val_accuracy": spread_of([row.val_accuracy for row in rows]) if rows else None,
    }
