"""``suffix``: everything of the backbone behind a tap, trained on the maps cached at that tap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone
from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import DamageError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.heads.base import StartDocument
from featpipe.heads.module_head import ModuleHead, Shape, first_line
from featpipe.specs.head_params import LINEAR, OWN, SuffixParams

if TYPE_CHECKING:
    from torch import nn

    from featpipe.backbones.suffix import Suffixes, SuffixModule

_ACTIVATION_BYTES = 64 * 2**20
"""Memory that the largest map of a block of rows may take where the suffix does not learn."""


_USUAL_INPUTS = 512
"""Inputs of a unit up to which a new layer learns at the whole learning rate."""


class SuffixHead(SuffixParams, ModuleHead):
    """The layers of a backbone behind a tap, the last one replaced; rows are taken as they are.

    It must be told its feature space by :meth:`attach`, and before it is trained the backbone's
    tensors by :meth:`start_from`. With its own top it has all layers of the network; with a linear
    one those up to the deepest map, the average over its places, and one matrix.
    """

    kind = "suffix"
    standardises = False
    min_steps = 25
    """Ten epochs, the default, are at least 250 steps: measured on 100 and 400 flowers, fewer leave
    the new matrix short of what is to be learned."""
    smaller_network = "a deeper --tap, or --top linear"
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "backbone_rate_factor": (0.01, 0.03, 0.1),
    }
    backbone: Backbone
    space: FeatureSpace
    _start: Mapping[str, NDArray]
    _pretrained: frozenset[str] = frozenset()

    def attach(self, spaces: Sequence[FeatureSpace]) -> None:
        """See :meth:`Head.attach`.

        Raises
        ------
        UsageError
            They are not the unpooled maps of one tap, or the backbone cannot be cut there.
        """
        space = spaces[0].original
        if len(spaces) > 1 or space.pooling != "none":
            found = f"{len(spaces)} taps" if len(spaces) > 1 else f"--pool {space.pooling}"
            raise UsageError(
                f"expected features of one --tap with --pool none for a '{self.kind}' head, found "
                f"{found}; the layers behind a tap need all that it gives"
            )
        self.space, self.backbone = space, get_backbone(space.backbone)

    @cached_property
    def suffixes(self) -> Suffixes:
        """Both suffixes behind the tap."""
        return self.backbone.suffix(self.space.tap, self.space.preprocessing.size)

    @property
    def body(self) -> tuple[str, ...]:
        """Tensors of the layers up to the deepest map, by the backbone's names."""
        return self._named_in(self.suffixes.linear(1))

    @property
    def tail(self) -> tuple[str, ...]:
        """Tensors of the network's own layers behind the deepest map, without the last layer.

        Raises
        ------
        UsageError
            The network does not end in a layer that can be replaced.
        """
        body = set(self.body)
        return tuple(name for name in self._named_in(self.suffixes.own(1)) if name not in body)

    @property
    def has_own_top(self) -> bool:
        """Whether the network ends in a layer that can be replaced."""
        try:
            self.suffixes.own(1)
        except UsageError:
            return False
        return True

    def _named_in(self, module: SuffixModule) -> tuple[str, ...]:
        known = self.backbone.tensor_shapes
        new = f"{module.last_layer}."
        return tuple(n for n in module.state_dict() if n in known and not n.startswith(new))

    def start_from(self, tensors: Mapping[str, NDArray], *, pretrained: bool) -> None:
        """Set what training starts from, and decide the top where it was not said.

        Parameters
        ----------
        tensors : mapping of str to ndarray
            All of :attr:`body`, and those of :attr:`tail` that are there. They are not copied.
        pretrained : bool
            Whether they were trained, and not drawn.
        """
        self._start = tensors
        self._pretrained = frozenset(tensors) if pretrained else frozenset()
        if self.top is None:
            is_whole = pretrained and self.has_own_top and set(self.tail) <= tensors.keys()
            self.top = OWN if is_whole else LINEAR
        # A setting that changes nothing is refused before the first epoch.
        self._suffix(2)

    @property
    def start(self) -> StartDocument:
        """See :attr:`Head.start`."""
        module = self._suffix(len(self.classes_))
        layers: dict[str, bool] = {}
        for name, _ in module.named_parameters():
            layer = name.rpartition(".")[0] or name
            layers[layer] = layers.get(layer, True) and name in self._pretrained
        return {
            "top": str(self.top),
            "pretrained": [layer for layer, is_pretrained in layers.items() if is_pretrained],
            "drawn": [layer for layer, is_pretrained in layers.items() if not is_pretrained],
        }

    def map_shape(self, shape: tuple[int, ...]) -> Shape:
        """See :meth:`ModuleHead.map_shape`: any shape that the tap gives."""
        return shape

    def new_module(self, shape: Shape) -> nn.Module:
        """See :meth:`ModuleHead.new_module`."""
        return self.build(shape, len(self.classes_))

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """See :meth:`ModuleHead.build`; tensors of :meth:`start_from` come by :meth:`begin`."""
        import torch

        from featpipe.backbones.suffix_tensors import draw

        needs_memory = not torch.empty(0).is_meta
        # Networks that could not be made without memory are on the CPU, whatever is asked for here.
        with torch.device("cpu"):
            module = self._suffix(classes)
        if needs_memory:
            draw(module, self.backbone, given=self._start)
        module.train()
        return module

    def _suffix(self, classes: int) -> SuffixModule:
        from featpipe.backbones.suffix_tensors import set_dropout

        own = self.top == OWN
        module = self.suffixes.own(classes) if own else self.suffixes.linear(classes)
        if self.dropout is not None and not set_dropout(module, self.dropout):
            raise UsageError(
                f"expected no --dropout for {self.backbone.name} behind {self.space.tap} with its "
                f"own top, which has no dropout layer, found {self.dropout:g}; leave it out, or "
                "say --top linear"
            )
        return module

    def begin(self, module: nn.Module) -> None:
        """See :meth:`ModuleHead.begin`: the backbone's tensors."""
        import torch

        state = module.state_dict()
        with torch.no_grad():
            for name in state.keys() & self._start.keys():
                state[name].copy_(torch.from_numpy(np.asarray(self._start[name])))

    def rate_factors(self, module: nn.Module) -> Mapping[str, float]:
        """See :meth:`ModuleHead.rate_factors`: pretrained layers learn more slowly.

        So do wide new ones, where the optimiser's step does not depend on the gradient's size: all
        inputs of a unit move it at once (Yang and Hu, "Tensor Programs IV", 2021).
        """
        factors = {}
        for name, parameter in module.named_parameters():
            inputs = parameter[0].numel() if parameter.dim() > 1 else 1
            if name in self._pretrained:
                factors[name] = self.backbone_rate_factor
            elif self.optimizer != "sgd" and inputs > _USUAL_INPUTS:
                factors[name] = _USUAL_INPUTS / inputs
        return factors

    @property
    def block_rows(self) -> int:
        """See :attr:`ModuleHead.block_rows`: the largest map of a block fits into memory."""
        return max(1, min(1024, _ACTIVATION_BYTES // (4 * self._widest)))

    @cached_property
    def _widest(self) -> int:
        nodes = self._suffix(len(self.classes_)).graph.nodes
        return max(int(np.prod(node.meta["shape"])) for node in nodes if "shape" in node.meta)

    def _shape_of_logits(
        self, layers: dict[str, np.ndarray], row_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Set the layers and compare shapes; a file could ask for rows of any size."""
        try:
            rows = self.suffixes.rows
        except (RuntimeError, MemoryError) as error:
            # Of pictures of any size, too.
            raise DamageError(f"expected a network for its rows: {first_line(error)}") from error
        if self.top is None or tuple(row_shape) != rows:
            raise DamageError(
                f"expected rows of {rows} at {self.space.tap}, and a top, found "
                f"{tuple(row_shape)} and {self.top}"
            )
        if self.mean_.shape != tuple(row_shape[:1]) or self.mean_.any() or (self.scale_ != 1).any():
            raise DamageError("expected rows as they are, found a mean or a scale for them")
        self.row_shape_ = tuple(row_shape)
        try:
            self.set_layers(layers)
            self._evaluating()
        except UsageError as error:
            raise DamageError(str(error)) from error
        return (1, len(self.classes_))
