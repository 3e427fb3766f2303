"""Pictures to measure with: as large and as compressible as photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 500, 375


def write_pictures(folder: Path, count: int) -> None:
    """Write ``class/NNNNN.jpg``: smooth shapes with grain, different in every file."""
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, 256, (12, 16, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        pixels = np.clip(np.asarray(picture, np.float32) + grain, 0, 255).astype(np.uint8)
        path = folder / ("one", "two")[number % 2] / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
