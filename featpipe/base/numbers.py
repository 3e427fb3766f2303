"""Numbers from files that may say anything."""

from __future__ import annotations

import math


def is_finite(value: object) -> bool:
    """Whether a value is a number, and one that a float can be."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False
