"""The 1,797 handwritten digits shipped inside scikit-learn, as PNG bytes."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from featpipe.base.locations import Encoded
from featpipe.sources.canonical_png import canonical_png
from featpipe.sources.records import Record, Source

DIGITS = "sklearn:digits"


def open_digits() -> Source:
    """The digits as a source; images are named ``digits/0000.png`` and so on."""
    _, target = _load()
    records = [Record(f"digits/{i:04d}.png", str(label)) for i, label in enumerate(target)]
    return Source("digits", DIGITS, None, records, locate_digit)


def locate_digit(path: str) -> Encoded:
    """Canonical PNG of ``digits/NNNN.png``."""
    images, _ = _load()
    number = int(path.removeprefix("digits/").removesuffix(".png"))
    return Encoded(canonical_png(images[number]))


@functools.cache
def _load() -> tuple[NDArray[np.uint8], NDArray[np.int_]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # 8 x 8 with values 0..16 → 0..255
    return np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
