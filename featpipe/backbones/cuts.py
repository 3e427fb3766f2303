"""Where the graph of a network can be cut in two: everything behind such a node needs it alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx

from featpipe.backbones.graph import ShapeRun, Traced, ancestors, is_in_place

BATCHES = (2, 3)
"""Sizes of two batches: what is the same for both does not depend on the number of pictures."""


@dataclass(frozen=True)
class Flow:
    """What a network's nodes give for two batches of pictures of one size, and what they carry.

    Attributes
    ----------
    traced : Traced
    values : tuple of dict
        What each node gives, tensors without content, for batches of :data:`BATCHES`.
    """

    traced: Traced
    values: tuple[dict[fx.Node, Any], dict[fx.Node, Any]]

    @classmethod
    def of(cls, traced: Traced, size: int) -> Flow:
        """Run a network without data on pictures of a size."""
        module = fx.GraphModule(traced.root, traced.graph)
        first, second = (ShapeRun(module).run_shapes(n, size).env for n in BATCHES)
        return cls(traced, (first, second))

    @cached_property
    def carriers(self) -> set[fx.Node]:
        """The nodes whose tensors depend on what the pictures show, not on their shape alone."""
        found: set[fx.Node] = set()
        for node in self.traced.graph.nodes:
            depends = node.op == "placeholder" or any(i in found for i in node.all_input_nodes)
            if depends and not is_plain(self.values[0].get(node)):
                found.add(node)
        return found

    @cached_property
    def cuts(self) -> list[str]:
        """Names of the nodes that every path from the pictures to the answer goes through.

        In the order of computation. A node is one if no edge leads from before it to behind it.
        """
        on_paths = self.before_output & self.carriers
        order = [node for node in self.traced.graph.nodes if node in on_paths]
        place = {node: number for number, node in enumerate(order)}
        names = {node: name for name, node in self.traced.nodes.items()}
        found, furthest = [], 0
        for number, node in enumerate(order):
            if furthest <= number and node in names and node.op != "placeholder":
                found.append(names[node])
            furthest = max([furthest, *(place[user] for user in node.users if user in place)])
        return found

    @cached_property
    def before_output(self) -> set[fx.Node]:
        """The nodes that the answer depends on."""
        (output,) = (node for node in self.traced.graph.nodes if node.op == "output")
        return ancestors([output])


def reached_from(node: fx.Node) -> set[fx.Node]:
    """A node, and all that depend on it."""
    found: set[fx.Node] = set()
    to_visit = [node]
    while to_visit:
        one = to_visit.pop()
        if one not in found:
            found.add(one)
            to_visit += one.users
            if is_in_place(one):
                to_visit.append(one.args[0])  # type: ignore[arg-type]
    return found


def is_plain(value: Any) -> bool:
    """Whether a node gives numbers, shapes and other constants, and no tensor."""
    if isinstance(value, list | tuple):
        return all(is_plain(part) for part in value)
    kinds = (bool, int, float, str, type(None), torch.device, torch.dtype)
    return isinstance(value, kinds)
