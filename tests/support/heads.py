"""Toy problems for heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from featpipe.specs.heads import params_of


class SideBySide:
    """Rows in memory of several taps side by side, which say how wide each tap is."""

    def __init__(self, *parts: np.ndarray) -> None:
        flat = [part.reshape(len(part), -1) for part in parts]
        self.widths = tuple(part.shape[1] for part in flat)
        self.values = np.concatenate(flat, axis=1)
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.values[index]


def toy(
    n: int, classes: int = 2, shape: tuple[int, ...] = (8,), *, seed: int = 0, dtype: str = "f4"
) -> tuple[np.ndarray, np.ndarray]:
    """Clouds that a plane can tell apart, each far out on its own axis, with a common offset."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(3.0, 1.0, (n, int(np.prod(shape))))
    X[np.arange(n), y] += 8
    return X.reshape(n, *shape).astype(dtype), y


def overlapping(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds that cannot be told apart without mistakes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    return (rng.normal(size=(n, 8)) + 0.4 * y[:, None]).astype(np.float32), y


def known(kind: str) -> str:
    """The hyper-parameters of a kind of head, as messages list them."""
    return ", ".join(params_of(kind).option_names())
