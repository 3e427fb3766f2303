"""A backbone as a torch module that stops at the deepest tap and keeps every tap asked for."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featpipe.backbones import winograd
from featpipe.backbones.catalog import Backbone
from featpipe.base.errors import FeatureOverflowError
from featpipe.base.space import FeatureSpace, Preprocessing

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_LONE_PICTURE_SIZE = 128
"""Side in pixels from which torch computes a single picture as it computes several."""


class BatchLimit:
    """Most pictures computed at once; threads share it, and it only ever falls.

    Attributes
    ----------
    size : int
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()

    def halve(self, size: int) -> None:
        """Lower the limit to half of a size for which memory was too small."""
        with self._lock:
            self.size = max(1, min(self.size, size // 2))


class Network:
    """The frozen conv base on one device, for a set of feature spaces that share one pass.

    Parameters
    ----------
    backbone : Backbone
    tensors : mapping of str to ndarray of float32
        ``features.N.weight`` (O, I, 3, 3) and ``.bias`` (O,), at least up to the deepest tap.
    spaces : sequence of FeatureSpace
        They differ in tap, pooling and stored dtype only.
    device : str
    batch_size : int
        Largest batch given at once; halved for good when the device runs out of memory.
    """

    def __init__(
        self,
        backbone: Backbone,
        tensors: Mapping[str, np.ndarray],
        spaces: Sequence[FeatureSpace],
        *,
        device: str,
        batch_size: int,
    ) -> None:
        self._limit = BatchLimit(batch_size)
        self.spaces = list(spaces)
        self.device = torch.device(device)
        self._dtype = _DTYPES[spaces[0].precision]
        self._last_layer_of = [backbone.tap(space.tap).last_layer for space in spaces]
        self._layers = _build(backbone, tensors, max(self._last_layer_of))
        self._normalise = _Normalise(spaces[0].preprocessing).to(self.device)
        # Inputs and first weights rounded to bf16 cost more accuracy than all other layers
        # together, and the first convolution is under 1 % of the work: it stays fp32.
        self._layers[0].to(self.device, torch.float32)
        self._layers[1:].to(self.device, self._dtype)
        self._layers.to(memory_format=torch.channels_last)
        if self.device.type == "cpu" and self._dtype == torch.float32:
            _use_winograd(self._layers, spaces[0].preprocessing.size)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = False

    def __call__(self, pixels: NDArray[np.uint8]) -> list[np.ndarray]:
        """Features of a batch, one array per space.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, size, size, 3)
            RGB.

        Returns
        -------
        list of ndarray, shapes (n, *space.shape), dtypes as stored

        Raises
        ------
        FeatureOverflowError
            A value is not finite in the stored dtype.
        """
        while True:
            # Read once: another thread may lower the limit while this one computes.
            size = self._limit.size
            rows = self._in_batches_of(size, pixels)
            if rows is not None:
                return rows
            self._limit.halve(size)
            torch.cuda.empty_cache()

    def _in_batches_of(self, size: int, pixels: NDArray[np.uint8]) -> list[np.ndarray] | None:
        """Features of all pixels, ``size`` at a time; None where memory runs out.

        A function of its own, so that what a failed pass holds is freed before the next one.
        """
        try:
            parts = [self._forward(pixels[i : i + size], size) for i in range(0, len(pixels), size)]
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            return None
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    @torch.inference_mode()
    def _forward(self, pixels: NDArray[np.uint8], batch_size: int) -> list[np.ndarray]:
        n = len(pixels)
        lacking = self._padded_size(pixels.shape[1], batch_size) - n
        if lacking > 0:
            pixels = np.concatenate([pixels, np.zeros_like(pixels[:1]).repeat(lacking, axis=0)])
        batch = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # a copy from pageable memory would stop every stream
        batch = batch.to(self.device, non_blocking=True)
        hidden = self._layers[0](self._normalise(batch)).to(self._dtype)
        kept: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(self._layers[1:], 1):
            hidden = layer(hidden)
            if number in self._last_layer_of:
                kept[number] = hidden[:n]
        return [
            self._output(kept[last], space)
            for last, space in zip(self._last_layer_of, self.spaces, strict=True)
        ]

    def _padded_size(self, side: int, batch_size: int) -> int:
        """What batches are padded to, so that a row's bits do not depend on its batch."""
        if self.device.type == "cpu":
            # Torch uses another convolution for a single picture with few activations.
            return 2 if side < _LONE_PICTURE_SIZE else 1
        # cuDNN may choose another algorithm for another batch size.
        return batch_size

    def _output(self, hidden: torch.Tensor, space: FeatureSpace) -> np.ndarray:
        if space.pooling == "avg":
            hidden = hidden.float().mean(dim=(2, 3))  # N C H W → N C
        elif space.pooling == "max":
            hidden = hidden.amax(dim=(2, 3))  # N C H W → N C
        dtype = torch.float16 if space.dtype == "float16" else torch.float32
        # channels_last in memory → C H W, as the rows are stored
        rows = hidden.to(dtype).contiguous()
        if not torch.isfinite(rows).all():
            raise _overflow(space)
        return rows.cpu().numpy()


def _overflow(space: FeatureSpace) -> FeatureOverflowError:
    if space.dtype == "float16":
        advice = "store them with --dtype float32"
        if space.precision == "fp16":
            advice += " and compute with --precision fp32"
    else:
        advice = "check the weights, or compute with --precision fp32"
    return FeatureOverflowError(
        f"expected finite {space.dtype} features at {space.tap}, found infinite ones or NaN; "
        f"{advice}"
    )


class _Normalise(nn.Module):
    """uint8 N H W C, RGB → float32 N C H W in the weights' own channel order and scale."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._flip = preprocessing.channels == "bgr"
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        image = pixels.permute(0, 3, 1, 2).float() / 255.0  # N H W C → N C H W
        if self._flip:
            image = image.flip(1)
        return (image - self.mean) / self.std


def _build(backbone: Backbone, tensors: Mapping[str, np.ndarray], last_layer: int) -> nn.Sequential:
    # A tapped convolution is kept behind its ReLU, so the ReLU may work in place: nothing
    # in front of it is ever handed out.
    layers: list[nn.Module] = []
    with torch.device("meta"):
        for count in backbone.blocks:
            for _ in range(count):
                out, inner = backbone.conv_shapes[f"features.{len(layers)}.weight"][:2]
                layers += [nn.Conv2d(inner, out, 3, padding=1), nn.ReLU(inplace=True)]
            layers.append(nn.MaxPool2d(2))
    network = nn.Sequential(*layers[: last_layer + 1])
    state = {
        name: torch.from_numpy(np.array(tensors[f"features.{name}"], np.float32))
        for name in network.state_dict()
    }
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _use_winograd(layers: nn.Sequential, size: int) -> None:
    """Replace the convolutions that are faster so, each with its ReLU; numbers stay."""
    side = size
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.MaxPool2d):
            side //= 2
        elif isinstance(layer, nn.Conv2d) and winograd.pays(layer, side):
            layers[number] = winograd.WinogradConvReLU(layer)
            layers[number + 1] = nn.Identity()
