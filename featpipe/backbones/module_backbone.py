"""A backbone of any network whose graph can be traced: taps and shapes come from the graph."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone, PublishedWeights, Tap, Tensors
from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from torch import fx, nn

    from featpipe.backbones.graph import Traced

_USUAL_SIZE = 224
_SIZES = range(1, 1025)


@dataclass(frozen=True)
class _Outputs:
    """What the nodes of a network give for pictures of one size.

    Attributes
    ----------
    shapes : dict of str to tuple of int
        Of one picture's output, by node; those that could not be computed are missing.
    reason : str
        Why nodes are missing; empty where none is.
    """

    shapes: dict[str, tuple[int, ...]]
    reason: str


class ModuleBackbone(Backbone):
    """A network given as a function that makes it.

    Parameters
    ----------
    name : str
    make : callable
        Returns the network. It is called with torch's default device set to ``meta``, so that no
        memory is taken, and once more on the CPU where the network cannot be made without.
    published : callable, optional
        Returns the weights that are published for it; the first are the default.
    aliases : mapping of str to str
        Other names of published weights → their names.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        *,
        published: Callable[[], Mapping[str, PublishedWeights]] = dict,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._make, self._published = make, published
        self._aliases = aliases or {}
        self._outputs: dict[int, _Outputs] = {}
        self._lock = threading.Lock()

    @cached_property
    def traced(self) -> Traced:
        """The network's graph, on the meta device where it can be."""
        import torch

        from featpipe.backbones.graph import trace

        try:
            with torch.device("meta"):
                traced = trace(self._make(), tracer=self._tracer)
            if not _has_other_tensors(traced):
                return traced
        except (RuntimeError, NotImplementedError):
            pass
        return trace(self._make(), tracer=self._tracer)

    @property
    def graph(self) -> Traced | None:
        """See :attr:`Backbone.graph`."""
        from featpipe.backbones.graph import Traced

        return self.traced if isinstance(self.traced, Traced) else None

    @cached_property
    def _tracer(self) -> Any:
        from torchvision.models.feature_extraction import NodePathTracer

        return NodePathTracer

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """See :attr:`Backbone.taps`: nodes with a tensor per picture, by their shortest path."""
        shapes = self._outputs_at(self.default_size).shapes
        last = _last_nodes(self.traced.nodes)
        shortest: dict[str, str] = {}
        for path, node in last.items():
            if node not in shortest or len(path) < len(shortest[node]):
                shortest[node] = path
        names = {node: shortest.get(node, node) for node in self.traced.nodes if node in shapes}
        return {name: Tap(name, node) for node, name in names.items()}

    @property
    def tap_names(self) -> Mapping[str, str]:
        """See :attr:`Backbone.tap_names`: also every path of a module whose last node it is."""
        names = {tap.node: tap.name for tap in self.taps.values()}
        paths = _last_nodes(self.traced.nodes)
        found = {path: names[node] for path, node in paths.items() if node in names}
        return found | dict(super().tap_names)

    @property
    def default_size(self) -> int:  # type: ignore[override]
        """Side of the pictures that the default weights were trained on, pixels."""
        return self.input_of(self.default_weights).size or _USUAL_SIZE

    def output_shape(
        self, tap: str, pooling: str, size: int, channels: str = "rgb"
    ) -> tuple[int, ...]:
        """See :meth:`Backbone.output_shape`."""
        node = self.tap(tap).node
        found = self._outputs_at(size)
        if node not in found.shapes:
            raise UsageError(
                f"expected a --size that {tap} of {self.name} can be computed for, such as "
                f"{self._nearest_size(node, size)}, found {size}: {found.reason}"
            )
        shape = found.shapes[node]
        if pooling == "none":
            return shape
        axes = [axis - 1 for axis in self.pooled_axes(tap, size)]
        if pooling == "cls" and not self._has_class_token(shape, axes):
            raise UsageError(
                f"expected --pool none, avg or max for {tap} of {self.name}, found 'cls': its "
                "output has no class token"
            )
        return tuple(n for axis, n in enumerate(shape) if axis not in axes)

    def pooled_axes(self, tap: str, size: int) -> tuple[int, ...]:
        """See :meth:`Backbone.pooled_axes`: the axes that grow with the picture."""
        node = self.tap(tap).node
        shape = self._outputs_at(size).shapes[node]
        if len(shape) == 1:
            return ()
        larger = self._outputs_at(2 * size).shapes.get(node, ())
        if len(larger) == len(shape):
            growing = [axis + 1 for axis, n in enumerate(shape) if n != larger[axis]]
            if growing:
                return tuple(growing)
        # Networks for one size only, and poolings to a fixed size: N C H W, or N tokens C.
        return {3: (2, 3), 2: (1,)}.get(len(shape), ())

    def _has_class_token(self, shape: tuple[int, ...], axes: list[int]) -> bool:
        root = self.traced.root
        has_one = hasattr(root, "class_token") or getattr(root, "num_prefix_tokens", 0) > 0
        return has_one and len(shape) == 2 and axes == [0]

    def _nearest_size(self, node: str, size: int) -> int:
        """The smallest larger size for which a node can be computed, else the default one."""
        larger = [n for n in _SIZES if n > size]
        if not larger or node not in self._outputs_at(larger[-1]).shapes:
            return self.default_size
        low, high = 0, len(larger) - 1
        while low < high:
            middle = (low + high) // 2
            if node in self._outputs_at(larger[middle]).shapes:
                high = middle
            else:
                low = middle + 1
        return larger[low]

    def _outputs_at(self, size: int) -> _Outputs:
        """Shapes for a size; nodes whose first axis is not the batch have none."""
        from featpipe.backbones.graph import ShapeRun

        with self._lock:
            if size not in self._outputs:
                two, three = (ShapeRun(self._whole).run_shapes(n, size) for n in (2, 3))
                shapes = {}
                for name, node in self.traced.nodes.items():
                    if node.op == "placeholder":
                        continue
                    few, more = two.results.get(node), three.results.get(node)
                    if few is not None and more is not None and _is_per_picture(few, more):
                        shapes[name] = tuple(few.shape[1:])
                self._outputs[size] = _Outputs(shapes, next(iter(two.failures.values()), ""))
            return self._outputs[size]

    @cached_property
    def _whole(self) -> fx.GraphModule:
        from torch import fx

        return fx.GraphModule(self.traced.root, self.traced.graph)

    @cached_property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
        """See :attr:`Backbone.tensor_shapes`."""
        from featpipe.backbones.graph import COUNTER

        state = self.traced.root.state_dict()
        return {name: tuple(t.shape) for name, t in state.items() if not name.endswith(COUNTER)}

    @cached_property
    def whole_numbers(self) -> frozenset[str]:  # type: ignore[override]
        """See :attr:`Backbone.whole_numbers`."""
        state = self.traced.root.state_dict()
        return frozenset(name for name, t in state.items() if not t.is_floating_point())

    def dtype(self, name: str) -> str:
        """See :meth:`Backbone.dtype`."""
        if name not in self.whole_numbers:
            return super().dtype(name)
        return str(self.traced.root.state_dict()[name].dtype).removeprefix("torch.")

    def parameters(self, tap: str) -> tuple[str, ...]:
        """See :meth:`Backbone.parameters`."""
        from featpipe.backbones.graph import pruned

        needed = pruned(self.traced, [self.tap(tap).node]).state_dict()
        return tuple(name for name in self.tensor_shapes if name in needed)

    def spellings(self, name: str) -> tuple[str, ...]:
        """The name itself, and as trainers save it: below ``module.`` or ``model.``."""
        return (name, f"module.{name}", f"model.{name}")

    @cached_property
    def published(self) -> Mapping[str, PublishedWeights]:  # type: ignore[override]
        """See :attr:`Backbone.published`."""
        return self._published()

    def weights_called(self, name: str) -> str:
        """See :meth:`Backbone.weights_called`."""
        return self._aliases.get(name, name)

    def random_tensors(self, seed: int, names: Sequence[str]) -> dict[str, NDArray]:
        """Normal weights of variance 1 / fan in, scales and variances of 1, zeros for the rest.

        Buffers that are neither, such as tables of indices, are those the network is made with.
        Shortcuts add up: with He's variance of 2 / fan in deep networks would overflow.
        """
        tensors: dict[str, NDArray] = {}
        for name in names:
            shape, last = self.tensor_shapes[name], name.rpartition(".")[2]
            if self._is_constant(name):
                tensors[name] = self._made_on_cpu[name]
            elif len(shape) > 1:
                number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
                # NumPy guarantees that RandomState's streams never change.
                normal = np.random.RandomState([seed, number]).standard_normal(shape)
                tensors[name] = (normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
            else:
                is_scale = last in ("weight", "running_var", "gamma")
                tensors[name] = np.full(shape, float(is_scale), np.float32)
        return tensors

    def _is_constant(self, name: str) -> bool:
        """Whether a tensor is a buffer that no training changes."""
        if name.endswith(("running_mean", "running_var")):
            return False
        return name in dict(self.traced.root.named_buffers())

    @cached_property
    def _made_on_cpu(self) -> dict[str, NDArray]:
        return {name: tensor.numpy() for name, tensor in self._make().state_dict().items()}

    def build(self, tensors: Tensors, taps: Sequence[str], size: int) -> fx.GraphModule:
        """See :meth:`Backbone.build`."""
        from featpipe.backbones.graph import pruned, record_shapes, set_state

        module = pruned(self.traced, [self.tap(tap).node for tap in taps])
        record_shapes(module, size)
        set_state(module, tensors)
        return module


def _has_other_tensors(traced: Traced) -> bool:
    """Whether the graph needs tensors that no file of weights has: constants, hidden buffers."""
    state = traced.root.state_dict()
    named = [*traced.root.named_parameters(), *traced.root.named_buffers()]
    constants = (n for n in traced.graph.nodes if n.op == "get_attr" and n.target not in state)
    return any(True for _ in constants) or any(name not in state for name, _ in named)


def _last_nodes(nodes: Mapping[str, Any]) -> dict[str, str]:
    """The last node of every module, by the module's path."""
    last: dict[str, str] = {}
    for node in nodes:
        parts = node.split(".")
        for depth in range(1, len(parts) + 1):
            last[".".join(parts[:depth])] = node
    return last


def _is_per_picture(two: Any, three: Any) -> bool:
    """Whether outputs for two and three pictures are floats with one entry per picture."""
    is_float = two.is_floating_point()
    return bool(is_float and two.dim() > 1 and (two.shape[0], three.shape[0]) == (2, 3))
