"""Which rows of a data set's feature spaces are measured, and how deep in the network they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.pixels import PIXELS
from featpipe.base.errors import FeatpipeError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.heads.base import blocks_of

MAX_FLAT = 16_000_000
"""Numbers in all training rows up to which whole maps are measured too: 64 MB as float32."""
STORED, MEAN, FLAT = "stored", "mean over places", "flattened"
RETRAINED_SHARE = 1 / 3
"""Share of the network's weights that lies behind the tap of a suffix where no better tap is known:
about the last block (VGG16: block5, ResNet-50: most of layer4)."""


@dataclass(frozen=True)
class TapRows:
    """Rows of one feature space, as a linear head is trained on them.

    Attributes
    ----------
    space : FeatureSpace
    weights : str
        How its weights are named.
    how : str
        ``stored``, ``mean over places`` or ``flattened``.
    depth : int
        Its tap's place among the cached ones of its network, the shallowest 0.
    axes : tuple of int
        Of a row with the picture's axis first: those that a mean runs over.
    """

    space: FeatureSpace
    weights: str
    how: str
    depth: int
    axes: tuple[int, ...]

    @property
    def network(self) -> FeatureSpace:
        """What its space has in common with the other taps of the same pass."""
        return network_of(self.space, self.weights)

    @property
    def numbers(self) -> int:
        """How many numbers a row has."""
        shape = self.space.shape
        over = self.axes if self.how == MEAN else ()
        return int(np.prod([n for axis, n in enumerate(shape, 1) if axis not in over]))

    def of(self, X: Any) -> Any:
        """Stored rows (n, …) as they are measured: averaged ones (n, d) float32, else as given."""
        return mean_over(X, self.axes) if self.how == MEAN else X


def network_of(space: FeatureSpace, weights: str) -> FeatureSpace:
    """A space without what differs between the taps of one pass; weights by name."""
    return dataclasses.replace(
        space, tap="", pooling="none", weights=weights, shape=(), dtype="float32"
    )


def mean_over(X: Any, axes: tuple[int, ...]) -> NDArray[np.float32]:
    """Rows (n, …) averaged over some axes, a block at a time: (n, d) float32."""
    left = [n for axis, n in enumerate(X.shape) if axis not in axes]
    out = np.empty((len(X), int(np.prod(left[1:]))), np.float32)
    start = 0
    for block in blocks_of(X):
        mean = block.mean(axis=axes, dtype=np.float32)
        out[start : start + len(block)] = mean.reshape(len(block), -1)
        start += len(block)
    return out


def rows_to_measure(
    spaces: Sequence[tuple[FeatureSpace, str]], train: int
) -> tuple[list[TapRows], list[str]]:
    """The rows of every network's feature spaces: comparable ones first, small whole maps too.

    Parameters
    ----------
    spaces : sequence of (FeatureSpace, str)
        View 0, each with the name of its weights.
    train : int
        Number of training pictures.

    Returns
    -------
    list of TapRows
        By network and depth.
    list of str
        What is not measured, or not known, and why.
    """
    found, notes = [], []
    networks: dict[FeatureSpace, list[tuple[FeatureSpace, str]]] = {}
    for space, weights in spaces:
        if space.backbone != PIXELS:
            networks.setdefault(network_of(space, weights), []).append((space, weights))
    for network, members in networks.items():
        backbone, note = opened(network.backbone)
        notes += [note] if note else []
        order = _tap_order(backbone, [space for space, _ in members])
        averaged = {space.tap for space, _ in members if space.pooling == "avg"}
        for space, weights in sorted(members, key=lambda one: order.index(one[0].tap)):
            depth = order.index(space.tap)
            axes = _places(backbone, space)
            if space.pooling != "none" or not axes:
                found.append(TapRows(space, weights, STORED, depth, ()))
                continue
            if space.tap not in averaged:
                found.append(TapRows(space, weights, MEAN, depth, axes))
            if train * int(np.prod(space.shape)) <= MAX_FLAT:
                found.append(TapRows(space, weights, FLAT, depth, axes))
    return found, notes


def opened(name: str) -> tuple[Backbone | None, str]:
    """A backbone by its name; where it cannot be asked, None and why."""
    try:
        return get_backbone(name), ""
    except FeatpipeError as error:
        return None, f"the taps of {name} are taken in the order of their maps' sizes: {error}"


def retrained_tap(backbone: Backbone, deepest: str, size: int) -> str | None:
    """The latest map behind which a third of the weights up to the deepest cached tap lies.

    Parameters
    ----------
    backbone : Backbone
    deepest : str
    size : int
        Side of the pictures, pixels.

    Returns
    -------
    str or None
        None if there is no such tap, or the network cannot be cut there.
    """
    shapes = backbone.tensor_shapes

    def size_of(tap: str) -> int:
        return sum(int(np.prod(shapes[name])) for name in backbone.parameters(tap))

    taps = list(backbone.taps)
    whole = size_of(deepest)
    for tap in reversed(taps[: taps.index(deepest)]):
        if whole - size_of(tap) < RETRAINED_SHARE * whole:
            continue
        if backbone.pooled_axes(tap, size) and can_be_cut(backbone, tap, size):
            return tap
    return None


def can_be_cut(backbone: Backbone, tap: str, size: int) -> bool:
    """Whether everything behind a tap is computed from it alone, as a suffix needs."""
    try:
        backbone.suffix(tap, size)
    except UsageError:
        return False
    return True


def _tap_order(backbone: Backbone | None, spaces: Sequence[FeatureSpace]) -> list[str]:
    """Names of the spaces' taps, the shallowest first."""
    # Networks make their maps smaller on the way; pooled rows say nothing of their map.
    places: dict[str, int] = {}
    for space in spaces:
        places[space.tap] = max(places.get(space.tap, 0), int(np.prod(space.shape[1:])))
    if backbone is None:
        return sorted(places, key=lambda tap: -places[tap])
    # A deeper tap depends on more tensors; VGG knows those without torch, its whole list not.
    tensors = {tap: len(backbone.parameters(tap)) for tap in places}
    if len(set(tensors.values())) == len(places):
        return sorted(places, key=lambda tap: tensors[tap])
    order = list(backbone.taps)
    return sorted(places, key=order.index)


def _places(backbone: Backbone | None, space: FeatureSpace) -> tuple[int, ...]:
    """Axes of the space's rows that run over places or tokens, the picture's axis being 0."""
    if backbone is not None and len(space.shape) > 1:
        return backbone.pooled_axes(space.tap, space.preprocessing.size)
    # C H W, or tokens C.
    return {3: (2, 3), 2: (1,)}.get(len(space.shape), ())
