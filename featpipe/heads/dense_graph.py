"""A network on maps of one size as convolutions, which take larger maps as well.

The layers that keep the places of a map stay as they are; those behind the last map are rewritten:

- global average pooling and what is affine behind it: the matrix as a 1 x 1 convolution at every
  place, without the pooling. The mean over the places is the network's answer, because mean and
  matrix may change places: the class map of Zhou et al., "Learning Deep Features for Discriminative
  Localization" (2016);
- global average pooling with something else behind it: the average over a window of the size of
  the map in training, at every place, and the layers behind it as 1 x 1 convolutions;
- flattening, with or without an adaptive average pooling before it, and the first matrix W: both
  are linear in the map, so they are one convolution of the map's height and width in training, as
  in Long, Shelhamer and Darrell, "Fully Convolutional Networks" (2015). Its weight is the adjoint
  of what lies before the matrix, applied to the rows of W. Further matrices are 1 x 1 convolutions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from featpipe.backbones.graph import ancestors
from featpipe.base.errors import UsageError
from featpipe.heads.dense_layers import (
    AVERAGING,
    AXES,
    NORMS,
    POINTWISE,
    RESHAPING,
    SOFTMAXES,
    convolution,
    norm_of_maps,
)
from featpipe.heads.dense_tracing import Tracer, answer_of, shapes_of, without_memory

CHANNELS_FIRST, CHANNELS_LAST = (2, 3), (1, 2)
"""Axes of the places of a batch of maps: N C H W, and N H W C."""

_CHUNK = 256
"""Rows of a matrix whose adjoints are computed at once."""


class Dense(NamedTuple):
    """A network as convolutions.

    Attributes
    ----------
    module : fx.GraphModule
        Maps as before, float32, but as large or larger → (n, outputs, H', W').
    window : tuple of int
        Height and width of the part of the last map that a place of the answer sees.
    is_class_map : bool
        Whether the mean over the places of any map is the network's answer for it: places are
        parts of a sum then, and not answers of their own.
    """

    module: fx.GraphModule
    window: tuple[int, int]
    is_class_map: bool


def as_convolutions(
    module: nn.Module, shape: tuple[int, ...], axes: tuple[int, ...] = CHANNELS_FIRST
) -> Dense:
    """Turn a network on maps into convolutions.

    Parameters
    ----------
    module : nn.Module
        Maps (n, *shape) float32 → (n, outputs). Its layers are shared, not copied.
    shape : tuple of int
        Of a map in training.
    axes : tuple of int
        Those of a batch of maps that grow with the picture.

    Returns
    -------
    Dense
        For maps of that size, the mean of its answer over all places is the network's answer.

    Raises
    ------
    UsageError
        The network cannot be traced, or has a layer behind its last map that cannot be moved over
        a larger one.
    """
    try:
        root = nn.Sequential(module).eval()
        traced = fx.GraphModule(root, Tracer().trace(root))
    except Exception as error:
        # Tracing runs the network's own code on stand-ins for tensors: anything may come of it.
        raise _refusal(f"a network that cannot be traced ({_line(error)})") from error
    with torch.no_grad():
        return _Rewriting(traced, (2, *shape), axes).dense()


class _Rewriting:
    """One network on its way to convolutions."""

    def __init__(
        self, traced: fx.GraphModule, shape: tuple[int, ...], axes: tuple[int, ...]
    ) -> None:
        self.traced, self.graph = traced, fx.Graph()
        empty, nodes = without_memory(traced), {node.name: node for node in traced.graph.nodes}
        doubled = [n * 2 if axis in axes else n for axis, n in enumerate(shape)]
        self.shapes, larger = (
            {nodes[name]: found for name, found in shapes_of(empty, tuple(sides)).items()}
            for sides in (shape, doubled)
        )
        if len(self.shapes.get(answer_of(traced), ())) != 2:
            raise _refusal("one whose answer is not one row for each map")
        keeping = [n for n, s in self.shapes.items() if len(s) > 2 and larger.get(n, s) != s]
        self.body = ancestors(keeping)
        self.tail = [
            node
            for node in traced.graph.nodes
            if node in self.shapes and node not in self.body and node.op != "get_attr"
        ]
        self.last, self.axes = self._last_map(larger)
        needed = ancestors([self.last])
        self.copies: dict[fx.Node, fx.Node] = {}
        for node in traced.graph.nodes:
            if node in needed:
                self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        if self.axes == CHANNELS_LAST:
            found = self.copies[self.last]
            # N H W C → N C H W
            self.copies[self.last] = self.graph.call_method("permute", (found, 0, 3, 1, 2))

    def _last_map(self, larger: dict[fx.Node, tuple[int, ...]]) -> tuple[fx.Node, tuple[int, ...]]:
        """The one map that the answer is computed from, and the axes of its places."""
        sources = {i for n in self.tail for i in n.all_input_nodes if i in self.body}
        maps = [i for i in sources if i.op != "get_attr"]
        if len(maps) != 1:
            raise _refusal(f"{len(maps)} maps from which its answer is computed")
        sides, more = self.shapes[maps[0]], larger[maps[0]]
        axes = tuple(axis for axis, n in enumerate(sides) if more[axis] != n)
        if len(sides) != 4 or axes not in (CHANNELS_FIRST, CHANNELS_LAST):
            raise _refusal(f"a last map of {sides[1:]}, which is neither C, H, W nor H, W, C")
        return maps[0], axes

    @property
    def channels(self) -> int:
        """Of the last map."""
        return self.shapes[self.last][1 if self.axes == CHANNELS_FIRST else 3]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the last map in training."""
        height, width = (self.shapes[self.last][axis] for axis in self.axes)
        return height, width

    def dense(self) -> Dense:
        """The rewritten network."""
        found, window, is_class_map = self._first_layers()
        for node in self.tail[found:]:
            self.copies[node] = self._at_every_place(node)
        self.graph.output(self.copies[answer_of(self.traced)])
        return Dense(fx.GraphModule(self.traced, self.graph).eval(), window, is_class_map)

    def _first_layers(self) -> tuple[int, tuple[int, int], bool]:
        """Rewrite what lies between the last map and the first layer that acts on places.

        Returns how many nodes that were, the window, and whether it is a class map.
        """
        values = self.channels
        for number, node in enumerate(self.tail):
            kind = self._kind(node)
            if kind is nn.Linear or kind is F.linear:
                weight, bias = self._matrix(node)
                kernel = self._folded(weight, self.tail[:number])
                if self.axes == CHANNELS_LAST:
                    kernel = kernel.permute(0, 3, 1, 2).contiguous()  # O H W C → O C H W
                self.copies[node] = self._add(convolution(kernel, bias), self.last)
                return number + 1, self.sides, False
            if kind not in RESHAPING | AVERAGING:
                raise self._cannot(node)
            if self.shapes[node][1:] in ((values,), (values, 1, 1)):
                is_class_map = self._pooled(node, self.tail[number + 1 :])
                return number + 1, (1, 1) if is_class_map else self.sides, is_class_map
        raise _refusal("no layer behind its last map")

    def _pooled(self, node: fx.Node, rest: list[fx.Node]) -> bool:
        """Leave global average pooling out, or make it one over windows; returns which."""
        affine = {nn.Linear, F.linear, nn.BatchNorm1d, *RESHAPING}
        if all(self._kind(one) in affine for one in rest):
            self.copies[node] = self.copies[self.last]
            return True
        self.copies[node] = self._add(nn.AvgPool2d(self.sides, stride=1), self.last)
        return False

    def _folded(self, weight: torch.Tensor, before: list[fx.Node]) -> torch.Tensor:
        """The kernel (outputs, C, h, w) that is a matrix behind layers that are linear."""
        shape = self.shapes[self.last][1:]
        if all(self._kind(node) in RESHAPING for node in before):
            return weight.reshape(len(weight), *shape)
        layers = self._part(before)
        kernel = torch.empty(len(weight), *shape)
        for start in range(0, len(weight), _CHUNK):
            rows = weight[start : start + _CHUNK].float()
            with torch.inference_mode(False), torch.enable_grad():
                maps = torch.zeros(len(rows), *shape, requires_grad=True)
                (adjoint,) = torch.autograd.grad(layers(maps).flatten(1), maps, rows)
            kernel[start : start + _CHUNK] = adjoint
        return kernel

    def _part(self, nodes: list[fx.Node]) -> fx.GraphModule:
        """The layers of some nodes, as a module on the last map."""
        graph = fx.Graph()
        start = graph.placeholder("maps")
        copies = {self.last: start}
        needed = ancestors(nodes) - self.body
        for node in self.traced.graph.nodes:
            if node in needed:
                # The number of pictures may have been read from an earlier map.
                copies[node] = graph.node_copy(node, lambda i: copies.get(i, start))
        graph.output(copies[nodes[-1]])
        return fx.GraphModule(self.traced, graph)

    def _at_every_place(self, node: fx.Node) -> fx.Node:
        """A layer on (n, values) or (n, values, 1, 1), as one on (n, values, H', W')."""
        kind, shape = self._kind(node), self.shapes[node]
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.copies:
            raise self._cannot(node)
        before = self.shapes[source]
        if kind in RESHAPING and before[1:2] == shape[1:2]:
            return self.copies[source]
        if kind is nn.Linear or kind is F.linear:
            if len(before) == 2:
                return self._add(convolution(*self._matrix(node)), source)
        elif kind is nn.BatchNorm1d:
            return self._add(norm_of_maps(self._module(node)), source)
        elif kind in NORMS and len(before) == 2:
            return self._norm(node, source)
        elif self._acts_on_places(node, kind, len(before)):
            return self.graph.node_copy(node, self._copied)
        raise self._cannot(node)

    def _copied(self, node: fx.Node) -> fx.Node:
        return self.copies[node] if node in self.copies else self.graph.node_copy(node)

    def _acts_on_places(self, node: fx.Node, kind: Any, rank: int) -> bool:
        if kind in POINTWISE:
            return all(i in self.copies for i in node.all_input_nodes)
        if kind in SOFTMAXES:
            return rank == 2 and 1 in (node.kwargs.get("dim"), *node.args[1:2])
        if kind is nn.Conv2d:
            return self._module(node).kernel_size == (1, 1)
        # Of 4 axes already, as layers of convolutional networks have them.
        return rank == 4 and (kind in (nn.BatchNorm2d, *NORMS, *AXES))

    def _norm(self, node: fx.Node, source: fx.Node) -> fx.Node:
        """A norm over the values of a picture, as one over the channels of each place."""
        moved = self.graph.call_function(torch.movedim, (self.copies[source], 1, -1))
        norm = self.graph.node_copy(node, lambda i: moved if i is source else self._copied(i))
        return self.graph.call_function(torch.movedim, (norm, -1, 1))

    def _add(self, module: nn.Module, source: fx.Node) -> fx.Node:
        name = f"dense_{len(self.graph.nodes)}"
        self.traced.add_submodule(name, module.eval().requires_grad_(False))
        return self.graph.call_module(name, (self.copies[source],))

    def _kind(self, node: fx.Node) -> Any:
        """The class of a module, a function, or the name of a method."""
        return type(self._module(node)) if node.op == "call_module" else node.target

    def _module(self, node: fx.Node) -> Any:
        return self.traced.get_submodule(str(node.target))

    def _matrix(self, node: fx.Node) -> tuple[torch.Tensor, torch.Tensor | None]:
        if node.op == "call_module":
            module = self._module(node)
            return module.weight, module.bias
        given: list[Any] = [*node.args[1:], *node.kwargs.values()]
        tensors = [_attribute(self.traced, i) for i in given if isinstance(i, fx.Node)]
        if not tensors or any(tensor is None for tensor in tensors):
            raise self._cannot(node)
        return tensors[0], (tensors[1] if len(tensors) > 1 else None)  # type: ignore[return-value]

    def _cannot(self, node: fx.Node) -> UsageError:
        kind = self._kind(node)
        return _refusal(f"{getattr(kind, '__name__', kind)} ({node.name}) behind its last map")


def _attribute(traced: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    if node.op != "get_attr":
        return None
    find: Callable[[Any], Any] = operator.attrgetter(str(node.target))
    tensor: torch.Tensor = find(traced)
    return tensor


def _refusal(found: str) -> UsageError:
    return UsageError(
        "expected a head that can be moved over a larger map: convolutions, then average pooling "
        f"or flattening, then layers that act on each place alone, found {found}; such a head has "
        "no score maps"
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:150] or type(error).__name__
