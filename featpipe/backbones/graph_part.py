"""Copies the part of a network's graph between two nodes into a graph of its own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from featpipe.backbones.cuts import BATCHES, Flow, is_plain, reached_from
from featpipe.backbones.graph import is_in_place


class GraphPart:
    """The part of a graph behind a node.

    Parameters
    ----------
    flow : Flow
        Of the whole graph.
    start : fx.Node
        A cut: what its rows carry is all of the pictures that the part needs.
    """

    def __init__(self, flow: Flow, start: fx.Node) -> None:
        self.flow, self.start = flow, start
        # Further inputs have defaults, such as no mask.
        pictures = next(node for node in flow.traced.graph.nodes if node.op == "placeholder")
        self.of_pictures, self.of_rows = reached_from(pictures), reached_from(start)

    def graph(self, end: fx.Node) -> fx.Graph:
        """Rows at the start → what the end gives."""
        needed = self._needed(end)
        graph = fx.Graph()
        rows = graph.placeholder("rows")
        copies = {self.start: rows}
        if any(is_in_place(user) for user in self.start.users):
            copies[self.start] = graph.call_method("clone", (rows,))

        def copy_of(node: fx.Node) -> Any:
            if node not in copies:
                copies[node] = self._constant(node, graph, rows)
            return copies[node]

        for node in self.flow.traced.graph.nodes:
            if node in needed and node not in copies:
                copies[node] = _copied(graph, node, copy_of)
        graph.output(copies[end])
        graph.lint()
        return graph

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a node tells of the pictures' shape alone, and not by way of the rows."""
        is_input = node.op == "placeholder"
        is_before = (is_input or node in self.of_pictures) and node not in self.of_rows
        return is_before and is_plain(self.flow.values[0].get(node))

    def _needed(self, end: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        to_visit = [end]
        while to_visit:
            node = to_visit.pop()
            if node in found or node is self.start or self._is_constant(node):
                continue
            found.add(node)
            to_visit += node.all_input_nodes
            if node is not end:
                # What writes into a tensor in place has an effect without being an input.
                to_visit += [u for u in node.users if is_in_place(u) and u.args[0] is node]
        return found

    def _constant(self, node: fx.Node, graph: fx.Graph, rows: fx.Node) -> Any:
        """What a node gives, counted from the rows where it depends on their number or device."""

        def of(first: Any, second: Any) -> Any:
            if isinstance(first, list | tuple):
                return tuple(of(*both) for both in zip(first, second, strict=True))
            if isinstance(first, torch.device):
                return graph.call_function(getattr, (rows, "device"))
            if first == second:
                return first
            number = graph.call_method("size", (rows, 0))
            # Such as windows of a picture, which are counted for the whole batch.
            each = first // BATCHES[0]
            return number if each == 1 else graph.call_function(operator.mul, (number, each))

        return of(*(values[node] for values in self.flow.values))


def _copied(graph: fx.Graph, node: fx.Node, copy_of: Any) -> fx.Node:
    """A copy of a node whose arguments, also those that are no nodes, are as ``copy_of`` says."""
    args = fx.map_arg(node.args, copy_of)
    kwargs = fx.map_arg(node.kwargs, copy_of)
    return graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
