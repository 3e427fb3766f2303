"""Where the outputs of a network go: to the stores of each view."""

from __future__ import annotations

from collections.abc import Sequence

from featpipe.base.space import FeatureSpace


class ViewTargets:
    """Feature spaces by their views.

    The network gives one output per original space, whichever view its pixels are of.

    Parameters
    ----------
    spaces : sequence of FeatureSpace
        Those of one pass.

    Attributes
    ----------
    originals : list of FeatureSpace
        The spaces that the network computes, of view 0, each once.
    numbers : tuple of int
        The views, in ascending order.
    targets : dict of int to list of (int, int)
        For each view, the number of an output with that of the space that it belongs to.
    """

    def __init__(self, spaces: Sequence[FeatureSpace]) -> None:
        if len({(space.preprocessing, space.augmentation) for space in spaces}) > 1:
            raise ValueError("one pass makes the pixels of one preprocessing and augmentation")
        self.originals = list({space.original.id: space.original for space in spaces}.values())
        outputs = {space.id: number for number, space in enumerate(self.originals)}
        self.targets: dict[int, list[tuple[int, int]]] = {}
        for number, space in enumerate(spaces):
            pairs = self.targets.setdefault(space.view, [])
            pairs.append((outputs[space.original.id], number))
        self.numbers = tuple(sorted(self.targets))
