"""Runs a backbone in torch up to the deepest requested tap, and returns the output of every tap."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featpipe.backbones.base import Backbone, Tensors
from featpipe.backbones.fast import optimised
from featpipe.base.errors import FeatureOverflowError
from featpipe.base.preprocessing import WHITE
from featpipe.base.space import FeatureSpace, Preprocessing

_MIN_UNPADDED_SIDE = 128
"""Image side in pixels from which torch uses the same algorithm for one image as for several."""


class BatchLimit:
    """Largest number of images per forward pass; threads share it, and it never rises.

    Attributes
    ----------
    size : int
        The limit, images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()

    def halve(self, size: int) -> None:
        """Lower the limit to half of ``size``, a batch size for which memory was too small."""
        with self._lock:
            self.size = max(1, min(self.size, size // 2))


class Network:
    """A frozen network on one device; one forward pass serves several feature spaces.

    Parameters
    ----------
    backbone : Backbone
    tensors : mapping of str to ndarray
        At least those that the taps depend on.
    spaces : sequence of FeatureSpace
        They may differ only in tap, pooling and stored dtype.
    device : str
        A torch device, such as ``cpu`` or ``cuda:0``.
    batch_size : int
        Largest number of images per forward pass; halved, also for later calls, whenever the GPU
        runs out of memory.

    Attributes
    ----------
    activation_bytes : int
        Memory that a picture takes where the network is widest: three maps of its largest size.
    """

    def __init__(
        self,
        backbone: Backbone,
        tensors: Tensors,
        spaces: Sequence[FeatureSpace],
        *,
        device: str,
        batch_size: int,
    ) -> None:
        self._limit = BatchLimit(batch_size)
        self.spaces = list(spaces)
        self.device = torch.device(device)
        preprocessing, precision = spaces[0].preprocessing, spaces[0].precision
        size = preprocessing.size
        self._taps = list(dict.fromkeys(space.tap for space in spaces))
        self._pooled_axes = {tap: backbone.pooled_axes(tap, size) for tap in self._taps}
        module = backbone.build(tensors, self._taps, size)
        largest = max(
            int(np.prod(node.meta["shape"])) for node in module.graph.nodes if "shape" in node.meta
        )
        self.activation_bytes = 3 * 4 * largest
        self._module = optimised(
            module, policy=backbone.policy(precision), precision=precision, device=self.device
        )
        self._normalise = _Normalise(preprocessing).to(self.device)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = False

    def __call__(self, pixels: NDArray[np.uint8]) -> list[np.ndarray]:
        """Features of a batch, one array per space.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (n, size, size, 3)
            RGB, 0..255.

        Returns
        -------
        list of ndarray, shapes (n, *space.shape), dtypes as stored

        Raises
        ------
        FeatureOverflowError
            A value is not finite in the stored dtype.
        """
        while True:
            # Read the limit once, because another thread may lower it meanwhile.
            size = self._limit.size
            rows = self._in_batches_of(size, pixels)
            if rows is not None:
                return rows
            self._limit.halve(size)
            torch.cuda.empty_cache()

    def _in_batches_of(self, size: int, pixels: NDArray[np.uint8]) -> list[np.ndarray] | None:
        """Features of all images, ``size`` at a time; None if the GPU runs out of memory.

        This is a separate function so that a failed pass's tensors are freed on return, before the
        caller tries again.
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
        padding = self._padded_size(pixels.shape[1], batch_size) - n
        if padding > 0:
            pixels = np.concatenate([pixels, np.zeros_like(pixels[:1]).repeat(padding, axis=0)])
        batch = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # copying from pageable memory would stall all streams
        batch = batch.to(self.device, non_blocking=True)
        outputs = dict(zip(self._taps, self._module(self._normalise(batch)), strict=True))
        return [self._output(outputs[space.tap][:n], space) for space in self.spaces]

    def _padded_size(self, side: int, batch_size: int) -> int:
        """Images to pad smaller batches to.

        Without padding, an image's features could differ in their last bits between batches of
        different size.
        """
        if self.device.type == "cpu":
            # Torch computes a single small image with another algorithm than a batch.
            return 2 if side < _MIN_UNPADDED_SIDE else 1
        # cuDNN's choice of algorithm may depend on the batch size.
        return batch_size

    def _output(self, hidden: torch.Tensor, space: FeatureSpace) -> np.ndarray:
        axes = self._pooled_axes[space.tap]
        if space.pooling == "cls":
            hidden = hidden[:, 0]  # N tokens C → N C
        elif space.pooling == "avg" and axes:
            hidden = hidden.float().mean(dim=axes)
        elif space.pooling == "max" and axes:
            hidden = hidden.amax(dim=axes)
        dtype = torch.float16 if space.dtype == "float16" else torch.float32
        # Channels last in memory → the order in which rows are stored
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
    """uint8 N H W C, RGB → float32 N C H W, in the channel order and scale the weights need."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._reverse_channels = preprocessing.channels == "bgr"
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        image = pixels.permute(0, 3, 1, 2).float() / WHITE  # N H W C → N C H W
        if self._reverse_channels:
            image = image.flip(1)
        return (image - self.mean) / self.std
