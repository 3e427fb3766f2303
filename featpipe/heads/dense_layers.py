"""Kinds of layers of a head that becomes convolutions, and the layers that they become."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.nn import functional as F

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
RESHAPING = {
    *(nn.Flatten, *DROPOUTS),
    *(torch.flatten, torch.reshape, torch.squeeze, F.dropout, F.dropout2d),
    *("flatten", "reshape", "view", "squeeze", "contiguous"),
}
"""What leaves a picture's numbers and their order as they are, once nothing is learnt any more."""
AVERAGING = {nn.AdaptiveAvgPool2d, nn.AvgPool2d, F.adaptive_avg_pool2d, F.avg_pool2d}
AVERAGING |= {torch.mean, "mean"}
"""Averages over places."""
POINTWISE = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softplus),
    *(torch.relu, torch.sigmoid, torch.tanh, F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu),
    *(F.silu, F.mish, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus),
    *("relu", "sigmoid", "tanh"),
    *(operator.add, operator.sub, operator.mul, operator.truediv),
}
"""What acts on each number alone."""
NORMS = {nn.LayerNorm, F.layer_norm}
"""Norms over the channels, where those are the last axis."""
AXES = {"permute", "movedim", torch.permute, torch.movedim}
"""Other orders of axes."""
SOFTMAXES = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax}


def convolution(kernel: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution with a kernel (outputs, inputs, h, w), or (outputs, inputs) for 1 x 1."""
    if kernel.dim() == 2:
        kernel = kernel[:, :, None, None]
    outputs, inputs, *window = kernel.shape
    layer = nn.Conv2d(inputs, outputs, (window[0], window[1]), bias=bias is not None, device="meta")
    state = {"weight": kernel.detach()} | ({} if bias is None else {"bias": bias.detach()})
    layer.load_state_dict(state, assign=True)
    return layer


def norm_of_maps(norm: nn.BatchNorm1d) -> nn.BatchNorm2d:
    """Batch normalisation of (n, values) as one of (n, values, H, W)."""
    layer = nn.BatchNorm2d(
        norm.num_features,
        eps=norm.eps,
        affine=norm.affine,
        track_running_stats=norm.track_running_stats,
        device="meta",
    )
    layer.load_state_dict(norm.state_dict(), assign=True)
    return layer
