"""What each kind of layer does to a receptive field; what is not listed here is not known."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from featpipe.backbones.receptive_field_axes import (
    Call,
    Rule,
    item,
    joined_along,
    padded,
    permuted,
    reduced,
    reshaped,
    split,
    transposed,
)
from featpipe.backbones.spans import Field, Reach, Span, joined


def _pointwise(call: Call) -> Field | None:
    """Each value is decided by those at the same place of the inputs."""
    field = functools.reduce(joined, call.inputs)
    return field if len(field.layout) == call.axes else None


def _windowed(field: Field, *geometry: Any) -> Field | None:
    """A convolution or pooling: each of the geometry is one number or one per axis."""
    rows, columns = zip(*((g, g) if isinstance(g, int) else g for g in geometry), strict=True)
    down, across = field.layout[-2], field.layout[-1]
    if down not in "hc" or across not in "wc" or len(field.layout) != 4:
        return None
    # Where an axis has no positions any more, the window finds one value and its padding.
    return Field(
        field.layout,
        field.rows.windowed(*rows) if down == "h" else field.rows,
        field.columns.windowed(*columns) if across == "w" else field.columns,
    )


def _conv_module(call: Call) -> Field | None:
    conv = call.module
    if conv.padding_mode == "circular":
        return None
    return _conv(call.inputs[0], conv.kernel_size, conv.stride, conv.padding, conv.dilation)


def _conv_function(call: Call) -> Field | None:
    if call.fields[0] is None or len(call.inputs) > 1:
        return None
    return _conv(
        call.inputs[0],
        tuple(call.args[1].shape[2:]),
        call.get(3, "stride", 1),
        call.get(4, "padding", 0),
        call.get(5, "dilation", 1),
    )


def _conv(field: Field, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field | None:
    if padding == "valid":
        padding = 0
    elif padding == "same":
        pairs = zip(kernel, (dilation,) * 2 if isinstance(dilation, int) else dilation, strict=True)
        padding = tuple((k - 1) * d // 2 for k, d in pairs)
    return _windowed(field, kernel, stride, padding, dilation)


def _pool_module(call: Call) -> Field | None:
    pool = call.module
    dilation = getattr(pool, "dilation", 1)
    return _windowed(call.inputs[0], pool.kernel_size, pool.stride, pool.padding, dilation)


def _pool_function(call: Call, *, dilates: bool = False) -> Field | None:
    kernel = call.get(1, "kernel_size")
    stride, padding = call.get(2, "stride") or kernel, call.get(3, "padding", 0)
    dilation = call.get(4, "dilation", 1) if dilates else 1
    return _windowed(call.inputs[0], kernel, stride, padding, dilation)


def _adaptive_pool(call: Call) -> Field | None:
    """To a size: a plain pooling if that divides the map's, else windows of unequal places."""
    field = call.inputs[0]
    if field.layout[-2:] != "hw":
        return None if "?" in field.layout or "m" in field.layout else field
    result = call.result if isinstance(call.result, torch.Tensor) else call.result[0]
    letters, spans = "", []
    for axis, span in ((-2, field.rows), (-1, field.columns)):
        size, wanted = call.shape[axis], int(result.shape[axis])
        if wanted == 1:
            letters, span = letters + "c", span.whole().unplaced()
        elif size % wanted == 0:
            letters, span = (
                letters + field.layout[axis],
                span.windowed(size // wanted, size // wanted, 0),
            )
        else:
            starts = (i * size // wanted for i in range(wanted))
            ends = (-(-(i + 1) * size // wanted) for i in range(wanted))
            kernel = max(end - start for start, end in zip(starts, ends, strict=True))
            letters, span = letters + field.layout[axis], span.windowed(kernel, 1, 0).unplaced()
        spans.append(span)
    return Field(field.layout[:-2] + letters, *spans)


def _linear(call: Call) -> Field | None:
    """Mixes the last axis: channels, or every position once they are flattened."""
    return call.inputs[0].mixed([-1]) if call.fields[0] is not None else None


def _mixing(axes: Callable[[Call], Sequence[int]]) -> Rule:
    return lambda call: call.inputs[0].mixed(axes(call))


def _norm_axes(call: Call) -> Sequence[int]:
    shape = call.module.normalized_shape if call.module else call.get(1, "normalized_shape")
    return range(-len(shape), 0)


def _softmax_axes(call: Call) -> Sequence[int]:
    axis = call.module.dim if call.module else call.get(1, "dim")
    return range(call.axes) if axis is None else [axis]


def _space(call: Call) -> Sequence[int]:
    return range(1, len(call.inputs[0].layout))


def _matrix_product(call: Call) -> Field | None:
    """With a constant it mixes the last axis; of two maps, every position meets every other."""
    if len(call.inputs) == 1:
        return _linear(call)
    return _attention(call, [field.layout[-2:] for field in call.inputs])


def _scaled_dot_product(call: Call) -> Field | None:
    return _attention(call, [field.layout[-2] for field in call.inputs])


def _multi_head(call: Call) -> Field | None:
    tokens = 1 if call.module.batch_first and len(call.inputs[0].layout) == 3 else 0
    return _attention(call, [field.layout[tokens] for field in call.inputs])


def _attention(call: Call, mixed: Sequence[str]) -> Field | None:
    """All tokens of a picture see each other; in windows, or along one axis, it is not known."""
    if any("m" not in letters or set(letters) - {"c", "m"} for letters in mixed):
        return None
    if any(set(field.layout) - {"c", "m"} for field in call.inputs):
        return None
    layout = call.inputs[0].layout if len(call.inputs[0].layout) == call.axes else "?" * call.axes
    doubt = any(span.reach is Reach.UNKNOWN for f in call.inputs for span in (f.rows, f.columns))
    span = Span(stride=None, reach=Reach.UNKNOWN if doubt else Reach.WHOLE)
    return Field(layout, span, span)


_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.LogSigmoid),
    *(nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    # In use, batch normalisation is a scale and a shift per channel.
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
)
_POINTWISE_NAMES = (
    *("add", "sub", "mul", "div", "true_divide", "neg", "abs", "exp", "sqrt", "rsqrt", "pow"),
    *("square", "clamp", "relu", "sigmoid", "tanh", "relu_", "sigmoid_", "tanh_", "clamp_"),
    *("add_", "sub_", "mul_", "div_", "maximum", "minimum", "where", "erf", "log"),
)
_POINTWISE_FUNCTIONS = (
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, stochastic_depth),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.sigmoid),
    *(F.tanh, F.softplus, F.softsign, F.logsigmoid, F.hardswish, F.hardsigmoid, F.hardtanh),
    *(F.dropout, F.dropout2d, F.alpha_dropout, F.prelu),
    *(getattr(torch, name) for name in _POINTWISE_NAMES if hasattr(torch, name)),
)
_POINTWISE_METHODS = (
    *_POINTWISE_NAMES,
    *("contiguous", "clone", "detach", "float", "half", "bfloat16", "to", "type", "type_as"),
)

RULES: dict[Any, Rule] = {
    **dict.fromkeys((*_POINTWISE_MODULES, *_POINTWISE_FUNCTIONS, *_POINTWISE_METHODS), _pointwise),
    nn.Conv2d: _conv_module,
    **dict.fromkeys((F.conv2d, torch.conv2d), _conv_function),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d), _pool_module),
    F.avg_pool2d: _pool_function,
    **dict.fromkeys(
        (F.max_pool2d, torch.max_pool2d), functools.partial(_pool_function, dilates=True)
    ),
    **dict.fromkeys(
        (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
        _adaptive_pool,
    ),
    **dict.fromkeys((nn.Linear, F.linear), _linear),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm, F.layer_norm, F.rms_norm), _mixing(_norm_axes)),
    **dict.fromkeys((nn.GroupNorm, nn.InstanceNorm2d, F.group_norm), _mixing(_space)),
    **dict.fromkeys(
        (nn.Softmax, nn.LogSoftmax, F.softmax, torch.softmax, "softmax"), _mixing(_softmax_axes)
    ),
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"), reduced),
    **dict.fromkeys((torch.permute, "permute"), permuted),
    **dict.fromkeys((torch.transpose, torch.swapaxes, "transpose", "swapaxes"), transposed),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
        reshaped,
    ),
    **dict.fromkeys(("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze"), reshaped),
    **dict.fromkeys((torch.cat, torch.concat), joined_along),
    **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), split),
    operator.getitem: item,
    **dict.fromkeys((F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), padded),
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm"), _matrix_product),
    F.scaled_dot_product_attention: _scaled_dot_product,
    nn.MultiheadAttention: _multi_head,
}
"""By module class, function or name of a method."""
