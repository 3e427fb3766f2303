"""Module heads: torch modules on maps, trained by autograd, from scratch."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DamageError, OwnCodeError, UsageError
from featpipe.heads.gradient_head import GradientHead
from featpipe.specs.head_params import ModuleParams

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
"""Channels, height and width of a row; of a suffix whatever its tap gives."""

PREFIX = "module."
"""Begins the names of a module's tensors, which could otherwise be those of other tensors."""
_BLOCK_BYTES = 16 * 2**20
_LEARNING_RATES = {"adamw": 1e-3, "sgd": 1e-2, "rmsprop": 1e-3}
_MOMENTA = {"sgd": 0.9, "rmsprop": 0.0}
_PATIENCE = 5


class ModuleHead(ModuleParams, GradientHead):
    """A torch module on maps (channels, height, width).

    ``mean_`` (channels,) and ``scale_`` (1,) are statistics of the training rows: a mean for each
    channel and one scale. The module gets rows (n, channels, height, width) float32, standardised,
    and answers with logits (n, classes). All tensors of its state are learned tensors, buffers
    such as the statistics of batch normalisation included.
    """

    trains_together = False
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "batch_size": (32, 128),
    }
    smallest_side: ClassVar[int] = 1
    """Height and width of the smallest maps that the network takes, pixels."""
    standardises: ClassVar[bool] = True
    """Whether rows are centred and scaled; else they are taken as they are."""
    builds_without_memory: ClassVar[bool] = True
    """Whether all tensors of the module are in its state, so that it can be built without them."""
    smaller_network: ClassVar[str] = "smaller maps (a smaller --size) or a smaller network"
    """What to train instead where the network does not fit into memory."""
    row_shape_: Shape
    _module: nn.Module | None = None

    @abstractmethod
    def build(self, shape: Shape, classes: int) -> nn.Module:
        """A new module for rows of a shape, with initial weights from torch's random numbers."""

    @classmethod
    def sweep_axes(cls, given: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """See :meth:`Head.sweep_axes`; sgd needs ten times the learning rate."""
        axes = super().sweep_axes(given)
        factor = _LEARNING_RATES[given.get("optimizer", cls.optimizer)] / _LEARNING_RATES["adamw"]
        if "learning_rate" in axes:
            axes["learning_rate"] = tuple(
                float(f"{rate * factor:.6g}") for rate in axes["learning_rate"]
            )
        return axes

    @property
    def rate(self) -> float:
        """The learning rate: as given, else the optimiser's own default."""
        return self.learning_rate or _LEARNING_RATES[self.optimizer]

    @property
    def inertia(self) -> float:
        """The momentum: as given, else the optimiser's own default."""
        return _MOMENTA.get(self.optimizer, 0.0) if self.momentum is None else self.momentum

    @property
    def tolerance(self) -> int:
        """Epochs without a lower validation loss before training stops.

        As given, else 5. A cosine schedule lowers the loss most in its last epochs, so it stops
        early only where patience is given.
        """
        if self.patience is not None:
            return self.patience
        return self.epochs if self.schedule == "cosine" else _PATIENCE

    def begin(self, module: nn.Module) -> None:
        """Set the tensors of a new module that are not drawn, before it is trained."""

    def rate_factors(self, module: nn.Module) -> Mapping[str, float]:
        """What the learning rate is multiplied by, by names of the module's parameters.

        1 for those that are not named. Parameters of factor 0 are not trained.
        """
        return {}

    def map_shape(self, shape: tuple[int, ...]) -> Shape:
        """The shape of rows as one of maps.

        Raises
        ------
        UsageError
            They are flat.
        """
        if len(shape) != 3:
            raise UsageError(
                f"expected maps (channels, height, width) for a '{self.kind}' head, found flat "
                f"rows of {int(np.prod(shape))} numbers; extract with --backbone pixels, or with "
                "--pool none, and name that space with --backbone or --pool"
            )
        return shape

    def new_module(self, shape: Shape) -> nn.Module:
        """:meth:`build` for the head's classes.

        Raises
        ------
        UsageError
            The rows are too small for the network.
        """
        _, height, width = shape
        if min(height, width) < self.smallest_side:
            raise UsageError(
                f"expected maps of at least {self.smallest_side} x {self.smallest_side} for a "
                f"'{self.kind}' head, found {height} x {width}; extract with a larger --size, or "
                "train a smaller network"
            )
        return self.build(shape, len(self.classes_))

    def standardise(self, block: np.ndarray) -> NDArray[np.float32]:
        """Rows (n, channels, height, width) or flat ones → (n, c, h, w) float32, standardised."""
        maps = block.reshape(len(block), *self.row_shape_).astype(np.float32)
        if not self.standardises:
            return maps
        maps -= self.mean_[:, None, None]
        maps /= self.scale_
        return maps

    def logits(self, Z: NDArray[np.float32]) -> np.ndarray:
        """Standardised rows (n, c, h, w) float32 → (n, classes)."""
        import torch

        module = self._evaluating()
        with torch.inference_mode():
            parts = [
                module(torch.from_numpy(part)).numpy()
                for part in np.split(Z, range(self.block_rows, len(Z), self.block_rows))
            ]
        return np.concatenate(parts)

    def to_module(self, row_shape: tuple[int, ...]) -> nn.Module:
        """See :meth:`Head.to_module`."""
        from torch import nn

        from featpipe.heads.as_module import Standardise

        if not self.standardises:
            return nn.Sequential(self._evaluating()).eval()
        return nn.Sequential(Standardise(self.mean_, self.scale_), self._evaluating()).eval()

    def running(self, what: str) -> AbstractContextManager[None]:
        """Around code of the network, to say ``what`` it failed in where that is the user's own."""
        return contextlib.nullcontext()

    @property
    def block_rows(self) -> int:
        """Rows that the module is given at once where it does not learn."""
        width = max(1, int(np.prod(self.row_shape_)), self._widest)
        return max(16, min(1024, _BLOCK_BYTES // (4 * width)))

    @cached_property
    def _widest(self) -> int:
        """Numbers of the widest activation of a row."""
        from featpipe.heads.layer_costs import widest_activation

        return widest_activation(self._evaluating(), self.row_shape_)

    def _evaluating(self) -> nn.Module:
        """The module with its learned tensors, made when it is first needed."""
        if self._module is None:
            self._module = self._with_layers()
        return self._module

    def blank_module(self, shape: Shape) -> nn.Module:
        """:meth:`new_module`, whose tensors have no memory and no numbers where that is possible.

        No random numbers are taken.
        """
        import torch

        place = torch.device("meta") if self.builds_without_memory else contextlib.nullcontext()
        with place, torch.random.fork_rng(devices=[]):
            return self.new_module(shape)

    def main_layer(self, shape: tuple[int, ...]) -> str:
        """Where most multiplications are for rows of a shape: ``convolution`` or ``dense``."""
        from torch.nn.modules.conv import _ConvNd

        layers = self.blank_module(self.map_shape(shape)).modules()
        return "convolution" if any(isinstance(one, _ConvNd) for one in layers) else "dense"

    def _with_layers(self) -> nn.Module:
        import torch

        # Without memory of its own: a damaged file could ask for any size.
        module = self.blank_module(self.row_shape_)
        expected = module.state_dict()
        state = {}
        for name, tensor in expected.items():
            found = self.layers_[PREFIX + name]
            if found.shape != tuple(tensor.shape):
                raise ValueError(
                    f"{PREFIX + name} of {tuple(tensor.shape)}, found one of {found.shape}"
                )
            # The head's own memory: an evaluating module changes nothing.
            state[name] = torch.from_numpy(np.require(found, requirements=["C", "W"]))
            if state[name].dtype != tensor.dtype:
                dtype = str(tensor.dtype).removeprefix("torch.")
                raise ValueError(f"{PREFIX + name} of {dtype}, found {found.dtype}")
        if len(self.layers_) > len(expected):
            raise ValueError(f"{len(expected)} of them, found {len(self.layers_)}")
        module.load_state_dict(state, assign=True)
        return module.eval()

    def layers(self) -> dict[str, np.ndarray]:
        """The module's state: parameters and buffers, their names behind ``module.``."""
        return self.layers_

    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """See :meth:`Head.set_layers`."""
        self.layers_, self._module = layers, None

    def _shape_of_logits(
        self, layers: dict[str, np.ndarray], row_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Set the layers, build the module, and see what one row comes to."""
        if len(row_shape) != 3 or self.mean_.shape != tuple(row_shape[:1]):
            raise DamageError(
                f"it takes maps of {self.mean_.size} channels, its space has {tuple(row_shape)}"
            )
        self.row_shape_ = (row_shape[0], row_shape[1], row_shape[2])
        try:
            self.set_layers(layers)
            return tuple(self.logits(np.zeros((1, *row_shape), np.float32)).shape)
        except UsageError as error:
            if isinstance(error, OwnCodeError):
                raise
            raise DamageError(str(error)) from error
        except (RuntimeError, MemoryError) as error:
            raise DamageError(
                f"expected the tensors of a '{self.kind}' head: {first_line(error)}"
            ) from error


def pooled_side(side: int, lost: int = 0) -> int:
    """Side of a map after a convolution that takes ``lost`` pixels, and a pooling by 2."""
    return (side - lost) // 2


def first_line(error: BaseException) -> str:
    """What an error says, on one line, with the name of its class."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
