"""Toy problems for heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featpipe.base.space import FeatureSpace
from featpipe.heads import new_head
from featpipe.heads.base import Head
from featpipe.heads.suffix import SuffixHead
from featpipe.specs.fields import flag
from featpipe.specs.head_params import HEAD_KINDS, ModuleParams, params_of
from support import tiny_network
from support.samples import small_preprocessing, small_space

MAP_KINDS = tuple(kind for kind in HEAD_KINDS if issubclass(params_of(kind), ModuleParams))
"""Kinds of heads whose rows are maps."""
ROW_KINDS = tuple(kind for kind in HEAD_KINDS if kind not in MAP_KINDS)
STAGE_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow)
    if kind in ("lenet3x3", "mnist-cnn", "simplecnn")
    else kind
    for kind in HEAD_KINDS
]
"""Kinds of heads for tests of stages. Those that differ from lenet in their layers alone, which
tests of heads cover, only train longer: they are slow."""
MAP_SHAPE = (2, 16, 16)


def space_for(kind: str) -> FeatureSpace:
    """A feature space that a kind of head can be trained on."""
    if kind == "suffix":
        return small_space(
            backbone=tiny_network.NAME,
            tap=tiny_network.TAP,
            weights=tiny_network.digest(),
            pooling="none",
            shape=MAP_SHAPE,
            preprocessing=small_preprocessing(size=tiny_network.SIZE),
        )
    return small_space(pooling="none", shape=MAP_SHAPE) if kind in MAP_KINDS else small_space()


def made(kind: str, params: dict[str, Any]) -> Head:
    """A new head that can be fitted; a suffix is one of the tiny network, which is random."""
    if kind == "suffix":
        params = {"compute": "fp32", "top": "own", **params}
    head = new_head(kind, params)
    head.attach([space_for(kind)])
    if isinstance(head, SuffixHead):
        head.start_from(tiny_network.TINY.random_tensors(0, head.body), pretrained=False)
    return head


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


class WithViews:
    """Rows in memory that have views."""

    def __init__(self, rows: np.ndarray, *views: np.ndarray) -> None:
        self.rows, self.views = rows, views
        self.shape, self.dtype = rows.shape, rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.rows[index]


def toy(
    n: int, classes: int = 2, shape: tuple[int, ...] = (8,), *, seed: int = 0, dtype: str = "f4"
) -> tuple[np.ndarray, np.ndarray]:
    """Clouds that a plane can tell apart, each far out on its own axis, with a common offset."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.normal(3.0, 1.0, (n, int(np.prod(shape))))
    X[np.arange(n), y] += 8
    return X.reshape(n, *shape).astype(dtype), y


def overlapping(n: int, seed: int, kind: str = "linear") -> tuple[np.ndarray, np.ndarray]:
    """Two clouds that cannot be told apart without mistakes; maps for heads that need them."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    if kind in MAP_KINDS:
        X = rng.normal(size=(n, *MAP_SHAPE))
        X[:, :, :8] += 0.05 * y[:, None, None, None]
        return X.astype(np.float32), y
    return (rng.normal(size=(n, 8)) + 0.4 * y[:, None]).astype(np.float32), y


def banded(
    n: int, classes: int = 2, shape: tuple[int, int, int] = MAP_SHAPE, *, seed: int = 0, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy maps of 0 to 255 with a bright band of lines, higher or lower by class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    X = rng.uniform(0, 120, (n, *shape))
    lines = shape[1] // classes
    for i, label in enumerate(y):
        X[i, :, label * lines : (label + 1) * lines] += 100
    return X.astype(dtype), y


def separable(
    kind: str, n: int, classes: int = 2, *, seed: int = 0, dtype: str = "f4"
) -> tuple[np.ndarray, np.ndarray]:
    """A toy problem that a kind of head can learn."""
    if kind in MAP_KINDS:
        return banded(n, classes, seed=seed, dtype=dtype)
    return toy(n, classes, seed=seed, dtype=dtype)


def known(kind: str) -> str:
    """The hyper-parameters of a kind of head, as messages list them."""
    return ", ".join(params_of(kind).option_names())


def known_flags(kind: str) -> str:
    """The same, as messages on the command line list them."""
    return ", ".join(map(flag, params_of(kind).option_names()))
