"""3 x 3 convolutions with a quarter of the multiplications, for CPUs in float32.

Winograd's minimal filtering F(4 x 4, 3 x 3), as in Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks" (CVPR 2016): the input transform is applied to every 6 x 6 tile of
the input and the kernel transform to every kernel; 36 matrix products multiply the two; the output
transform maps the products to 4 x 4 tiles of the output. In float32 the output is about as exact as
that of the direct sum (1e-6 relative).
"""

from __future__ import annotations

import torch
from torch import nn

_FEWEST_PRODUCTS = 64 * 128
"""Input times output channels from which the saved multiplications outweigh the transforms."""
_SMALLEST_SIDE = 16
"""Side in pixels below which Winograd is slower: padding fills much of each tile, and reading the
kernels takes most of the time."""
_MOST_PRODUCTS, _SMALLEST_SIDE_OF_THEM = 512 * 512, 12
"""From so many products on it is not slower from a smaller side on."""
_STRIP_BYTES = 4 * 2**20
"""Size of the transformed tiles computed at once: about what the caches of a few cores hold."""

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
"""The paper's input, kernel and output transforms: Bᵀ, G and Aᵀ."""


def pays(convolution: nn.Conv2d, side: int) -> bool:
    """Whether Winograd computes a convolution over ``side`` x ``side`` pixels, and faster."""
    form = (convolution.kernel_size, convolution.stride, convolution.dilation, convolution.groups)
    if form != ((3, 3), (1, 1), (1, 1), 1) or convolution.padding != (1, 1):
        return False
    if convolution.padding_mode != "zeros":
        return False
    products = convolution.in_channels * convolution.out_channels
    if products >= _MOST_PRODUCTS:
        return side >= _SMALLEST_SIDE_OF_THEM
    return products >= _FEWEST_PRODUCTS and side >= _SMALLEST_SIDE


class WinogradConv(nn.Module):
    """A 3 x 3 convolution of stride 1 and padding 1, followed by ReLU if asked for.

    It computes one image at a time, in strips whose height depends on the layer and the image size
    only, so that an image's features do not depend on the rest of the batch, bit by bit.

    Parameters
    ----------
    convolution : nn.Conv2d
        3 x 3, float32. Its transformed kernels, (36, I, O), take four times the memory.
    relu : bool
    """

    kernels: torch.Tensor
    bias: torch.Tensor
    input_transform: torch.Tensor
    output_transform: torch.Tensor

    def __init__(self, convolution: nn.Conv2d, *, relu: bool) -> None:
        super().__init__()
        self._relu = relu
        weight = convolution.weight.detach().permute(2, 3, 1, 0)  # O I 3 3 → 3 3 I O
        transformed_kernels = _transform_2d(_KERNEL) @ weight.reshape(9, -1)
        bias = convolution.bias
        if bias is None:
            bias = weight.new_zeros(convolution.out_channels)
        self.register_buffer("kernels", transformed_kernels.view(36, *weight.shape[2:]))
        self.register_buffer("bias", bias.detach())
        self.register_buffer("input_transform", _transform_2d(_INPUT))
        self.register_buffer("output_transform", _transform_2d(_OUTPUT))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, I, H, W) float32 → (N, O, H, W), channels last in memory."""
        n, in_channels, height, width = image.shape
        out_channels = self.kernels.shape[2]
        tile_rows, tile_columns = -(-height // 4), -(-width // 4)
        # Tiles overlap by two pixels. Zeros pad the image by 1 and fill the last tiles.
        padded = image.new_zeros(n, 4 * tile_rows + 2, 4 * tile_columns + 2, in_channels)
        padded[:, 1 : height + 1, 1 : width + 1] = image.permute(0, 2, 3, 1)  # N C H W → N H W C
        output = image.new_empty(n, tile_rows, 4, tile_columns, 4, out_channels)
        bytes_per_tile_row = 4 * 36 * tile_columns * max(in_channels, out_channels)
        strip_height = max(1, _STRIP_BYTES // bytes_per_tile_row)
        for picture, picture_output in zip(padded, output, strict=True):
            row_stride, column_stride, _ = picture.stride()
            for top in range(0, tile_rows, strip_height):
                rows = min(strip_height, tile_rows - top)
                # 6 6 rows columns I: a view of the pixels of every tile, which overlap
                tiles = picture[4 * top :].as_strided(
                    (6, 6, rows, tile_columns, in_channels),
                    (row_stride, column_stride, 4 * row_stride, 4 * column_stride, 1),
                )
                transformed = self.input_transform @ tiles.reshape(36, -1)
                products = torch.bmm(transformed.view(36, -1, in_channels), self.kernels)
                output_tiles = self.output_transform @ products.view(36, -1)
                output_tiles = output_tiles.view(4, 4, rows, tile_columns, out_channels)
                output_tiles.add_(self.bias)
                if self._relu:
                    output_tiles.relu_()
                # 4 4 rows columns O → rows 4 columns 4 O
                picture_output[top : top + rows] = output_tiles.permute(2, 0, 3, 1, 4)
        cropped = output.view(n, 4 * tile_rows, 4 * tile_columns, out_channels)[:, :height, :width]
        return cropped.permute(0, 3, 1, 2)  # N H W C → N C H W


def _transform_2d(matrix: tuple[tuple[float, ...], ...]) -> torch.Tensor:
    """One matrix that transforms both rows and columns of a flattened tile: M ⊗ M."""
    transform_1d = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(transform_1d, transform_1d).float()
