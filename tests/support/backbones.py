"""A toy backbone, its spaces and random pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from featpipe.backbones.network import Network
from featpipe.backbones.vgg import Vgg
from featpipe.base.space import FeatureSpace, Preprocessing

TOY = Vgg("toy", (1, 2, 1, 1, 1), (4, 4, 8, 8, 8))


SIZE = 32


def random_tensors(backbone: Vgg, seed: int, convolutions: int) -> dict[str, np.ndarray]:
    """Random tensors of the first convolutions of a backbone."""
    return backbone.random_tensors(seed, list(backbone.tensor_shapes)[: 2 * convolutions])


def preprocessing(**changes: Any) -> Preprocessing:
    fields: dict[str, Any] = {
        "size": SIZE,
        "resize": "squash",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }
    return Preprocessing(**{**fields, **changes})


def space(backbone: Vgg, tap: str, pooling: str = "none", **changes: Any) -> FeatureSpace:
    fields: dict[str, Any] = {
        "backbone": backbone.name,
        "weights": "0" * 64,
        "tap": tap,
        "pooling": pooling,
        "preprocessing": preprocessing(),
        "precision": "fp32",
        "dtype": "float32",
        "shape": backbone.output_shape(tap, pooling, SIZE),
    }
    return FeatureSpace(**{**fields, **changes})


def network(spaces: list[FeatureSpace], tensors: Any = None, batch_size: int = 8) -> Network:
    tensors = tensors or random_tensors(TOY, 0, sum(TOY.blocks))
    return Network(TOY, tensors, spaces, device="cpu", batch_size=batch_size)


def pixels(n: int, seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
