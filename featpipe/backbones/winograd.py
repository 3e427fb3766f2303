"""3 x 3 convolutions with a quarter of the multiplications, for processors without a matrix unit.

Winograd's minimal filtering F(4 x 4, 3 x 3), as in Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (CVPR 2016): every 6 x 6 tile of the input, every kernel and every
4 x 4 tile of the output is turned by a fixed matrix, and between them a convolution is 36 plain
products of matrices. In float32 it is about as exact as the direct sum (1e-6 relative).
"""

from __future__ import annotations

import torch
from torch import nn

_FEWEST_PRODUCTS = 64 * 128
"""Pairs of channels from which the saved multiplications outweigh the turning of tiles."""
_SMALLEST_SIDE = 12
"""Pixels below which tiles are mostly padding, and reading the kernels takes the time."""
_STRIP_BYTES = 4 * 2**20
"""Turned tiles that are worked on at once: about as much as a few cores' own caches hold."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
"""Bᵀ, G and Aᵀ of the paper."""


def pays(convolution: nn.Conv2d, side: int) -> bool:
    """Whether a convolution of a map of ``side`` x ``side`` is faster this way."""
    products = convolution.in_channels * convolution.out_channels
    return products >= _FEWEST_PRODUCTS and side >= _SMALLEST_SIDE


class WinogradConvReLU(nn.Module):
    """A convolution of stride 1 and padding 1, and the ReLU behind it.

    One picture at a time and in strips of equal height, so that a picture's bits do not depend on
    its company.

    Parameters
    ----------
    convolution : nn.Conv2d
        Of 3 x 3, float32; its kernels are kept as (36, I, O), which is four times their size.
    """

    kernels: torch.Tensor
    bias: torch.Tensor
    turn_in: torch.Tensor
    turn_out: torch.Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach().permute(2, 3, 1, 0)  # O I 3 3 → 3 3 I O
        turned = _twice(_KERNEL) @ weight.reshape(9, -1)
        bias = convolution.bias
        assert bias is not None
        self.register_buffer("kernels", turned.view(36, *weight.shape[2:]))
        self.register_buffer("bias", bias.detach())
        self.register_buffer("turn_in", _twice(_INPUT))
        self.register_buffer("turn_out", _twice(_OUTPUT))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, I, H, W) float32 → (N, O, H, W), channels last in memory."""
        n, inner, height, width = image.shape
        outer = self.kernels.shape[2]
        down, across = -(-height // 4), -(-width // 4)
        # Tiles overlap by two pixels; the frame is the padding, and what the last tiles lack.
        framed = image.new_zeros(n, 4 * down + 2, 4 * across + 2, inner)
        framed[:, 1 : height + 1, 1 : width + 1] = image.permute(0, 2, 3, 1)  # N C H W → N H W C
        found = image.new_empty(n, down, 4, across, 4, outer)
        strip = max(1, _STRIP_BYTES // (4 * 36 * across * max(inner, outer)))
        for picture, out in zip(framed, found, strict=True):
            by_row, by_column, _ = picture.stride()
            for top in range(0, down, strip):
                rows = min(strip, down - top)
                # 6 6 rows across I: every tile's pixels, where they are
                tiles = picture[4 * top :].as_strided(
                    (6, 6, rows, across, inner),
                    (by_row, by_column, 4 * by_row, 4 * by_column, 1),
                )
                turned = (self.turn_in @ tiles.reshape(36, -1)).view(36, -1, inner)
                products = torch.bmm(turned, self.kernels)
                strips = (self.turn_out @ products.view(36, -1)).view(4, 4, rows, across, outer)
                strips.add_(self.bias).relu_()
                out[top : top + rows] = strips.permute(2, 0, 3, 1, 4)  # rows 4 across 4 O
        whole = found.view(n, 4 * down, 4 * across, outer)[:, :height, :width]
        return whole.permute(0, 3, 1, 2)  # N H W C → N C H W


def _twice(matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """What turns the rows of a tile and then its columns, as one matrix of the flat tile."""
    once = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(once, once).float()
