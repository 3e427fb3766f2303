"""A network of the user's own: ``package.module:factory``, named by its tensors and its code."""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import IMAGENET, OWN_WEIGHTS, NetworkInput, Tensors
from featpipe.backbones.module_backbone import ModuleBackbone
from featpipe.base.choices import INTERPOLATIONS
from featpipe.base.errors import FeatpipeError, OwnCodeError, WeightsError
from featpipe.base.text import one_line

if TYPE_CHECKING:
    from torch import fx, nn

INPUT = "featpipe_input"
"""Attribute of a network that says which pictures it expects."""
_COLOURS = ("rgb", "bgr")
_TOLERANCE = 1e-4
"""Largest difference, relative to the largest value, of features that are the same but for
rounding."""


@functools.cache
def own_network(name: str, factory: Callable[..., Any]) -> OwnNetwork:
    """The backbone that a factory of the user's own makes; it is called once per process.

    Raises
    ------
    OwnCodeError
        It raises, makes no ``nn.Module``, or one that features cannot be taken of.
    """
    return OwnNetwork(name, _made(name, factory))


def _made(name: str, factory: Callable[..., Any]) -> nn.Module:
    import torch
    from torch import nn

    try:
        # What is drawn at random is the same in every process, so that features are found again.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            made = factory()
    except Exception as error:
        raise OwnCodeError(
            f"expected {name}() to make a network, but: {one_line(error)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise OwnCodeError(
            f"expected {name}() to return a torch.nn.Module, found {type(made).__name__}"
        )
    state = made.state_dict(keep_vars=True)
    for tensor_name, tensor in state.items():
        if nn.parameter.is_lazy(tensor):
            raise OwnCodeError(
                f"expected {name}() to return a network whose tensors are there, found "
                f"{tensor_name} of a lazy module; run the network once in the factory"
            )
        if tensor.is_complex() or tensor.is_quantized or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else str(tensor.dtype)
            raise OwnCodeError(
                f"expected tensors of {name} that are real or whole numbers, found {tensor_name} "
                f"{kind}"
            )
    # Features are computed from float32, whatever is made; what follows runs on the CPU.
    return made.cpu().float().eval().requires_grad_(False)


class OwnNetwork(ModuleBackbone):
    """A network of the user's own.

    Parameters
    ----------
    name : str
        ``package.module:factory``.
    made : nn.Module
        What the factory made, on the CPU, in float32.
    """

    def __init__(self, name: str, made: nn.Module) -> None:
        super().__init__(name, lambda: copy.deepcopy(made), on_meta=False)
        self._made = made
        self._input = _described_input(name, getattr(made, INPUT, {}))

    @property
    def default_weights(self) -> str:
        """See :attr:`Backbone.default_weights`: those it was made with."""
        return OWN_WEIGHTS

    def input_of(self, weights: str, layout: str = "") -> NetworkInput:
        """See :meth:`Backbone.input_of`: as the network's ``featpipe_input`` says."""
        return self._input

    def own_tensors(self) -> Tensors:
        """See :meth:`Backbone.own_tensors`.

        Raises
        ------
        WeightsError
            A value is not finite.
        """
        return self._own_tensors

    @cached_property
    def _own_tensors(self) -> dict[str, NDArray]:
        state = self._made.state_dict()
        tensors = {name: state[name].numpy() for name in self.tensor_shapes}
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise WeightsError(
                    f"expected finite weights of {self.name}, found infinite ones or NaN in {name}"
                )
        return tensors

    def digest(self, tensors: Tensors, tap: str) -> str:
        """See :meth:`Backbone.digest`: also of the code, so that other code is another space."""
        code = self.traced.fingerprint(self.tap(tap).node)
        both = f"{super().digest(tensors, tap)}\n{code}"
        return hashlib.sha256(both.encode()).hexdigest()

    def build(self, tensors: Tensors, taps: Sequence[str], size: int) -> fx.GraphModule:
        """See :meth:`Backbone.build`.

        Raises
        ------
        OwnCodeError
            A picture's features depend on chance, on earlier pictures, or on others of its batch.
        """
        self._check_features(super().build(tensors, taps, size), taps, size)
        return super().build(tensors, taps, size)

    def _check_features(self, module: nn.Module, taps: Sequence[str], size: int) -> None:
        """Compare what a network gives for one picture twice, and in other company."""
        import torch

        noise = torch.Generator().manual_seed(0)
        pictures = torch.randn(3, 3, size, size, generator=noise)
        try:
            with torch.no_grad():
                first, *others = module(pictures), module(pictures), module(pictures[:2])
        except FeatpipeError:
            raise
        except Exception as error:
            raise OwnCodeError(
                f"expected {self.name} to take pictures (N, 3, {size}, {size}), but: "
                f"{one_line(error)}"
            ) from error
        for other in others:
            for tap, one, two in zip(taps, first, other, strict=True):
                difference = (one[:2].float() - two[:2].float()).abs().max()
                if difference > _TOLERANCE * max(1.0, float(one.abs().max())):
                    raise OwnCodeError(
                        f"expected {self.name} to give a picture the same features at {tap} every "
                        f"time, found others ({difference:.2g} away): it draws at random, changes "
                        "itself, or mixes the pictures of a batch"
                    )


def _described_input(name: str, said: Any) -> NetworkInput:
    """The input that a network says it expects; what it leaves out is as for ImageNet."""
    known = [field.name for field in fields(NetworkInput)]
    where = f"{INPUT} of {name}"
    if not isinstance(said, Mapping) or any(key not in known for key in said):
        raise OwnCodeError(f"expected {where} to be a dict of {', '.join(known)}, found {said!r}")
    given = {"mean": IMAGENET.mean, "std": IMAGENET.std, **said}
    for key in ("mean", "std"):
        given[key] = _three(f"{key} in {where}", given[key], positive=key == "std")
    found = NetworkInput(**given)
    for key, allowed in (("channels", _COLOURS), ("interpolation", INTERPOLATIONS)):
        if getattr(found, key) not in allowed:
            raise OwnCodeError(
                f"expected {key} of {' or '.join(allowed)} in {where}, found {said[key]!r}"
            )
    least = {"size": 1, "resize_to": found.size}
    for key, low in least.items():
        value = getattr(found, key)
        if value is not None and (type(value) is not int or value < low):
            raise OwnCodeError(f"expected {key} of at least {low} pixels in {where}, found {value}")
    return found


def _three(what: str, values: Any, *, positive: bool) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        raise OwnCodeError(f"expected three numbers as {what}, found {values!r}") from None
    if not all(math.isfinite(v) and (v > 0 or not positive) for v in (red, green, blue)):
        kind = "positive" if positive else "finite"
        raise OwnCodeError(f"expected {kind} numbers as {what}, found {values!r}")
    return (red, green, blue)
