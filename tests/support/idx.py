"""Idx files as MNIST has them, in small."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np


def idx_bytes(array: np.ndarray, *, kind: int = 8) -> bytes:
    """The content of an idx file: magic number, sizes, bytes."""
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def digit_like(count: int, seed: int = 0, side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Different grey pictures (n, side + 1, side) of classes 0 to 2, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, side + 1, side), np.uint8)
    images[np.arange(count), labels] += 150
    return images, labels.astype(np.uint8)


def write_idx(folder: Path, *, packed: bool = True, **counts: int) -> dict[str, Any]:
    """An idx folder with so many pictures of train and of t10k; the arrays by file stem."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for number, (split, count) in enumerate(counts.items()):
        images, labels = digit_like(count, number)
        arrays[f"{split}-images-idx3-ubyte"] = images
        arrays[f"{split}-labels-idx1-ubyte"] = labels
    for name, array in arrays.items():
        data = idx_bytes(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return arrays
