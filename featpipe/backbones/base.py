"""What every backbone says of itself, without reading a weight or a picture."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.base.space import FeatureSpace

if TYPE_CHECKING:
    from torch import fx

    from featpipe.backbones.graph import Traced
    from featpipe.backbones.suffix import Suffixes

Tensors = Mapping[str, NDArray]
"""Parameters and buffers by name; floating ones are float32."""
Inference = Callable[[NDArray[np.uint8]], list[np.ndarray]]
"""Pixels (n, size, size, 3) RGB → features, one array (n, *space.shape) per feature space."""

COUNTER = "num_batches_tracked"
"""A buffer that batch normalisation has for training alone: features do not depend on it."""
OWN_WEIGHTS = "own"
"""Name of the weights that a network of the user's own is made with."""


@dataclass(frozen=True)
class Tap:
    """A place in a backbone whose output can be extracted.

    Attributes
    ----------
    name : str
        How feature spaces and listings call it.
    node : str
        The same place as a node of the network's graph.
    """

    name: str
    node: str


@dataclass(frozen=True)
class NetworkInput:
    """The pictures that weights were trained on: ``(value / 255 - mean) / std`` per channel.

    Attributes
    ----------
    mean, std : tuple of float
        Per channel, in ``channels`` order, for values scaled to 0..1.
    channels : {"rgb", "bgr", "grey"}
    size : int
        Side of the square, pixels; 0 where any side will do.
    resize_to : int or None
        Shorter side before the crop, pixels; None is ``size * 256 / 224``.
    interpolation : {"bilinear", "bicubic"}
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str = "rgb"
    size: int = 224
    resize_to: int | None = None
    interpolation: str = "bilinear"


IMAGENET = NetworkInput((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet, as torchvision uses them."""


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that are published under a name.

    Attributes
    ----------
    input : NetworkInput
    url : str
        Where a file with the tensors (``.pth``) can be downloaded; empty where nowhere.
    digests : mapping of str to str
        Digests of the tensors that a tap depends on, as known beforehand, by the tap's name.
    library : str
        The library that fetches them itself, in words; empty where featpipe does.
    fetch : callable
        Fetches the tensors with that library; raises anything where it cannot.
    """

    input: NetworkInput
    url: str = ""
    digests: Mapping[str, str] = field(default_factory=dict)
    library: str = ""
    fetch: Callable[[], Tensors] = dict


class Backbone(ABC):
    """A frozen network, or what stands for one.

    Attributes
    ----------
    name : str
    has_weights : bool
        Whether it has tensors that weights could be.
    """

    name: str
    has_weights: bool = True
    bits_depend_on_batch: bool = True
    """Whether torch may give a picture other last bits on a CPU if more or fewer are computed with
    it; then a fixed number of pictures is computed at once."""
    default_size: int = 224
    """Side of the pictures where neither weights nor a person say one, pixels; 0: must be said."""

    @property
    @abstractmethod
    def taps(self) -> Mapping[str, Tap]:
        """Every tap by name, in network order."""

    @property
    def tap_names(self) -> Mapping[str, str]:
        """Every accepted spelling → the tap's name."""
        spellings = {tap.node: tap.name for tap in self.taps.values()}
        return spellings | {name: name for name in self.taps}

    def tap(self, name: str) -> Tap:
        """The tap of that name, also spelt as a node.

        Raises
        ------
        UsageError
            There is no such tap; the message suggests the most similar name.
        """
        spellings = self.tap_names
        if name in spellings:
            return self.taps[spellings[name]]
        nearest = difflib.get_close_matches(name, spellings, 1, 0.0)[0]
        raise UsageError(
            f"expected a tap of {self.name}, found {name!r}; did you mean '{nearest}'? "
            f"'featpipe backbones {self.name}' lists them"
        )

    @abstractmethod
    def output_shape(
        self, tap: str, pooling: str, size: int, channels: str = "rgb"
    ) -> tuple[int, ...]:
        """Shape of one picture's features.

        Parameters
        ----------
        tap : str
        pooling : {"none", "avg", "max", "cls"}
        size : int
            Side of the input, pixels.
        channels : {"rgb", "grey"}
            Of the rows of ``pixels``; networks take colour pictures.

        Raises
        ------
        UsageError
            There is no such tap, the network does not take pictures of this size, or the pooling
            does not apply.
        """

    def check_channels(self, channels: str) -> None:
        """Refuse channels that the backbone does not give.

        Raises
        ------
        UsageError
        """
        if channels != "rgb":
            raise UsageError(
                f"expected --channels rgb for {self.name}, which takes colour pictures, found "
                f"{channels!r}; grey is for --backbone pixels"
            )

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all tensors, by name, in network order."""
        return {}

    @property
    def whole_numbers(self) -> frozenset[str]:
        """Names of the tensors that are not floating, such as tables of indices."""
        return frozenset()

    def dtype(self, name: str) -> str:
        """Of a tensor, as features are computed from it in full precision."""
        return "float32"

    def parameters(self, tap: str) -> tuple[str, ...]:
        """Names of the parameters and buffers that a tap depends on: they make its digest."""
        return ()

    def spellings(self, name: str) -> tuple[str, ...]:
        """Names that a tensor may have in a file of weights."""
        return (name,)

    @property
    def published(self) -> Mapping[str, PublishedWeights]:
        """Weights that are published for it, by name."""
        return {}

    @property
    def default_weights(self) -> str:
        """Name of the weights that are taken where none are named."""
        return next(iter(self.published), "random:0")

    def weights_called(self, name: str) -> str:
        """The name under which published weights are kept; others unchanged."""
        return name

    def input_of(self, weights: str, layout: str = "") -> NetworkInput:
        """What weights expect.

        Parameters
        ----------
        weights : str
            Name of published weights, or another text.
        layout : str
            What the file says of itself: ``keras``, or empty.
        """
        known = self.published.get(weights)
        return known.input if known else IMAGENET

    def random_tensors(self, seed: int, names: Sequence[str]) -> dict[str, NDArray]:
        """Tensors drawn from a seed, each from a random stream of its own."""
        return {}

    def own_tensors(self) -> Tensors | None:
        """The tensors that the network was made with; None where they stand for nothing."""
        return None

    def digest(self, tensors: Tensors, tap: str) -> str:
        """SHA-256 (hex) of what decides a tap's output, besides its name and the picture."""
        return tensors_digest(tensors, self.parameters(tap))

    def policy(self, precision: str) -> str:
        """Name of what is computed in a precision; part of the feature space."""
        return "" if precision == "fp32" else "autocast"

    def build(self, tensors: Tensors, taps: Sequence[str], size: int) -> fx.GraphModule:
        """The network up to the deepest of the taps, in float32 on the CPU.

        Returns
        -------
        GraphModule
            Normalised pictures (N, 3, size, size) → a tuple with the output of every tap. Each
            node's ``meta["shape"]`` is the shape of its output for one picture, with N = 1.
        """
        raise NotImplementedError

    @property
    def graph(self) -> Traced | None:
        """The whole network and its graph; None where there is none, or it cannot be traced."""
        return None

    def suffix(self, tap: str, size: int) -> Suffixes:
        """What of the network lies behind a tap: its own layers, or a linear top in their place.

        Parameters
        ----------
        tap : str
        size : int
            Side of the pictures, pixels.

        Raises
        ------
        UsageError
            The network cannot be cut there: it has no graph, or a branch goes past the tap.
        """
        from featpipe.backbones.suffix import suffixes

        return suffixes(self, self.tap(tap).name, size)

    def pooled_axes(self, tap: str, size: int) -> tuple[int, ...]:
        """Axes of a tap's output, counted with the batch's, that pooling runs over."""
        raise NotImplementedError

    def network(
        self,
        tensors: Tensors,
        spaces: Sequence[FeatureSpace],
        *,
        device: str,
        batch_size: int,
    ) -> Inference:
        """The function from pixels to features of several spaces.

        Parameters
        ----------
        tensors : mapping of str to ndarray
            At least those that the taps depend on.
        spaces : sequence of FeatureSpace
            They may differ only in tap, pooling and stored dtype.
        device : str
            A torch device, such as ``cpu`` or ``cuda:0``.
        batch_size : int
            Pictures that are handed over together.
        """
        from featpipe.backbones.network import Network

        return Network(self, tensors, spaces, device=device, batch_size=batch_size)


def tensors_digest(tensors: Tensors, names: Sequence[str]) -> str:
    """SHA-256 (hex) over names, shapes and little-endian bytes of tensors.

    Floating tensors count as float32. Of others the dtype is hashed, too.
    """
    digest = hashlib.sha256()
    for name in names:
        tensor = np.asarray(tensors[name])
        dtype = np.dtype("<f4") if tensor.dtype.kind == "f" else tensor.dtype.newbyteorder("<")
        kind = "" if tensor.dtype.kind == "f" else dtype.str
        tensor = np.ascontiguousarray(tensor, dtype)
        digest.update(f"{name}{list(tensor.shape)}{kind}".encode())
        digest.update(tensor.data if tensor.size else b"")
    return digest.hexdigest()
