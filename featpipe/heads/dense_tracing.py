"""The graph of a head: traced, and run on maps of several sizes without data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from featpipe.backbones.graph import ShapeRun


class Tracer(fx.Tracer):
    """Takes the graphs of parts that have one as they are.

    To trace them again would run functions that are one node in them, such as attention.
    """

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """See :meth:`fx.Tracer.call_module`."""
        if not isinstance(m, fx.GraphModule):
            return super().call_module(m, forward, args, kwargs)
        path, given = self.path_of_module(m), iter(args)
        made: dict[fx.Node, Any] = {}
        for node in m.graph.nodes:
            inner = fx.node.map_arg((node.args, node.kwargs), made.__getitem__)
            if node.op == "placeholder":
                made[node] = next(given)
            elif node.op == "output":
                return inner[0][0]
            else:
                is_part = node.op in ("call_module", "get_attr")
                target = f"{path}.{node.target}" if is_part else node.target
                made[node] = self.create_proxy(node.op, target, *inner)
        raise AssertionError("a graph ends in its output")


def without_memory(traced: fx.GraphModule) -> fx.GraphModule:
    """A copy whose tensors have shapes alone."""
    tensors = [*traced.parameters(), *traced.buffers()]
    # Copies of the tensors themselves would take as much memory as a large head has.
    memo: dict[int, Any] = {id(tensor): tensor.detach().to("meta") for tensor in tensors}
    memo |= {id(p): nn.Parameter(memo[id(p)], requires_grad=False) for p in traced.parameters()}
    return copy.deepcopy(traced, memo)


def shapes_of(empty: fx.GraphModule, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of what nodes give, by their names; of those that can be computed."""
    results = ShapeRun(empty).run_on(shape).results
    computed = ((node, result) for node, result in results.items() if node.op != "output")
    return {node.name: tuple(result.shape) for node, result in computed}


def answer_of(traced: fx.GraphModule) -> fx.Node:
    """The node whose result a graph returns."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    (answer, *_) = output.args
    return answer if isinstance(answer, fx.Node) else output
