"""Feature spaces whose rows lie side by side: taps of one network, computed in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featpipe.base.space import FeatureSpace

MAY_DIFFER = ("weights", "tap", "pooling", "dtype", "shape")
"""Fields in which joined spaces may differ. The digest of weights covers those up to the tap."""


def joining_problem(spaces: Sequence[FeatureSpace]) -> str | None:
    """Why different spaces cannot lie side by side; None if they can."""
    first, *others = spaces
    for other in others:
        for difference in other.differences(first):
            if difference.partition(":")[0] not in MAY_DIFFER:
                return f"{other.tap} differs from {first.tap} in {difference}"
    return None


def repeated(spaces: Sequence[FeatureSpace]) -> FeatureSpace | None:
    """The first space that occurs twice."""
    return next((space for i, space in enumerate(spaces) if space in spaces[:i]), None)


def joined_shape(spaces: Sequence[FeatureSpace]) -> tuple[int, ...]:
    """Shape of one row: that of the one space, or (d,) of several flattened ones."""
    if len(spaces) == 1:
        return spaces[0].shape
    return (sum(int(np.prod(space.shape)) for space in spaces),)


def joined_words(spaces: Sequence[FeatureSpace]) -> str:
    """What tells them apart from others at a glance, as :attr:`FeatureSpace.words`."""
    first, poolings = spaces[0], joined_poolings(spaces)
    taps = joined_taps(spaces)
    if " + " in poolings:
        taps, poolings = " + ".join(f"{space.tap} {space.pooling}" for space in spaces), ""
    parts = (first.backbone, taps, poolings, f"{first.preprocessing.size}px")
    return " ".join(filter(None, parts))


def joined_taps(spaces: Sequence[FeatureSpace]) -> str:
    """``block3_pool + block5_pool``."""
    return " + ".join(space.tap for space in spaces)


def joined_poolings(spaces: Sequence[FeatureSpace]) -> str:
    """``avg``, or ``none + avg`` where they differ."""
    poolings = [space.pooling for space in spaces]
    return poolings[0] if len(set(poolings)) == 1 else " + ".join(poolings)
