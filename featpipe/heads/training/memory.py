"""How much memory the training of a network takes, known before anything is allocated."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from featpipe.base.errors import OutOfMemoryError
from featpipe.base.hardware import free_memory
from featpipe.heads.layer_costs import activation_bytes
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.training.module_trainer import freeze
from featpipe.heads.training.optimizers import OPTIMIZERS

log = logging.getLogger("featpipe")

WORTH_SAYING = 2**28
"""Bytes from which it is said what training takes; a small network takes less."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes that training takes.

    Attributes
    ----------
    parameters : int
        Of all tensors of the module's state; in bf16 with the copy that products are made of.
    gradients : int
        Of parameters that are trained.
    moments : int
        What the optimiser remembers of these.
    best : int
        The copy of the best epoch's state.
    activations : int
        What a batch leaves for the backward pass, and the widest gradients on the way.
    """

    parameters: int
    gradients: int
    moments: int
    best: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(vars(self).values())

    def text(self, batch_size: int) -> str:
        """The sum and its parts, for messages."""
        parts = ", ".join(
            f"{name} {in_mib(size)}"
            for name, size in (
                ("parameters", self.parameters),
                ("gradients", self.gradients),
                ("moments", self.moments),
                ("best epoch", self.best),
                (f"activations of a batch of {batch_size}", self.activations),
            )
        )
        return f"{in_mib(self.total)} ({parts})"


def training_memory(head: ModuleHead, shape: tuple[int, ...]) -> TrainingMemory:
    """What the training of a head on rows of a shape takes besides its rows.

    The module is built and run without memory where it can be, so that one of any size is measured.
    """
    module = head.blank_module(shape)
    freeze(module, head.rate_factors(module))
    trained = _bytes({n: p for n, p in module.named_parameters() if p.requires_grad})
    state = _bytes(module.state_dict())
    frozen = _bytes(dict(module.named_parameters())) - trained
    saved, widest = activation_bytes(module, shape)
    copies = OPTIMIZERS[head.optimizer].remembers(head.inertia)
    return TrainingMemory(
        parameters=state + (state // 2 if head.compute == "bf16" else 0),
        gradients=trained,
        moments=copies * trained,
        best=state - frozen,
        activations=head.batch_size * (saved + 2 * widest),
    )


def _bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def check_memory(needed: TrainingMemory, head: ModuleHead, device: str) -> int:
    """Say what training takes, and refuse what cannot fit.

    Returns
    -------
    int
        Level at which memory is spoken of: ``logging.INFO`` where training takes more than half
        of what is free, else ``logging.DEBUG``.

    Raises
    ------
    OutOfMemoryError
        Less memory is free.
    """
    free = free_memory(device)
    text = needed.text(head.batch_size)
    level = logging.INFO if needed.total > free / 2 else logging.DEBUG
    if needed.total >= WORTH_SAYING:
        log.log(level, "training '%s' takes %s; %s are free", head.kind, text, in_mib(free))
    if needed.total > free:
        smaller = "a smaller --batch-size"
        if needed.total - needed.activations > free:
            smaller = head.smaller_network
        raise OutOfMemoryError(
            f"expected at least {text} of free memory to train '{head.kind}', found "
            f"{in_mib(free)}; use {smaller}"
        )
    return level


def in_mib(size: int) -> str:
    """Bytes as MiB, or as GiB from one on."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
