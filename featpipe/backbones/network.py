"""Runs a backbone in torch up to the deepest requested tap, and returns the output of every tap."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featpipe.backbones import gpu
from featpipe.backbones.base import Backbone, Tensors
from featpipe.backbones.compute_batch import BatchLimit, compute_batch
from featpipe.backbones.fast import optimised
from featpipe.base.errors import FeatureOverflowError, OutOfMemoryError
from featpipe.base.preprocessing import WHITE
from featpipe.base.space import FeatureSpace, Preprocessing

log = logging.getLogger("featpipe")

_MIN_UNPADDED_SIDE = 128
"""Image side in pixels from which torch computes one image of VGG by the algorithm for several."""


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
        Pictures that are handed over together. They are computed together only where their number
        does not change a row's bits.
    fixed_batch : bool
        Whether fewer pictures are padded where their number would change a row's bits. Without,
        pictures that are computed one by one take no more time than they need.

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
        fixed_batch: bool = True,
    ) -> None:
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
        depends = self.device.type != "cpu" or backbone.bits_depend_on_batch
        self._has_fixed_batch = fixed_batch and depends
        self._limit = BatchLimit(
            compute_batch(device, size, self.activation_bytes)
            if self._has_fixed_batch
            else batch_size
        )
        self._module = optimised(
            module, policy=backbone.policy(precision), precision=precision, device=self.device
        )
        self._normalise = Normalise(preprocessing).to(self.device)

    @property
    def compute_batch(self) -> int:
        """Largest number of pictures per forward pass; halved for good when memory runs out."""
        return self._limit.size

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
        OutOfMemoryError
            The device has no room for a single picture.
        """
        while True:
            # Read the limit once, because another thread may lower it meanwhile.
            size = self._limit.size
            with gpu.exact_arithmetic(self.device):
                rows = self._in_batches_of(size, pixels)
            if not isinstance(rows, str):
                return rows
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            if size == 1:
                other = "" if self.device.type == "cpu" else ", or use --device cpu"
                raise OutOfMemoryError(
                    f"expected room for one picture of {pixels.shape[1]} px on {self.device}, "
                    f"found too little ({rows}); end other programs there, or choose a smaller "
                    f"--size{other}"
                )
            if self._limit.halve(size):
                log.warning(
                    "expected room for %d pictures at once on %s, found too little: going on with "
                    "%d, which may change the last bits of features",
                    *(size, self.device, self._limit.size),
                )

    def _in_batches_of(self, size: int, pixels: NDArray[np.uint8]) -> list[np.ndarray] | str:
        """Features of all images, ``size`` at a time; if memory runs out, what torch said of it.

        This is a separate function that returns a text, because the error keeps the tensors of the
        failed pass alive.
        """
        try:
            parts = [self._rows(pixels[i : i + size], size) for i in range(0, len(pixels), size)]
        except RuntimeError as error:
            if not gpu.is_out_of_memory(error):
                raise
            return str(error).partition("\n")[0][:200]
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]

    def _rows(self, pixels: NDArray[np.uint8], batch_size: int) -> list[np.ndarray]:
        *rows, are_finite = self._forward(torch.from_numpy(pixels), batch_size)
        for space, is_finite in zip(self.spaces, are_finite.tolist(), strict=True):
            if not is_finite:
                raise _overflow(space)
        return [part.numpy() for part in rows]

    @torch.inference_mode()
    def _forward(self, pixels: torch.Tensor, batch_size: int) -> list[torch.Tensor]:
        """Rows of each space, then whether those of each are finite, all on the CPU."""
        n = len(pixels)
        batch = gpu.padded_on(self.device, pixels, self._padded_size(pixels.shape[1], batch_size))
        # Not through __call__: torch's GraphModule would print errors, which are handled here.
        image = batch.permute(0, 3, 1, 2).float() / WHITE  # N H W C → N C H W
        maps = self._module.forward(self._normalise(image))
        outputs = dict(zip(self._taps, maps, strict=True))
        rows = [
            stored(outputs[space.tap][:n], space, self._pooled_axes[space.tap])
            for space in self.spaces
        ]
        return gpu.on_host([*rows, torch.stack([torch.isfinite(part).all() for part in rows])])

    def _padded_size(self, side: int, batch_size: int) -> int:
        """Images to pad smaller batches to.

        Without padding, an image's features could differ in their last bits between batches of
        different size.
        """
        if self._has_fixed_batch:
            return batch_size
        # Torch computes a single small image with another algorithm than a batch.
        return 2 if side < _MIN_UNPADDED_SIDE else 1


def stored(hidden: torch.Tensor, space: FeatureSpace, axes: tuple[int, ...]) -> torch.Tensor:
    """What a tap gives for some pictures, as rows of a feature space.

    Parameters
    ----------
    hidden : Tensor
    space : FeatureSpace
    axes : tuple of int
        Those that pooling runs over; see :meth:`Backbone.pooled_axes`.

    Returns
    -------
    Tensor, shape (n, *space.shape)
        Pooled, in the stored dtype.
    """
    if space.pooling == "cls":
        hidden = hidden[:, 0]  # N tokens C → N C
    elif space.pooling == "avg" and axes:
        hidden = hidden.float().mean(dim=axes)
    elif space.pooling == "max" and axes:
        hidden = hidden.amax(dim=axes)
    dtype = torch.float16 if space.dtype == "float16" else torch.float32
    # Channels last in memory → the order in which rows are stored
    return hidden.to(dtype).contiguous()


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


class Normalise(nn.Module):
    """RGB of 0..1, N C H W float32 → in the channel order and scale that the weights need."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._reverse_channels = preprocessing.channels == "bgr"
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self._reverse_channels:
            image = image.flip(1)
        return (image - self.mean) / self.std
