"""Theoretical receptive fields: which pixels of the picture can change a value of a map.

Along one axis, position i of a map sees the pixels ``start + i * stride`` to ``end + i * stride``.
The picture's own pixels are ``start = end = 0``, ``stride = 1``. A convolution or pooling with
kernel k, stride s, padding p and dilation d gives (Araujo, Norris and Sim, "Computing Receptive
Fields of Convolutional Neural Networks", Distill 2019)::

    start - p * stride,    end + ((k - 1) * d - p) * stride,    stride * s

Branches that meet see what any of them sees: the smallest start to the largest end, which is the
largest branch where they lie around the same pixel. What mixes all positions (global pooling, a
matrix after flattening, attention, norms over space) sees the whole picture, and so does what it is
multiplied with, as in squeeze and excitation. A function without a rule in
:mod:`featpipe.backbones.receptive_field_rules` gives an unknown field.

A field is counted without the picture's edges, so it can be larger than the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn

from featpipe.backbones.graph import is_in_place
from featpipe.backbones.receptive_field_axes import Call
from featpipe.backbones.receptive_field_rules import RULES
from featpipe.backbones.spans import Field, joined


def receptive_fields(
    root: nn.Module, graph: fx.Graph, values: Mapping[fx.Node, Any]
) -> dict[fx.Node, Field]:
    """What the outputs of a graph's nodes see of the picture.

    Parameters
    ----------
    root : nn.Module
        The network.
    graph : fx.Graph
    values : mapping of fx.Node to object
        What each node gives for a batch of at least two pictures; only tensors' shapes count.

    Returns
    -------
    dict of fx.Node to Field
        Of the nodes that give tensors which depend on the picture.
    """
    fields: dict[fx.Node, Field] = {}
    for node in graph.nodes:
        result = values.get(node)
        if not _tensors(result):
            continue
        if node.op == "placeholder":
            fields[node] = Field("cchw")
        elif any(i in fields for i in node.all_input_nodes) and node.op != "output":
            fields[node] = _field(root, node, fields, values)
            if is_in_place(node):
                fields[node.args[0]] = fields[node]
    return fields


def _field(
    root: nn.Module,
    node: fx.Node,
    fields: Mapping[fx.Node, Field],
    values: Mapping[fx.Node, Any],
) -> Field:
    module = root.get_submodule(str(node.target)) if node.op == "call_module" else None
    call = Call(
        module,
        fx.node.map_arg(node.args, values.__getitem__),
        fx.node.map_arg(node.kwargs, values.__getitem__),
        [fields.get(a) if isinstance(a, fx.Node) else None for a in node.args],
        [fields[i] for i in node.all_input_nodes if i in fields],
        values[node],
    )
    rule = RULES.get(type(module) if module is not None else node.target)
    everything = functools.reduce(joined, call.inputs)
    try:
        field = rule(call) if rule else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # Arguments given in a way that the rule does not read.
        field = None
    return field if field is not None else everything.unknown(call.axes)


def _tensors(value: Any) -> list[torch.Tensor]:
    parts: Iterable[Any] = value if isinstance(value, (tuple, list)) else (value,)
    return [part for part in parts if isinstance(part, torch.Tensor)]
