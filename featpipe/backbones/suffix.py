"""The part of a network behind a tap, with a last layer for other classes: what is fine-tuned.

The tap must be a cut of the network's graph, see :mod:`featpipe.backbones.cuts`. What lies before
it and gives constants only, such as the number of pictures or a class token, joins the suffix.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from featpipe.backbones.base import Backbone
from featpipe.backbones.cuts import BATCHES, Flow, reached_from
from featpipe.backbones.graph import ShapeRun
from featpipe.backbones.graph_part import GraphPart
from featpipe.base.errors import UsageError

LINEAR_TOP = "linear_top"
"""Name of the matrix that a linear top ends in."""
TOP_DROPOUT = "linear_top_dropout"
"""Name of the dropout before it."""
_LAST_LAYER = "last_layer"


class SuffixModule(fx.GraphModule):
    """Rows of a tap (n, …) float32 → logits (n, classes).

    Batch normalisation keeps the statistics it was trained with, also while the suffix is trained:
    those of a batch of a few rows would be worse. Its scale and shift are trained.
    """

    @property
    def last_layer(self) -> str:
        """Path of the layer that gives the logits."""
        return str(self.meta[_LAST_LAYER])

    def train(self, mode: bool = True) -> SuffixModule:
        """See :meth:`nn.Module.train`."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
                part.training = False
        return self

    def logits_shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the answer to rows of a shape; sets ``meta["shape"]`` of every node for one row.

        Raises
        ------
        UsageError
            The module does not take such rows, or gives no tensor.
        """
        run = ShapeRun(self)
        run.run_on(rows)
        failures = list(run.failures.values())
        (output,) = (node for node in self.graph.nodes if node.op == "output")
        if failures or output.args[0] not in run.results:
            raise UsageError(failures[0] if failures else "it gives no tensor")
        for node, result in run.results.items():
            node.meta["shape"] = (1, *result.shape[1:])
        return tuple(run.results[output.args[0]].shape)


@functools.lru_cache(maxsize=8)
def suffixes(backbone: Backbone, tap: str, size: int) -> Suffixes:
    """:class:`Suffixes`, kept for the heads of a sweep: it takes the network's graph seconds."""
    return Suffixes(backbone, tap, size)


class Suffixes:
    """The suffixes behind one tap of a backbone, for pictures of one size.

    Parameters
    ----------
    backbone : Backbone
    tap : str
    size : int
        Side of the pictures, pixels.

    Raises
    ------
    UsageError
        The backbone has no graph, or the tap is no cut of it.
    """

    def __init__(self, backbone: Backbone, tap: str, size: int) -> None:
        traced = backbone.graph
        if traced is None:
            why = "its graph cannot be traced" if backbone.has_weights else "it is no network"
            raise UsageError(
                f"expected a backbone with a graph that can be cut at {tap}, found "
                f"{backbone.name}: {why}; train another head, or extract with another --backbone"
            )
        self.backbone, self.tap, self.size, self.traced = backbone, tap, size, traced
        self.flow = Flow.of(traced, size)
        name = backbone.tap(tap).node
        if name not in self.flow.cuts:
            raise UsageError(_no_cut(backbone, tap, self.flow.cuts))
        self.node = traced.nodes[name]

    @property
    def rows(self) -> tuple[int, ...]:
        """Shape of the tap's output for one picture."""
        return tuple(self.flow.values[0][self.node].shape[1:])

    def own(self, classes: int | None) -> SuffixModule:
        """Everything of the network behind the tap; its last layer is one for so many classes.

        Parameters
        ----------
        classes : int or None
            None keeps the network's own last layer.

        Raises
        ------
        UsageError
            What lies behind the tap does not end in one dense layer or convolution.
        """
        end, last = self._output, self._last_layer
        if last is None or not isinstance(end, fx.Node) or not self._is_behind(last[0]):
            raise UsageError(self._no_last_layer)
        module, path = self._between(end), last[1]
        module.meta[_LAST_LAYER] = path
        layer = self.traced.root.get_submodule(path)
        count = classes or _outputs(layer)
        if classes is not None:
            module.set_submodule(path, _for_classes(layer, classes))
        try:
            shape = module.logits_shape((BATCHES[0], *self.rows))
        except UsageError as error:
            raise UsageError(f"{self._no_last_layer} ({error})") from error
        if shape != (BATCHES[0], count):
            raise UsageError(self._no_last_layer)
        return module

    def linear(self, classes: int) -> SuffixModule:
        """The network up to its deepest map, its average over all places, and one matrix.

        The deepest map is the last cut before the last layer whose places grow with the picture;
        the tap itself where that lies behind it.
        """
        end, places = self._deepest_map
        module = self._between(end)
        shape = self.flow.values[0][end].shape
        width = int(
            torch.Size(n for axis, n in enumerate(shape) if axis and axis not in places).numel()
        )
        module.add_submodule(TOP_DROPOUT, nn.Dropout(0.0))
        with torch.device(self._place):
            module.add_submodule(LINEAR_TOP, nn.Linear(width, classes))
        graph = module.graph
        (output,) = (node for node in graph.nodes if node.op == "output")
        with graph.inserting_before(output):
            top: Any = output.args[0]
            if places:
                top = graph.call_method("mean", (top,), {"dim": list(places)})
            top = graph.call_method("flatten", (top, 1))
            for layer in (TOP_DROPOUT, LINEAR_TOP):
                top = graph.call_module(layer, (top,))
        output.args = (top,)
        module.recompile()
        module.meta[_LAST_LAYER] = LINEAR_TOP
        module.logits_shape((BATCHES[0], *self.rows))
        return module

    @property
    def _place(self) -> str:
        is_meta = all(tensor.is_meta for tensor in self.traced.root.state_dict().values())
        return "meta" if is_meta else "cpu"

    @property
    def _output(self) -> Any:
        (output,) = (node for node in self.traced.graph.nodes if node.op == "output")
        return output.args[0]

    @property
    def _no_last_layer(self) -> str:
        return (
            f"expected one dense layer or convolution that gives the logits of "
            f"{self.backbone.name} behind {self.tap}, found none; say --top linear, or choose an "
            "earlier --tap"
        )

    @cached_property
    def _last_layer(self) -> tuple[fx.Node, str] | None:
        """What computes the last layer with weights on the way to the answer, and its path."""
        root, on_way = self.traced.root, self.flow.before_output
        for node in reversed(self.traced.graph.nodes):
            path, user = str(node.target), node
            if node.op == "get_attr" and path in dict(root.named_parameters()):
                # A layer of a class of the network's own, which is traced through.
                path, user = path.rpartition(".")[0], next(iter(node.users))
            elif node.op != "call_module" or not list(root.get_submodule(path).parameters()):
                continue
            if user in on_way:
                layer = root.get_submodule(path)
                is_plain_conv = isinstance(layer, nn.Conv2d) and layer.groups == 1
                return (user, path) if isinstance(layer, nn.Linear) or is_plain_conv else None
        return None

    def _is_behind(self, node: fx.Node) -> bool:
        return node is not self.node and node in reached_from(self.node)

    @cached_property
    def _deepest_map(self) -> tuple[fx.Node, tuple[int, ...]]:
        """The node, and the axes of its places, counted with the batch's."""
        larger = Flow.of(self.traced, 2 * self.size).values[0]
        last = self._last_layer
        too_deep = set() if last is None else reached_from(last[0])
        behind = reached_from(self.node)
        for name in reversed(self.flow.cuts):
            node = self.traced.nodes[name]
            if node in behind and node not in too_deep:
                places = _places(self.flow.values[0][node], larger.get(node))
                if places:
                    return node, places
        axes = self.backbone.pooled_axes(self.tap, self.size) if len(self.rows) > 1 else ()
        return self.node, axes

    def _between(self, end: fx.Node) -> SuffixModule:
        """The network from the tap to a node behind it."""
        graph = GraphPart(self.flow, self.node).graph(end)
        # Modules of its own: the network's keep their tensors.
        module: SuffixModule = copy.deepcopy(SuffixModule(self.traced.root, graph))
        return module.requires_grad_(True)


def _places(output: Any, larger: Any) -> tuple[int, ...]:
    """Axes of an output that grow with the picture; as usual where larger ones are not taken."""
    if not isinstance(output, torch.Tensor) or not output.is_floating_point():
        return ()
    if isinstance(larger, torch.Tensor):
        if larger.dim() != output.dim():
            return ()
        return tuple(i for i, n in enumerate(output.shape) if n != larger.shape[i])
    usual: tuple[int, ...] = {4: (2, 3), 3: (1,)}.get(output.dim(), ())  # N C H W, or N tokens C
    return usual if any(output.shape[axis] > 1 for axis in usual) else ()


def _outputs(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def _for_classes(layer: nn.Module, classes: int) -> nn.Module:
    """A new layer like one, with another number of outputs."""
    with torch.device(next(layer.parameters()).device):
        if isinstance(layer, nn.Linear):
            return nn.Linear(layer.in_features, classes, bias=layer.bias is not None)
        assert isinstance(layer, nn.Conv2d)
        return nn.Conv2d(
            layer.in_channels,
            classes,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            bias=layer.bias is not None,
            padding_mode=layer.padding_mode,
        )


def _no_cut(backbone: Backbone, tap: str, cuts: Sequence[str]) -> str:
    """Message for a tap that the graph cannot be cut at, with the nearest ones that it can be."""
    names = list(backbone.taps)
    nodes = [backbone.taps[name].node for name in names]
    here = nodes.index(backbone.tap(tap).node)
    known = frozenset(cuts)
    before = next((names[i] for i in reversed(range(here)) if nodes[i] in known), None)
    after = next((names[i] for i in range(here + 1, len(names)) if nodes[i] in known), None)
    nearest = " or ".join(f"--tap {name}" for name in (before, after) if name is not None)
    return (
        f"expected a tap that everything behind it in {backbone.name} is computed from, found "
        f"{tap}, which a branch goes past; extract {nearest or 'another one'}"
    )
