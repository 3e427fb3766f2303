"""What a network of the user's own computes, besides its tensors, as a text that can be hashed.

Operations and their arguments come from the graph; of modules there are class and attributes
(stride, padding, number of heads, …); of code that is not torch's, the source of its file.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from featpipe.backbones.base import tensors_digest

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type(...),
    torch.dtype, torch.device, torch.memory_format, torch.layout,
)  # fmt: skip
_NOT_HASHED = ("torch", "torchvision", "builtins", "_operator", "math")
"""Packages whose code is named, not hashed."""


def of_graph(module: fx.GraphModule, known: Collection[str]) -> str:
    """The operations of a graph, in order, with what they call.

    Parameters
    ----------
    module : GraphModule
    known : collection of str
        Names of the tensors whose values are hashed elsewhere.
    """
    places = {node: place for place, node in enumerate(module.graph.nodes)}
    lines = []
    for node in module.graph.nodes:
        called = _plain(node.target)
        if node.op == "call_module":
            called = of_modules(module.get_submodule(node.target))
        elif node.op == "get_attr" and node.target not in known:
            called = _plain(_attribute(module, node.target))
        as_place: Any = functools.partial(_place_of, places)
        arguments = fx.map_arg((node.args, node.kwargs), as_place)
        lines.append(f"{node.op} {called} {_plain(arguments)}")
    return "\n".join(lines)


def of_modules(root: nn.Module, without: Collection[str] = ()) -> str:
    """Classes, attributes and code of a module and of those in it, except for some."""
    return "\n".join(
        f"{path} {_of_module(part)}" for path, part in root.named_modules() if path not in without
    )


def _of_module(module: nn.Module) -> str:
    attributes = {k: v for k, v in vars(module).items() if k not in _OF_EVERY_MODULE}
    # They are in no file of weights.
    hidden = {k: module._buffers[k] for k in module._non_persistent_buffers_set}
    return f"{_code(type(module))} {_plain(attributes)} {_plain(hidden)}"


def _attribute(module: nn.Module, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module)


def _place_of(places: dict[fx.Node, int], node: fx.Node) -> _Place:
    return _Place(places[node])


class _Place:
    """Stands for the result of an earlier operation."""

    def __init__(self, number: int) -> None:
        self.number = number


def _plain(value: Any) -> str:
    """A value as text, the same in every process; of unknown objects the class."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, _Place):
        return f"%{value.number}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, slice):
        return f"slice{_plain((value.start, value.stop, value.step))}"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(f'{_plain(k)}: {_plain(v)}' for k, v in value.items()))}}}"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(_plain, value)))}}}"
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return _of_array(value)
    if isinstance(value, functools.partial):
        return f"partial {_plain((value.func, value.args, value.keywords))}"
    return _code(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _of_array(value: Any) -> str:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.dtype} {tensors_digest({'': array}, [''])}"


def _code(called: Any) -> str:
    """Name of a function or class; of one that is not torch's also a digest of its file."""
    home = getattr(called, "__module__", None) or "builtins"
    name = f"{home}.{getattr(called, '__qualname__', called)}"
    return name if home.partition(".")[0] in _NOT_HASHED else f"{name} {''.join(_source(home))}"


def _source(module: str) -> Iterator[str]:
    found = sys.modules.get(module)
    if found is not None:
        try:
            yield hashlib.sha256(inspect.getsource(found).encode()).hexdigest()
        except (OSError, TypeError):
            return  # made without a file, or in C
