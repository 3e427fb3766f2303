"""The graph of a network: its nodes' names, their shapes, and the part that taps depend on.

Nodes are named as in torchvision's ``get_graph_node_names``: a module's path, or the path of the
module that calls a function, a dot, and the function's name (``layer4.2.relu_2``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from featpipe.backbones import fingerprint
from featpipe.backbones.base import COUNTER, Tensors
from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from torchvision.models.feature_extraction import NodePathTracer


@dataclass(frozen=True)
class Traced:
    """A network and its graph.

    Attributes
    ----------
    root : nn.Module
    graph : fx.Graph
    nodes : dict of str to fx.Node
        By qualified name, in the order of computation.
    """

    root: nn.Module
    graph: fx.Graph
    nodes: dict[str, fx.Node]

    @cached_property
    def last_nodes(self) -> dict[str, str]:
        """The last node of every module, by the module's path."""
        last: dict[str, str] = {}
        for node in self.nodes:
            parts = node.split(".")
            for depth in range(1, len(parts) + 1):
                last[".".join(parts[:depth])] = node
        return last

    @cached_property
    def _whole(self) -> fx.GraphModule:
        return fx.GraphModule(self.root, self.graph)

    def outputs(self, batch: int, size: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What nodes give for pictures of no content, and why some give nothing."""
        run = ShapeRun(self._whole).run_shapes(batch, size)
        found = {
            name: run.results[node]
            for name, node in self.nodes.items()
            if node in run.results and node.op != "placeholder"  # the picture itself is no tap
        }
        return found, list(run.failures.values())

    def tensors(self, name: str) -> set[str]:
        """Names of the parameters and buffers that a node depends on, and perhaps of constants."""
        return set(pruned(self, [name]).state_dict())

    def build(self, names: Sequence[str], size: int, tensors: Tensors) -> fx.GraphModule:
        """The part that nodes depend on; see :meth:`featpipe.backbones.base.Backbone.build`."""
        # Modules of its own: networks on other devices or in other precisions keep theirs.
        module = copy.deepcopy(pruned(self, names))
        record_shapes(module, size)
        set_state(module, tensors)
        return module

    def fingerprint(self, name: str) -> str:
        """What computes a node, besides parameters and buffers, as text."""
        return fingerprint.of_graph(pruned(self, [name]), set(self.root.state_dict()))


def plain_tracer() -> NodePathTracer:
    """torchvision's tracer; importing torchvision takes as long as importing torch."""
    from torchvision.models.feature_extraction import NodePathTracer

    return NodePathTracer()


def trace(module: nn.Module, *, tracer: Callable[[], NodePathTracer] = plain_tracer) -> Traced:
    """Trace a network in eval mode, with every operation out of place.

    An operation in place would change what an earlier tap gives, so that its features depended on
    which other taps are asked for.

    Parameters
    ----------
    module : nn.Module
    tracer : callable
        Makes the tracer.

    Raises
    ------
    Exception
        Whatever the network's own code makes of stand-ins for tensors.
    """
    for part in module.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    made = tracer()
    graph = made.trace(module.eval())
    if any(isinstance(tensor, fx.Proxy) for tensor in module.state_dict(keep_vars=True).values()):
        raise fx.proxy.TraceError("it changes its own tensors")
    for node in graph.nodes:
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
    names = made.node_to_qualname
    nodes = {names[node]: node for node in graph.nodes if node in names}
    return Traced(module, graph, nodes)


def pruned(traced: Traced, names: Sequence[str]) -> fx.GraphModule:
    """The part of a network that nodes depend on: pictures → a tuple of the nodes' outputs."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(traced.graph, copies)
    results = []
    for name in names:
        node = copies[traced.nodes[name]]
        # A method such as add_ would change what the tap gives.
        if any(is_in_place(user) for user in node.users):
            with graph.inserting_after(node):
                copy = graph.call_method("clone", (node,))
            node.replace_all_uses_with(copy, delete_user_cb=is_in_place)
        results.append(node)
    graph.output(tuple(results))
    # Assertions have no users, and would keep what they assert of later layers alive.
    needed = ancestors(results)
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and node not in needed:
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(traced.root, graph)


def is_in_place(node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    return node.op == "call_method" and node.target[-1:] == "_" and node.target[-2:] != "__"  # type: ignore[index]


def ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Nodes, all that they are computed from, and what changes that in place."""
    found: set[fx.Node] = set()
    to_visit = list(nodes)
    while to_visit:
        node = to_visit.pop()
        if node not in found:
            found.add(node)
            to_visit += node.all_input_nodes
            # What writes into a tensor in place has an effect without being an input.
            to_visit += [user for user in node.users if is_in_place(user) and user.args[0] is node]
    return found


class ShapeRun(fx.Interpreter):
    """Runs a graph without data and keeps what every node gives, as a tensor on no device.

    A node that fails, such as a pooling for which the picture is too small, has no result, nor do
    those that depend on it.

    Attributes
    ----------
    results : dict of fx.Node to Tensor
        Of the nodes that give one tensor.
    failures : dict of fx.Node to str
        Why a node itself failed.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.results: dict[fx.Node, torch.Tensor] = {}
        self.failures: dict[fx.Node, str] = {}

    def run_shapes(self, batch: int, size: int) -> ShapeRun:
        """Run it on pictures (batch, 3, size, size) of no content."""
        return self.run_on((batch, 3, size, size))

    def run_on(self, shape: tuple[int, ...]) -> ShapeRun:
        """Run it on an input of a shape and of no content."""
        state = self.module.state_dict().values()
        if all(tensor.is_meta for tensor in state):
            with torch.no_grad():
                self.run(torch.empty(shape, device="meta"))
        else:
            from torch._subclasses.fake_tensor import FakeTensorMode

            with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
                self.run(torch.empty(shape))
        return self

    def run_node(self, n: fx.Node) -> Any:
        """See :meth:`fx.Interpreter.run_node`."""
        if any(isinstance(self.env.get(i), _Failed) for i in n.all_input_nodes):
            return n.args[0] if n.op == "output" else _Failed()
        try:
            result = super().run_node(n)
        except Exception as error:
            self.failures[n] = self._plain(error)
            return _Failed()
        if isinstance(result, torch.Tensor):
            self.results[n] = result
        return result

    def _plain(self, error: Exception) -> str:
        """The message, with values for what had none when the network was traced."""
        values = {node.name: value for node, value in self.env.items()}
        text = " ".join(str(error).split())
        text = re.sub(r"Proxy\((\w+)\)", lambda m: str(values.get(m[1], "another")), text)
        return text[:200] or type(error).__name__


class _Failed:
    """Stands for the result of a node that could not be computed."""


def record_shapes(module: fx.GraphModule, size: int) -> None:
    """Write the shape of every node's output for one picture into ``node.meta["shape"]``.

    Raises
    ------
    UsageError
        The network does not take pictures of this size.
    """
    run = ShapeRun(module).run_shapes(1, size)
    if run.failures:
        raise UsageError(
            f"expected a --size that the network takes, found {size}: "
            f"{next(iter(run.failures.values()))}"
        )
    for node, result in run.results.items():
        node.meta["shape"] = tuple(result.shape)


def set_state(module: nn.Module, tensors: Tensors) -> None:
    """Give a module its parameters and buffers, on the CPU; it learns no more."""
    state: Mapping[str, torch.Tensor] = {
        name: torch.from_numpy(np.array(tensors[name]))
        if name in tensors
        else torch.zeros((), dtype=torch.long)  # a counter of batch normalisation
        for name in module.state_dict()
        if name in tensors or name.endswith(COUNTER)
    }
    # What is in no file of weights, such as constants of the graph, stays as it was made.
    module.load_state_dict(state, assign=True, strict=False)
    lacking = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
    if lacking:
        raise KeyError(lacking[0])
    module.eval().requires_grad_(False)
