"""A trained head as convolutions: class scores at every place of a larger picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import UsageError
from featpipe.base.joined_spaces import joined_taps
from featpipe.base.space import FeatureSpace
from featpipe.heads.base import Head, blocks_of, softmax
from featpipe.heads.knn import KNNHead

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class DenseHead:
    """A head as convolutions.

    At the size of training, its scores' mean over all places is the head's logits.

    Attributes
    ----------
    module : nn.Module
        Maps (n, C, H, W), or (n, H, W, C) where the backbone has such, float32, not standardised →
        scores (n, classes, H', W'), not divided by the temperature.
    space : FeatureSpace
        That of the maps: the head's, without its pooling.
    window : tuple of int
        Height and width of the part of the last map that a place sees. H' and W' are so much
        smaller, but for one.
    is_class_map : bool
        Whether the scores' mean over the places of a map of any size is the head's logits for its
        average: the class map of global average pooling.
    temperature : float
        What the logits are divided by.
    """

    module: nn.Module
    space: FeatureSpace
    window: tuple[int, int]
    is_class_map: bool
    temperature: float = 1.0

    def scores(self, maps: Any) -> NDArray[np.float32]:
        """Scores (n, classes, H', W') of maps (n, …) of any dtype, on the CPU."""
        import torch

        with torch.inference_mode():
            blocks = (torch.from_numpy(block.astype(np.float32)) for block in blocks_of(maps))
            return np.concatenate([self.module(block).numpy() for block in blocks])

    def logits(self, maps: Any) -> NDArray[np.float32]:
        """Logits of maps of any size, (n, classes).

        Of a class map the mean over places. Else each place is an answer for a window, and a class
        has the score of its best window (Sermanet et al., "OverFeat", 2014): most windows of a
        large picture do not show what it is a picture of.
        """
        scores, places = self.scores(maps), (2, 3)
        found: NDArray[np.float32]
        found = scores.mean(axis=places) if self.is_class_map else scores.max(axis=places)
        return found

    def predict_proba(self, maps: Any) -> NDArray[np.float64]:
        """Class probabilities of maps of any size: (n, classes)."""
        return softmax(self.logits(maps) / self.temperature)


NO_SCORE_MAPS = "has no score maps"
NO_OTHER_SIZES = "cannot score pictures of other sizes"
"""What a head that is no such network cannot do."""


def dense_head(
    head: Head, spaces: Sequence[FeatureSpace], *, otherwise: str = NO_SCORE_MAPS
) -> DenseHead:
    """Turn a trained head into convolutions.

    Parameters
    ----------
    head : Head
    spaces : sequence of FeatureSpace
        Those of the rows that it was trained on.
    otherwise : str
        What a head that cannot be turned into them lacks, for the message.

    Raises
    ------
    UsageError
        The rows are no maps or averages of maps, or the head is no network that can be moved over
        larger ones.
    """
    from torch import nn

    from featpipe.heads.as_module import Average
    from featpipe.heads.dense_graph import CHANNELS_FIRST, CHANNELS_LAST, as_convolutions

    if isinstance(head, KNNHead):
        raise UsageError(
            f"expected a head that is a network, found '{head.kind}', which compares rows with "
            f"those it was trained on; such a head {otherwise}: train a linear, mlp, logistic "
            "or suffix head"
        )
    space = spaces[0]
    _check_pooling(spaces, otherwise)
    backbone, size = get_backbone(space.backbone), space.preprocessing.size
    maps = space if space.pooling == "none" else _maps_of(space)
    axes = (2, 3) if not backbone.has_weights else backbone.pooled_axes(space.tap, size)
    if len(maps.shape) != 3 or axes not in (CHANNELS_FIRST, CHANNELS_LAST):
        raise UsageError(
            f"expected a head on maps, or on their averages, found one on {space.tap} of "
            f"{space.backbone}, which gives {maps.shape} for a picture; such a head {otherwise}"
        )
    layers = [head.to_module(space.shape)]
    if space.pooling == "avg":
        layers.insert(0, Average(axes))
    dense = as_convolutions(nn.Sequential(*layers), maps.shape, axes)
    return DenseHead(dense.module, maps, dense.window, dense.is_class_map, head.temperature_)


def _maps_of(space: FeatureSpace) -> FeatureSpace:
    """The space of the maps whose averages are the rows of a space."""
    shape = get_backbone(space.backbone).output_shape(space.tap, "none", space.preprocessing.size)
    return replace(space, pooling="none", shape=shape)


def _check_pooling(spaces: Sequence[FeatureSpace], otherwise: str) -> None:
    if len(spaces) > 1:
        raise UsageError(
            f"expected a head on one tap, found one on {joined_taps(spaces)}, whose maps have "
            f"different sizes; such a head {otherwise}: train one on a single tap"
        )
    if spaces[0].pooling not in ("none", "avg"):
        raise UsageError(
            f"expected a head on maps or on their averages, found pooling '{spaces[0].pooling}', "
            f"which no convolution computes; such a head {otherwise}: train one with --pool "
            "none or avg"
        )


def smallest_size(maps: FeatureSpace) -> int:
    """The smallest size of pictures whose maps are as large as those of a space, pixels."""
    prep, backbone = maps.preprocessing, get_backbone(maps.backbone)
    channels = "grey" if prep.channels == "grey" else "rgb"
    size = prep.size
    while size > 1:
        try:
            shape = backbone.output_shape(maps.tap, "none", size - 1, channels)
        except UsageError:
            return size
        if any(side < needed for side, needed in zip(shape, maps.shape, strict=True)):
            return size
        size -= 1
    return size
