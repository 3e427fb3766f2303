"""``pixels``: the decoded, resized picture itself, as rows for networks that are trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone, Inference, NetworkInput, Tap, Tensors
from featpipe.base.errors import UsageError
from featpipe.base.space import FeatureSpace

PIXELS = "pixels"
INPUT = "input"
"""Its only tap."""
_UNIT = 1 / 255
_CHANNELS = {"rgb": 3, "grey": 1}
GREY_WEIGHTS = (19595, 38470, 7471)
"""Red, green and blue in 65,536 parts of grey, as in ITU-R BT.601 and in Pillow."""


class Pixels(Backbone):
    """No network: rows are (C, size, size) uint8 with values 0..255."""

    name = PIXELS
    has_weights = False
    default_size = 0

    @property
    def taps(self) -> Mapping[str, Tap]:
        """See :attr:`Backbone.taps`."""
        return {INPUT: Tap(INPUT, INPUT)}

    def output_shape(
        self, tap: str, pooling: str, size: int, channels: str = "rgb"
    ) -> tuple[int, ...]:
        """See :meth:`Backbone.output_shape`: (3, size, size), or (1, size, size) for grey."""
        self.tap(tap)
        if pooling != "none":
            raise UsageError(f"expected --pool none for {PIXELS}, found {pooling!r}")
        return (_CHANNELS[channels], size, size)

    def check_channels(self, channels: str) -> None:
        """See :meth:`Backbone.check_channels`: both are given."""

    def input_of(self, weights: str, layout: str = "") -> NetworkInput:
        """Values as they are, at any size."""
        return NetworkInput((0.0, 0.0, 0.0), (_UNIT, _UNIT, _UNIT), size=0)

    def policy(self, precision: str) -> str:
        """Nothing is computed in floating point."""
        return ""

    def network(
        self, tensors: Tensors, spaces: Sequence[FeatureSpace], *, device: str, batch_size: int
    ) -> Inference:
        """See :meth:`Backbone.network`."""
        is_grey = spaces[0].preprocessing.channels == "grey"

        def rows(pixels: NDArray[np.uint8]) -> list[np.ndarray]:
            picture = grey(pixels)[..., None] if is_grey else pixels
            # N H W C → N C H W
            return [np.ascontiguousarray(picture.transpose(0, 3, 1, 2))] * len(spaces)

        return rows


def grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (…, 3) → luma (…), rounded to the nearest; grey pictures keep their values."""
    weighted = pixels.astype(np.int32) @ np.array(GREY_WEIGHTS, np.int32)
    return ((weighted + (1 << 15)) >> 16).astype(np.uint8)
