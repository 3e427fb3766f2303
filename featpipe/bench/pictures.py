"""Synthetic pictures for benchmarks, as large and as compressible as photographs."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375
_DRAWN = 480
"""Different pictures; further files repeat them."""


def write_pictures(folder: Path, count: int) -> None:
    """Write ``class/NNNNN.jpg``: smooth shapes with noise; no two files have the same bytes."""
    drawn = [_jpeg(seed) for seed in range(min(count, _DRAWN))]
    for number in range(count):
        path = folder / ("one", "two")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Decoders ignore the number after the JPEG's end; it makes the content hash unique.
        path.write_bytes(drawn[number % len(drawn)] + number.to_bytes(4, "big"))


def _jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    pixels = np.clip(np.asarray(picture, np.float32) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
