"""What becomes of a receptive field where a tensor's axes are moved, merged, cut or padded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from featpipe.backbones.spans import Field, joined


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


def reduced(call: Call) -> Field | None:
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


def permuted(call: Call) -> Field | None:
    """Axes in another order."""
    axes = call.args[1] if isinstance(call.get(1, "dims"), (tuple, list)) else call.args[1:]
    axes = call.kwargs.get("dims", axes)
    field = call.inputs[0]
    return field.laid_out("".join(field.layout[a] for a in axes))


def transposed(call: Call) -> Field | None:
    """Two axes exchanged."""
    first = call.get(1, "dim0", call.kwargs.get("axis0"))
    second = call.get(2, "dim1", call.kwargs.get("axis1"))
    letters = list(call.inputs[0].layout)
    letters[first], letters[second] = letters[second], letters[first]
    return call.inputs[0].laid_out("".join(letters))


def reshaped(call: Call) -> Field | None:
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


def joined_along(call: Call) -> Field | None:
    """``cat``: channels beside channels; positions behind each other are positions no more."""
    field = functools.reduce(joined, call.inputs)
    letter = field.layout[call.get(1, "dim", 0)]
    if letter == "c":
        return field
    # Constants, such as a class token, see nothing.
    return field.unplaced() if letter == "m" and len(call.inputs) == 1 else None


def split(call: Call) -> Field | None:
    """Parts along an axis of channels."""
    field = call.inputs[0]
    return field if field.layout[call.get(2, "dim", 0)] == "c" else None


def item(call: Call) -> Field | None:
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


def padded(call: Call) -> Field | None:
    """Positions before and behind the others."""
    pads = call.module.padding if call.module else call.get(1, "pad")
    if not call.module and call.get(2, "mode", "constant") == "circular":
        return None
    field = call.inputs[0]
    for axis, before in enumerate(_listed(pads)[::2]):
        letter = field.layout[-1 - axis]
        field = field.sliced(letter, (-before, 0, 1))
    return field


def _listed(value: Any) -> Sequence[int]:
    return (value,) if isinstance(value, int) else tuple(value)
