"""What each kind of layer does to a receptive field; what is not listed here is not known."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import stochastic_depth

from featpipe.backbones.spans import Field, Reach, Span, joined


@dataclass(frozen=True)
class Call:
    """A node of a graph that has been run without data.

    Attributes
    ----------
    module : nn.Module or None
        What is called, if it is a module.
    args, kwargs : tuple, dict
        Values of the arguments.
    fields : list of (Field or None)
        Of each of ``args``; None for those that do not depend on the picture.
    inputs : list of Field
        Of all arguments that do, those in lists and ``kwargs`` too.
    result : object
        A tensor, or several.
    """

    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fields: list[Field | None]
    inputs: list[Field]
    result: Any

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument of a function by its position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first argument."""
        return tuple(self.args[0].shape)

    @property
    def axes(self) -> int:
        """How many axes the result has; of several tensors the first."""
        first = self.result if isinstance(self.result, torch.Tensor) else self.result[0]
        return int(first.dim())


Rule = Callable[[Call], Field | None]
"""The field behind a call; None if it is not known. The first argument is on the picture."""


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


def _reduced(call: Call) -> Field | None:
    """A mean, sum or maximum over axes."""
    axes, count = call.get(1, "dim"), len(call.shape)
    over = {a % count for a in (range(count) if axes is None else _listed(axes))}
    field = call.inputs[0].mixed(over)
    keeps = call.axes == count
    letters = [
        "c" if axis in over else letter
        for axis, letter in enumerate(field.layout)
        if keeps or axis not in over
    ]
    return field.laid_out("".join(letters))


def _permuted(call: Call) -> Field | None:
    axes = call.args[1] if isinstance(call.get(1, "dims"), (tuple, list)) else call.args[1:]
    axes = call.kwargs.get("dims", axes)
    field = call.inputs[0]
    return field.laid_out("".join(field.layout[a] for a in axes))


def _transposed(call: Call) -> Field | None:
    first = call.get(1, "dim0", call.kwargs.get("axis0"))
    second = call.get(2, "dim1", call.kwargs.get("axis1"))
    letters = list(call.inputs[0].layout)
    letters[first], letters[second] = letters[second], letters[first]
    return call.inputs[0].laid_out("".join(letters))


def _reshaped(call: Call) -> Field | None:
    """Axes that keep their product keep their letters."""
    field, shape = call.inputs[0], tuple(call.result.shape)
    if 0 in call.shape or 0 in shape:
        return None
    letters, i, j = "", 0, 0
    while i < len(call.shape) or j < len(shape):
        first, second = i, j
        old = new = 1
        while True:
            if i < len(call.shape) and (old <= new or j == len(shape)):
                old, i = old * call.shape[i], i + 1
            else:
                new, j = new * shape[j], j + 1
            rest_is_one = all(n == 1 for n in (*call.shape[i:], *shape[j:]))
            if old == new and (i > first) and (j > second) and not rest_is_one:
                break
            if i == len(call.shape) and j == len(shape):
                break
        letters += _regrouped(field.layout[first:i], call.shape[first:i], shape[second:j])
    return field.laid_out(letters)


def _regrouped(letters: str, old: Sequence[int], new: Sequence[int]) -> str:
    """Letters of neighbouring axes after a reshape of them alone."""
    placed = [(letter, n) for letter, n in zip(letters, old, strict=True) if letter != "c"]
    if not placed or tuple(old) == tuple(new):
        return letters if tuple(old) == tuple(new) else "c" * len(new)
    large = [axis for axis, n in enumerate(new) if n > 1]
    alone = len(placed) == 1 and all(
        n == 1 for letter, n in zip(letters, old, strict=True) if letter == "c"
    )
    if len(large) > 1 or (alone and placed[0][0] == "?"):
        return "?" * len(new)
    mixed = "?" if "?" in letters else placed[0][0] if alone else "m"
    at = large[0] if large else 0
    return "".join(mixed if axis == at else "c" for axis in range(len(new)))


def _joined_along(call: Call) -> Field | None:
    """``cat``: channels beside channels; positions behind each other are positions no more."""
    field = functools.reduce(joined, call.inputs)
    letter = field.layout[call.get(1, "dim", 0)]
    if letter == "c":
        return field
    # Constants, such as a class token, see nothing.
    return field.unplaced() if letter == "m" and len(call.inputs) == 1 else None


def _split(call: Call) -> Field | None:
    field = call.inputs[0]
    return field if field.layout[call.get(2, "dim", 0)] == "c" else None


def _item(call: Call) -> Field | None:
    """One of several tensors, or a part of one."""
    field, index = call.inputs[0], call.args[1]
    if not isinstance(call.args[0], torch.Tensor):
        return field if len(field.layout) == call.axes else None
    index = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = len(field.layout) - sum(i is not None for i in index) + 1
        index[at : at + 1] = [slice(None)] * missing
    letters, axis = "", 0
    for part in index:
        if part is None:
            letters += "c"
            continue
        if not isinstance(part, (int, slice)):
            return None
        letter, n = field.layout[axis], call.shape[axis]
        field = field.sliced(letter, part.indices(n) if isinstance(part, slice) else None)
        letters += letter if isinstance(part, slice) else ""
        axis += 1
    return field.laid_out(letters + field.layout[axis:])


def _padded(call: Call) -> Field | None:
    pads = call.module.padding if call.module else call.get(1, "pad")
    if not call.module and call.get(2, "mode", "constant") == "circular":
        return None
    field = call.inputs[0]
    for axis, before in enumerate(_listed(pads)[::2]):
        letter = field.layout[-1 - axis]
        field = field.sliced(letter, (-before, 0, 1))
    return field


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


def _listed(value: Any) -> Sequence[int]:
    return (value,) if isinstance(value, int) else tuple(value)


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
    **dict.fromkeys((torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"), _reduced),
    **dict.fromkeys((torch.permute, "permute"), _permuted),
    **dict.fromkeys((torch.transpose, torch.swapaxes, "transpose", "swapaxes"), _transposed),
    **dict.fromkeys(
        (nn.Flatten, nn.Unflatten, torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze),
        _reshaped,
    ),
    **dict.fromkeys(("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze"), _reshaped),
    **dict.fromkeys((torch.cat, torch.concat), _joined_along),
    **dict.fromkeys((torch.chunk, torch.split, "chunk", "split"), _split),
    operator.getitem: _item,
    **dict.fromkeys((F.pad, nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d), _padded),
    **dict.fromkeys((torch.matmul, torch.bmm, operator.matmul, "matmul", "bmm"), _matrix_product),
    F.scaled_dot_product_attention: _scaled_dot_product,
    nn.MultiheadAttention: _multi_head,
}
"""By module class, function or name of a method."""
