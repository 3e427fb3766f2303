"""Convolution tensors and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from featpipe.backbones.catalog import Backbone
from featpipe.base.errors import WeightsError

Tensors = Mapping[str, np.ndarray]


def tensors_digest(tensors: Tensors, backbone: Backbone, convolutions: int) -> str:
    """SHA-256 (hex) over name, shape and little-endian float32 bytes of the first tensors.

    Parameters
    ----------
    tensors : mapping of str to ndarray of float32
    backbone : Backbone
        Gives names and order.
    convolutions : int
        How many convolutions to include, each with weight and bias.
    """
    digest = hashlib.sha256()
    for name in tensor_names(backbone, convolutions):
        tensor = np.ascontiguousarray(tensors[name], "<f4")
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def tensor_names(backbone: Backbone, convolutions: int) -> list[str]:
    """Names of the first tensors, in network order."""
    return list(backbone.conv_shapes)[: 2 * convolutions]


def checked_tensors(
    tensors: Mapping[str, np.ndarray], backbone: Backbone, origin: str
) -> dict[str, np.ndarray]:
    """The backbone's tensors as float32, in network order, from a mapping that may hold more.

    Names may lack the ``features.`` prefix, or be Keras' block names. Later layers may be
    missing; gaps may not.

    Raises
    ------
    WeightsError
        A tensor is missing, or has another shape or kind than the backbone's.
    """
    found: dict[str, np.ndarray] = {}
    keras = _keras_names(backbone)
    for name, shape in backbone.conv_shapes.items():
        spellings = (name, name.removeprefix("features."), keras[name])
        tensor = next((tensors[s] for s in spellings if s in tensors), None)
        if tensor is None:
            break
        if tensor.shape != shape or tensor.dtype.kind != "f":
            raise WeightsError(
                f"expected {name} of shape {list(shape)}, found {list(tensor.shape)} "
                f"{tensor.dtype} in {origin}; these are not weights of {backbone.name}"
            )
        found[name] = np.asarray(tensor, np.float32)
    if len(found) < 2 or len(found) % 2:
        raise WeightsError(
            f"expected the conv layers of {backbone.name} (features.0.weight, …), found "
            f"{', '.join(list(tensors)[:4]) or 'nothing'} in {origin}"
        )
    return found


def _keras_names(backbone: Backbone) -> dict[str, str]:
    # A convolution's tap is its ReLU, one layer behind it.
    blocks = {tap.last_layer - 1: tap.name for tap in backbone.taps.values() if "_conv" in tap.name}
    names = {}
    for name in backbone.conv_shapes:
        _, layer, part = name.split(".")
        names[name] = f"{blocks[int(layer)]}.{part}"
    return names


def random_tensors(backbone: Backbone, seed: int, convolutions: int) -> dict[str, np.ndarray]:
    """He-normal weights and zero biases (He et al. 2015), one frozen stream per convolution."""
    found: dict[str, np.ndarray] = {}
    for number, name in enumerate(tensor_names(backbone, convolutions)):
        shape = backbone.conv_shapes[name]
        if name.endswith(".bias"):
            found[name] = np.zeros(shape, np.float32)
        else:
            # RandomState's stream is frozen by NumPy's compatibility policy.
            normal = np.random.RandomState([seed, number]).standard_normal(shape)
            found[name] = (normal * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return found
