"""What every tap of a backbone gives, costs and sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from featpipe.backbones.base import Backbone
from featpipe.backbones.cuts import Flow
from featpipe.backbones.graph import ShapeRun, Traced, is_in_place
from featpipe.backbones.receptive_field import receptive_fields
from featpipe.backbones.spans import Field
from featpipe.base.errors import UsageError


@dataclass(frozen=True)
class TapRow:
    """One tap; whatever is not known is None.

    Attributes
    ----------
    name, node : str
    shape : tuple of int or None
        Of one picture's output without pooling; None if there is none for this size.
    parameters : int or None
        Number of learned values up to and including the tap.
    gflops : float or None
        10⁹ floating-point operations per picture of everything the tap depends on. Convolutions
        and matrix products count, with two operations per multiply-add.
    receptive_field : int, str or None
        Side of what a value of the output sees, pixels; ``all`` is the whole picture, 0 nothing.
    stride : int or None
        Pixels from one position of the output to the next.
    padding : int or None
        By how many pixels the first position's field begins before the picture.
    cut : bool or None
        Whether all that lies behind it is computed from it alone, so that a suffix can be trained.
    """

    name: str
    node: str
    shape: tuple[int, ...] | None
    parameters: int | None = None
    gflops: float | None = None
    receptive_field: int | str | None = None
    stride: int | None = None
    padding: int | None = None
    cut: bool | None = None


@dataclass(frozen=True)
class TapTable:
    """The taps of a backbone for one size.

    Attributes
    ----------
    backbone : str
    size : int
        Side of the picture, pixels.
    taps : list of TapRow
        In network order.
    notes : list of str
        Why something is missing, a sentence each.
    """

    backbone: str
    size: int
    taps: list[TapRow]
    notes: list[str]


def tap_table(backbone: Backbone, size: int | None = None) -> TapTable:
    """Run a network without data and say of every tap what it gives, costs and sees.

    Parameters
    ----------
    backbone : Backbone
    size : int, optional
        Side of the picture, pixels; the default is the backbone's own.

    Raises
    ------
    UsageError
        No size is given, and the backbone has none of its own.
    """
    size = size or backbone.default_size
    if not size:
        raise UsageError(f"expected --size for {backbone.name}, which takes any size, found none")
    traced = backbone.graph
    if traced is None:
        return _table_without_graph(backbone, size)
    return _table_of_graph(backbone, traced, size)


_NOT_KNOWN = "receptive fields are not known"


def _table_without_graph(backbone: Backbone, size: int) -> TapTable:
    why = "has no graph that can be traced" if backbone.has_weights else "has no convolutions"
    rows, notes = [], [f"{_NOT_KNOWN}: {backbone.name} {why}"]
    for tap in backbone.taps.values():
        try:
            shape = backbone.output_shape(tap.name, "none", size)
        except UsageError as error:
            notes[1:] = [f"not at {size} px: {error}"]
            rows.append(TapRow(tap.name, tap.node, None))
        else:
            rows.append(TapRow(tap.name, tap.node, shape))
    return TapTable(backbone.name, size, rows, notes)


def _table_of_graph(backbone: Backbone, traced: Traced, size: int) -> TapTable:
    module = fx.GraphModule(traced.root, traced.graph)
    run = _CountedRun(module)
    run.run_shapes(_BATCH, size)
    fields = receptive_fields(traced.root, traced.graph, run.env)
    if run.failures:
        # What a tap sees does not depend on the size, but for poolings to a fixed one.
        usual = ShapeRun(module).run_shapes(_BATCH, backbone.default_size)
        fields = receptive_fields(traced.root, traced.graph, usual.env) | fields
    notes = []
    has_fields = _has_convolutions(traced)
    if not has_fields:
        notes.append(f"{_NOT_KNOWN}: {backbone.name} has no convolutions")
    if run.failures:
        notes.append(f"not at {size} px: {next(iter(run.failures.values()))}")
    cuts = frozenset(Flow.of(traced, size).cuts)
    learned, needed = _learned(traced), _needed(traced.graph)
    rows = []
    for tap in backbone.taps.values():
        node = traced.nodes[tap.node]
        parameters = {key: n for i in needed[node] for key, n in learned[i].items()}
        row = TapRow(tap.name, tap.node, None, sum(parameters.values()))
        if node in run.results:
            operations = sum(run.operations[i] for i in needed[node])
            shape = tuple(run.results[node].shape[1:])
            gflops = operations / _BATCH / 1e9
            row = replace(row, shape=shape, gflops=gflops, cut=tap.node in cuts)
        rows.append(_with_field(row, fields.get(node)) if has_fields else row)
    return TapTable(backbone.name, size, rows, notes)


def _with_field(row: TapRow, field: Field | None) -> TapRow:
    if field is None:
        # A class token before the first attention depends on no pixel.
        return row if row.shape is None else replace(row, receptive_field=0)
    return replace(row, receptive_field=field.size, stride=field.stride, padding=field.padding)


_BATCH = 2
"""A batch of one would look like an axis without positions."""


class _CountedRun(ShapeRun):
    """A run without data that also counts the operations of every node.

    Attributes
    ----------
    operations : dict of fx.Node to int
    """

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.operations: dict[fx.Node, int] = {}
        self._counter = FlopCounterMode(display=False)

    def run_shapes(self, batch: int, size: int) -> ShapeRun:
        """See :meth:`ShapeRun.run_shapes`."""
        with self._counter:
            return super().run_shapes(batch, size)

    def run_node(self, n: fx.Node) -> Any:
        """See :meth:`fx.Interpreter.run_node`."""
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self.operations[n] = self._counter.get_total_flops() - before
        return result


def _needed(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Which nodes each node depends on, itself among them."""
    needed: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        needed[node] = {node}.union(*(needed[i] for i in node.all_input_nodes))
        if is_in_place(node):
            needed[node.args[0]] = needed[node]
    return needed


def _learned(traced: Traced) -> dict[fx.Node, Mapping[int, int]]:
    """How many learned values each parameter of a node has; one used twice has the same key."""
    found: dict[fx.Node, Mapping[int, int]] = {}
    for node in traced.graph.nodes:
        tensors: list[Any] = []
        if node.op == "call_module":
            tensors = list(traced.root.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            tensors = [getattr(traced.root.get_submodule(owner), name)]
        found[node] = {id(t): t.numel() for t in tensors if isinstance(t, nn.Parameter)}
    return found


def _has_convolutions(traced: Traced) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    functions = {functional.conv2d, torch.conv2d}
    modules: list[nn.Module] = [
        traced.root.get_submodule(n.target) for n in traced.graph.nodes if n.op == "call_module"
    ]
    return any(isinstance(module, kinds) for module in modules) or any(
        node.target in functions for node in traced.graph.nodes if node.op == "call_function"
    )
