"""One torch module in training, by autograd."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from featpipe.base.errors import UsageError
from featpipe.heads.layer_costs import multiplications, widest_activation
from featpipe.heads.module_head import PREFIX, ModuleHead
from featpipe.heads.training.optimizers import OPTIMIZERS
from featpipe.heads.training.schedules import rate_share
from featpipe.heads.training.trainer import State

_NORMAL_SPREAD = 0.05
"""Standard deviation of ``--init normal``: Keras's."""


class ModuleTrainer:
    """A module head in training; a :class:`featpipe.heads.training.trainer.Trainer` of one head.

    It must be made and used inside :func:`random_numbers`: initial weights and dropout are drawn
    from torch's own generators.

    Parameters
    ----------
    head : ModuleHead
        With ``row_shape_`` and ``classes_``.
    scale : float
        Divides every row.
    class_weights : ndarray of float64, shape (classes,)
        Factor of a row's loss, by its class.
    planned_steps : int
        Steps of all epochs, which a schedule of the learning rate spreads over.
    device : str
    """

    count = 1

    def __init__(
        self,
        head: ModuleHead,
        *,
        scale: float,
        class_weights: NDArray[np.float64],
        planned_steps: int,
        device: str,
    ) -> None:
        self.head, self.steps, self.planned_steps = head, 0, planned_steps
        if head.compute == "auto":
            raise UsageError(
                "expected compute to be fp32 or bf16 for a head that is fitted alone, found auto; "
                "name one, or train with train-head, which measures what this hardware is faster in"
            )
        self._device_kind = torch.device(device).type
        self._inverse_scale = 1 / scale
        self._class_weights: torch.Tensor | None = None
        if (class_weights != 1).any():
            self._class_weights = torch.from_numpy(class_weights).float().to(device)
        module = head.new_module(head.row_shape_)
        initialise(module, head.init)
        head.begin(module)
        self.multiplications = multiplications(module, head.row_shape_)
        with head.running("to take a row"):
            widest = widest_activation(module.eval(), head.row_shape_)
        module.train()
        self.widest = max(widest, math.prod(head.row_shape_))
        self.module = module.to(device)
        factors = freeze(self.module, head.rate_factors(self.module))
        self._optimizer = OPTIMIZERS[head.optimizer](
            self.module.parameters(),
            rate=head.rate,
            decay=head.weight_decay,
            momentum=head.inertia,
            factors=factors,
        )
        self._frozen = {n for n, p in self.module.named_parameters() if not p.requires_grad}
        self._learns = True

    def learn(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        with torch.enable_grad(), self.head.running(f"to train on a batch of {len(y)}"):
            loss, hits = self._losses(Z, y, learns=True)
            torch.autograd.backward(loss / len(y))
        share = rate_share(self.head.schedule, self.steps, self.planned_steps)
        self._optimizer.rate = self.head.rate * share
        self._optimizer.step()
        self.steps += 1
        return loss.detach()[None], hits[None]

    def score(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        with torch.no_grad():
            loss, hits = self._losses(Z, y, learns=False)
        return loss[None], hits[None]

    def _losses(
        self, Z: torch.Tensor, y: torch.Tensor, *, learns: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted cross-entropy and hits, summed over the batch; they stay on the device."""
        if learns is not self._learns:
            self.module.train(learns)
            self._learns = learns
        # The batch is a buffer that the next one overwrites.
        rows = Z.mul_(self._inverse_scale).view(len(Z), *self.head.row_shape_)
        with self._autocast(enabled=learns):
            logits = self.module(rows)
        logits = logits.float()
        loss = nn.functional.cross_entropy(logits, y, self._class_weights, reduction="sum")
        return loss, (logits.detach().argmax(dim=1) == y).sum()

    def _autocast(self, *, enabled: bool) -> AbstractContextManager[None]:
        """bf16 products of fp32 weights, in training alone: losses of validation are those that
        predictions have.
        """
        if not enabled or self.head.compute == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self._device_kind, dtype=torch.bfloat16)

    def weight(self, y: torch.Tensor) -> float:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        weights = self._class_weights
        return float(len(y)) if weights is None else float(weights.cpu()[y.cpu()].double().sum())

    def state(self) -> State:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        return {
            name: tensor.detach()[None]
            for name, tensor in self.module.state_dict().items()
            if name not in self._frozen
        }

    def layers(self, state: State, k: int, steps: int) -> dict[str, np.ndarray]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        # Frozen parameters are those that the module has had from its start.
        own = self.module.state_dict()
        found = {name: state[name][k] if name in state else own[name].detach() for name in own}
        return {PREFIX + name: tensor.cpu().numpy() for name, tensor in found.items()}

    def keep(self, heads: list[int]) -> None:
        """See :class:`featpipe.heads.training.trainer.Trainer`; there is one head."""


@contextlib.contextmanager
def random_numbers(seed: int, device: str) -> Iterator[None]:
    """Seed torch's own generators of the processor and the device; later they go on as before."""
    is_cuda = device.startswith("cuda")
    with torch.random.fork_rng(devices=[torch.device(device)] if is_cuda else []):
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.startswith("mps"):
            torch.mps.manual_seed(seed)
        yield


def freeze(module: nn.Module, factors: Mapping[str, float]) -> list[float]:
    """Exclude parameters of factor 0 from training; the factors of all parameters, in order.

    Raises
    ------
    KeyError
        A factor is of no parameter of the module.
    """
    named = dict(module.named_parameters())
    if unknown := factors.keys() - named.keys():
        raise KeyError(f"expected factors of the module's parameters, found {sorted(unknown)}")
    for name, factor in factors.items():
        if not factor:
            named[name].requires_grad_(False)
    return [factors.get(name, 1.0) for name in named]


def initialise(module: nn.Module, scheme: str) -> None:
    """Draw the weights of all convolutions and dense layers anew, and set their biases to 0.

    Parameters
    ----------
    module : Module
    scheme : {"default", "xavier", "kaiming", "normal"}
        ``default`` leaves all as it is.
    """
    if scheme == "default":
        return
    for layer in module.modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        if scheme == "xavier":
            nn.init.xavier_uniform_(layer.weight)
        elif scheme == "kaiming":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        else:
            nn.init.normal_(layer.weight, std=_NORMAL_SPREAD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
