"""Class scores over a picture: where it looks like a class."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LARGEST_SIDE = 800
"""Of a heat map, pixels; larger pictures are scaled down."""
_SMALLEST_SIDE = 256
"""Smaller pictures are enlarged, in whole pixels."""
_COLOURS = "turbo"
_STRENGTH = 0.5
"""Share of the colours, the rest being the picture."""
_LEAST_RANGE = 1.0
"""Scores that differ by less, in nats, do not fill the range of colours: they say nothing."""


def log_odds(scores: NDArray[np.float32], index: int) -> NDArray[np.float64]:
    """Log-odds of a class at each place, (H, W), of scores (classes, H, W).

    Probabilities would show little: at most places they are 0 or 1.
    """
    others = np.delete(scores, index, axis=0).astype(np.float64)
    if not len(others):
        return scores[index].astype(np.float64)
    largest = others.max(axis=0)
    odds: NDArray[np.float64] = (
        scores[index] - largest - np.log(np.exp(others - largest).sum(axis=0))
    )
    return odds


def heat_map(
    pixels: NDArray[np.uint8],
    scores: NDArray[np.float64],
    window: tuple[int, int],
    *,
    largest: int = LARGEST_SIDE,
) -> Image.Image:
    """Lay scores over a picture, from blue for their lowest to red for their highest.

    A pixel has the mean score of the windows that it lies in.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
    scores : ndarray of float64, shape (H, W)
        In nats, of places whose windows lie side by side, each one step further.
    window : tuple of int
        Height and width of what a place sees, in steps: the picture is H + height - 1 steps high.
    largest : int
        Longer side of the heat map, pixels.
    """
    from matplotlib import colormaps

    picture = _resized(Image.fromarray(pixels), largest)
    rows = _placed(picture.height, scores.shape[0], window[0])
    columns = _placed(picture.width, scores.shape[1], window[1])
    means = rows @ scores @ columns.T
    low, spread = means.min(), max(float(np.ptp(means)), _LEAST_RANGE)
    colours = colormaps[_COLOURS]((means - low) / spread, bytes=True)[..., :3]
    return Image.blend(picture, Image.fromarray(np.ascontiguousarray(colours)), _STRENGTH)


def _resized(picture: Image.Image, largest: int) -> Image.Image:
    longer, least = max(picture.size), min(_SMALLEST_SIDE, largest)
    if longer > largest:
        picture.thumbnail((largest, largest), Image.Resampling.BILINEAR)
        return picture
    times = max(1, least // longer)
    enlarged = (times * picture.width, times * picture.height)
    return picture.resize(enlarged, Image.Resampling.NEAREST)


def _placed(pixels: int, places: int, window: int) -> NDArray[np.float64]:
    """Weights (pixels, places) that spread scores of places over the pixels of a line.

    First each step gets the mean of the windows that it lies in, then each pixel lies between the
    centres of two steps.
    """
    steps = places + window - 1
    first = np.arange(steps)[:, None] - np.arange(places)
    covered = ((first >= 0) & (first < window)).astype(np.float64)
    covered /= covered.sum(axis=1, keepdims=True)
    centres = np.clip((np.arange(pixels) + 0.5) / pixels * steps - 0.5, 0, steps - 1)
    between = np.maximum(0.0, 1 - np.abs(centres[:, None] - np.arange(steps)))
    return between @ covered


def as_png(image: Image.Image) -> bytes:
    """The bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
