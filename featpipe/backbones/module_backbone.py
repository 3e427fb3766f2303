"""A backbone of any network: taps and shapes come from its graph, or from hooks on its modules."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import COUNTER, Backbone, PublishedWeights, Tap, Tensors
from featpipe.backbones.random_weights import normal_weights
from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from torch import fx, nn
    from torchvision.models.feature_extraction import NodePathTracer

    from featpipe.backbones.graph import Traced
    from featpipe.backbones.hooked import Hooked

log = logging.getLogger("featpipe")

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
        Returns the network, another object each time. It is called with torch's default device set
        to ``meta``, so that no memory is taken, and once more on the CPU where the network cannot
        be made without.
    published : callable, optional
        Returns the weights that are published for it; the first are the default.
    aliases : mapping of str to str
        Other names of published weights → their names.
    tracer : callable, optional
        Makes the tracer of its graph.
    on_meta : bool
        Whether it can be made without memory for its tensors.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], nn.Module],
        *,
        published: Callable[[], Mapping[str, PublishedWeights]] = dict,
        aliases: Mapping[str, str] | None = None,
        tracer: Callable[[], NodePathTracer] | None = None,
        on_meta: bool = True,
    ) -> None:
        self.name = name
        self._make, self._published = make, published
        self._tracer, self._on_meta = tracer, on_meta
        self._aliases = aliases or {}
        self._outputs: dict[int, _Outputs] = {}
        self._lock = threading.Lock()

    @cached_property
    def traced(self) -> Traced | Hooked:
        """The network and its graph; or with hooks on its modules, where it cannot be traced."""
        import torch

        from featpipe.backbones.graph import plain_tracer, trace
        from featpipe.backbones.hooked import Hooked

        tracer = self._tracer or plain_tracer

        if self._on_meta:
            with contextlib.suppress(Exception), torch.device("meta"):
                traced = trace(self._make(), tracer=tracer)
                if not _has_other_tensors(traced):
                    return traced
        try:
            return trace(self._make(), tracer=tracer)
        except Exception as reason:
            # Tracing runs the network's own code on stand-ins for tensors: anything may come of it.
            log.debug("%s cannot be traced: %s", self.name, reason)
            return Hooked(self._make(), self.default_size)

    @property
    def graph(self) -> Traced | None:
        """See :attr:`Backbone.graph`."""
        from featpipe.backbones.graph import Traced

        return self.traced if isinstance(self.traced, Traced) else None

    @cached_property
    def taps(self) -> Mapping[str, Tap]:
        """See :attr:`Backbone.taps`: nodes with a tensor per picture, by their shortest path."""
        size = self.default_size
        found = self._outputs_at(size)
        if not found.shapes:
            reason = found.reason or "no module gives one tensor per picture"
            raise UsageError(
                f"expected {self.name} to take colour pictures (N, 3, {size}, {size}), found a "
                f"network that gives nothing for them: {reason}"
            )
        shortest: dict[str, str] = {}
        for path, node in self.traced.last_nodes.items():
            if node not in shortest or len(path) < len(shortest[node]):
                shortest[node] = path
        names = {node: shortest.get(node, node) for node in found.shapes}
        return {name: Tap(name, node) for node, name in names.items()}

    @property
    def tap_names(self) -> Mapping[str, str]:
        """See :attr:`Backbone.tap_names`: also every path of a module whose last node it is."""
        names = {tap.node: tap.name for tap in self.taps.values()}
        paths = self.traced.last_nodes.items()
        found = {path: names[node] for path, node in paths if node in names}
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
            reason = found.reason or "not every picture gets there"
            raise UsageError(
                f"expected a --size that {tap} of {self.name} can be computed for, such as "
                f"{self._nearest_size(node, size)}, found {size}: {reason}"
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
        prefix = _prefix_tokens(self.traced.root)
        if not prefix or len(shape) != 2 or axes != [0]:
            return False
        # Before it was put in front, or after it was taken away, tokens fill the square alone.
        places = shape[0] - prefix
        return places > 0 and math.isqrt(places) ** 2 == places

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
        with self._lock:
            if size not in self._outputs:
                two, reasons = self.traced.outputs(2, size)
                three, _ = self.traced.outputs(3, size)
                shapes = {
                    name: tuple(few.shape[1:])
                    for name, few in two.items()
                    if name in three and _is_per_picture(few, three[name])
                }
                self._outputs[size] = _Outputs(shapes, next(iter(reasons), ""))
            return self._outputs[size]

    @cached_property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:  # type: ignore[override]
        """See :attr:`Backbone.tensor_shapes`."""
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
        needed = self.traced.tensors(self.tap(tap).node)
        return tuple(name for name in self.tensor_shapes if name in needed)

    def spellings(self, name: str) -> tuple[str, ...]:
        """The name itself, and as trainers save it: below ``module.`` or ``model.``.

        Tensors that are one in the network, such as tied weights, may have either name.
        """
        first = self._first_names
        same = [other for other in first if first[other] == first[name] and other != name]
        prefixes = ("", "module.", "model.")
        return tuple(f"{prefix}{spelt}" for prefix in prefixes for spelt in (name, *same))

    @cached_property
    def _first_names(self) -> Mapping[str, str]:
        """The first name of the tensor that a name stands for."""
        first: dict[int, str] = {}
        state = self.traced.root.state_dict(keep_vars=True)
        return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}

    @cached_property
    def published(self) -> Mapping[str, PublishedWeights]:  # type: ignore[override]
        """See :attr:`Backbone.published`."""
        return self._published()

    def weights_called(self, name: str) -> str:
        """See :meth:`Backbone.weights_called`."""
        return self._aliases.get(name, name)

    def random_tensors(self, seed: int, names: Sequence[str]) -> dict[str, NDArray]:
        """Normal weights that keep the scale, scales and variances of 1, zeros for the rest.

        Buffers that are neither, such as tables of indices, are those the network is made with.
        """
        tensors: dict[str, NDArray] = {}
        for name in names:
            shape, last = self.tensor_shapes[name], name.rpartition(".")[2]
            if self._is_constant(name):
                tensors[name] = self._made_on_cpu[name]
            elif len(shape) > 1:
                stream = self._first_names[name].encode()
                number = int.from_bytes(hashlib.sha256(stream).digest()[:4], "little")
                variance = self._random_variances.get(name.rpartition(".")[0], 1.0)
                tensors[name] = normal_weights(seed, number, shape, variance)
            else:
                is_scale = last in ("weight", "running_var", "gamma")
                tensors[name] = np.full(shape, float(is_scale), np.float32)
        return tensors

    @cached_property
    def _random_variances(self) -> Mapping[str, float]:
        from featpipe.backbones.graph import Traced
        from featpipe.backbones.random_scale import variances

        traced = self.traced
        # Without a graph nothing is known of what follows a layer.
        return variances(traced.root, traced.graph) if isinstance(traced, Traced) else {}

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
        return self.traced.build([self.tap(tap).node for tap in taps], size, tensors)


def _has_other_tensors(traced: Traced) -> bool:
    """Whether the graph needs tensors that no file of weights has: constants, hidden buffers."""
    state = traced.root.state_dict()
    named = [*traced.root.named_parameters(), *traced.root.named_buffers()]
    constants = (n for n in traced.graph.nodes if n.op == "get_attr" and n.target not in state)
    return any(True for _ in constants) or any(name not in state for name, _ in named)


def _prefix_tokens(root: nn.Module) -> int:
    """Tokens before those of the picture's places, if the first of them is a class token."""
    if getattr(root, "cls_token", None) is not None:
        return int(getattr(root, "num_prefix_tokens", 0))  # timm
    return int(hasattr(root, "class_token"))  # torchvision


def _is_per_picture(two: Any, three: Any) -> bool:
    """Whether outputs for two and three pictures are floats with one entry per picture."""
    is_float = two.is_floating_point()
    return bool(is_float and two.dim() > 1 and (two.shape[0], three.shape[0]) == (2, 3))
