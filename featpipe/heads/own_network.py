"""A network of the user's own: ``package.module:factory``.

``factory(shape, classes)`` gets the shape of a row (channels, height, width) and the number of
classes, and returns an ``nn.Module``: (n, channels, height, width) float32, standardised → logits
(n, classes). It is imported only where the user permits it, see :mod:`featpipe.base.own_code`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from featpipe.base.errors import DamageError, FeatpipeError, OwnCodeError
from featpipe.base.own_code import load_factory
from featpipe.heads.module_head import ModuleHead, Shape, first_line
from featpipe.specs.head_params import OwnNetworkParams

if TYPE_CHECKING:
    from torch import nn


class OwnNetworkHead(OwnNetworkParams, ModuleHead):
    """A module that a factory of the user's own makes; ``kind`` is the factory's name."""

    kind = "package.module:factory"
    builds_without_memory = False

    def build(self, shape: Shape, classes: int) -> nn.Module:
        """See :meth:`ModuleHead.build`.

        Raises
        ------
        OwnCodeError
            The code is not permitted, or what it makes is no network for these rows and classes.
        """
        from torch import nn

        factory = load_factory(self.kind, what="head")
        with self.running(f"to make a network for rows of {shape} and {classes} classes"):
            module = factory(shape, classes)
        if not isinstance(module, nn.Module):
            raise OwnCodeError(
                f"expected {self.kind!r} to return an nn.Module, found {type(module).__name__}; "
                "correct the factory"
            )
        self._check(module, shape, classes)
        return module

    def _check(self, module: nn.Module, shape: Shape, classes: int) -> None:
        """Refuse a module whose answer to two rows is not two rows of logits."""
        import torch

        with self.running(f"to take 2 rows of {shape}"), torch.no_grad():
            answer = module.eval()(torch.zeros(2, *shape))
        module.train()
        found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        if found != (2, classes) or answer.dtype != torch.float32:
            kind = f" {str(answer.dtype).removeprefix('torch.')}" if found == (2, classes) else ""
            raise OwnCodeError(
                f"expected the network of {self.kind!r} to answer 2 rows with float32 logits of "
                f"shape (2, {classes}), found {found}{kind}; correct the factory"
            )
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype in (
                torch.bfloat16,
                torch.complex64,
                torch.complex128,
            ):
                what = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise OwnCodeError(
                    f"expected the state of the network of {self.kind!r} to be tensors of numbers "
                    f"that NumPy has, found {name!r} of {what}; correct the factory"
                )

    @contextmanager
    def running(self, what: str) -> Iterator[None]:
        """Say on one line what code of the user's own failed in."""
        try:
            yield
        except FeatpipeError:
            raise
        except Exception as error:
            raise OwnCodeError(
                f"expected {self.kind!r} {what}, but: {first_line(error)}; correct it"
            ) from error

    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """See :meth:`Head.set_layers`; makes the network now, while its code is permitted."""
        super().set_layers(layers)
        self._evaluating()

    def _shape_of_logits(
        self, layers: dict[str, np.ndarray], row_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        try:
            return super()._shape_of_logits(layers, row_shape)
        except (KeyError, ValueError, DamageError) as error:
            if isinstance(error, OwnCodeError):
                raise
            raise OwnCodeError(
                f"expected {self.kind!r} to make the network that the head was trained as, found "
                f"another ({first_line(error)}); use the code as it was, or train again"
            ) from error
