"""The convolutions' tensors: their names, checks, digest, and random ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import Backbone
from featpipe.base.errors import WeightsError

Tensors = Mapping[str, NDArray[np.float32]]


def tensors_digest(tensors: Tensors, backbone: Backbone, convolutions: int) -> str:
    """SHA-256 (hex) over names, shapes and little-endian float32 bytes of the first tensors.

    Parameters
    ----------
    tensors : mapping of str to ndarray of float32
    backbone : Backbone
        Defines the tensors' names and order.
    convolutions : int
        Number of convolutions to include, each with weight and bias.
    """
    digest = hashlib.sha256()
    for name in tensor_names(backbone, convolutions):
        tensor = np.ascontiguousarray(tensors[name], "<f4")
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.data)
    return digest.hexdigest()


def tensor_names(backbone: Backbone, convolutions: int) -> list[str]:
    """Names of the first ``convolutions``' weights and biases, in network order."""
    return list(backbone.conv_shapes)[: 2 * convolutions]


def checked_tensors(
    tensors: Mapping[str, np.ndarray], backbone: Backbone, origin: str
) -> dict[str, NDArray[np.float32]]:
    """Pick the backbone's tensors, as float32 and in network order, and check their shapes.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        May hold other tensors too. Names may lack the ``features.`` prefix, or be Keras' block
        names. Tensors after the first missing one are ignored.
    backbone : Backbone
    origin : str
        Where the tensors come from, for error messages.

    Raises
    ------
    WeightsError
        No convolution is complete, one lacks its bias, or a tensor has an unexpected shape or
        type.
    """
    checked: dict[str, NDArray[np.float32]] = {}
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
        checked[name] = np.asarray(tensor, np.float32)
    if len(checked) < 2 or len(checked) % 2:
        raise WeightsError(
            f"expected the conv layers of {backbone.name} (features.0.weight, …), found "
            f"{', '.join(list(tensors)[:4]) or 'nothing'} in {origin}"
        )
    return checked


def _keras_names(backbone: Backbone) -> dict[str, str]:
    # A convolution's tap is the ReLU that follows it as the next layer.
    blocks = {tap.last_layer - 1: tap.name for tap in backbone.taps.values() if "_conv" in tap.name}
    names = {}
    for name in backbone.conv_shapes:
        _, layer, part = name.split(".")
        names[name] = f"{blocks[int(layer)]}.{part}"
    return names


def random_tensors(
    backbone: Backbone, seed: int, convolutions: int
) -> dict[str, NDArray[np.float32]]:
    """He-normal weights (He et al. 2015) and zero biases, reproducible from the seed.

    Each tensor has its own random stream, so it does not depend on the number of convolutions.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for number, name in enumerate(tensor_names(backbone, convolutions)):
        shape = backbone.conv_shapes[name]
        if name.endswith(".bias"):
            tensors[name] = np.zeros(shape, np.float32)
        else:
            # NumPy guarantees that RandomState's streams never change.
            normal = np.random.RandomState([seed, number]).standard_normal(shape)
            tensors[name] = (normal * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
    return tensors
