r"""Many heads of one shape trained as one computation: forward pass, gradients and updates.

The first axis of every tensor counts heads. They see the same batches and nothing of each other,
so a head in a group learns what it would have learned alone. Gradients are written out: there are
but two kinds of layers, and autograd would keep more than they need.

Three things make a step cheap, and none of them changes what is learned:

- **One optimiser step for all learning rates.** Each head's numbers are kept divided by a factor,
  see :mod:`featpipe.heads.training.adamw`; products with them are multiplied by it.
- **Rows come centred but not divided by their scale** s. Products are divided instead:
  :math:`W (x / s) = (W x) / s`, and a product has fewer numbers than its rows.
- **Of two classes only half the difference is trained**, see
  :class:`featpipe.heads.training.linear_group.LinearGroup`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featpipe.heads.base import Head
from featpipe.heads.training.adamw import AdamW
from featpipe.heads.training.trainer import State


class HeadGroup(ABC):
    """K heads on flat rows in training; a :class:`featpipe.heads.training.trainer.Trainer`.

    Parameters
    ----------
    heads : sequence of Head
        Their hyper-parameters; those that decide shapes are equal.
    seeds : sequence of int
        A head's seed decides its initial weights and its dropout.
    width, classes : int
        Features of a row, and classes.
    scale : float
        Divides every row.
    class_weights : ndarray of float64, shape (classes,)
        Factor of a row's loss, by its class.
    log_prior : ndarray of float32, shape (classes,)
        Where the output's bias starts; sums to 0.
    device : str
    """

    def __init__(
        self,
        heads: Sequence[Head],
        seeds: Sequence[int],
        *,
        width: int,
        classes: int,
        scale: float,
        class_weights: NDArray[np.float64],
        log_prior: NDArray[np.float32],
        device: str,
    ) -> None:
        self.heads, self.seeds = list(heads), list(seeds)
        self.width, self.classes, self.device = width, classes, device
        self.widest = width
        self._inverse_scale = 1 / scale
        self._log_prior = torch.from_numpy(log_prior)
        self._class_weights: torch.Tensor | None = None
        if (class_weights != 1).any():
            self._class_weights = torch.from_numpy(class_weights).float().to(device)
        self.steps = 0
        self._class_numbers = torch.arange(classes, device=device)[:, None]
        drawn = {seed: self._initial(seed) for seed in dict.fromkeys(seeds)}
        names = next(iter(drawn.values()))
        rates, decays = self._settings("learning_rate"), self._settings("weight_decay")
        # A bias is not decayed: that would pull it from the classes' frequencies to equal ones.
        self._parts = {
            name: AdamW(
                torch.stack([drawn[seed][name] for seed in seeds]).to(device),
                [rate * self._bias_pace for rate in rates] if name == "bias" else rates,
                [0.0] * len(decays) if name.endswith("bias") else decays,
            )
            for name in names
        }
        self._first_heads, self._first_seeds = self.heads, self.seeds
        self._first_factors = self._factors

    @property
    def count(self) -> int:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        return len(self.heads)

    @property
    def _factors(self) -> torch.Tensor:
        """What products with the parts' values are multiplied by: (K, 1, 1)."""
        return next(part.factors for part in self._parts.values() if part.value.dim() == 3)

    @property
    def _bias_pace(self) -> float:
        """What the learning rates are multiplied by for the tensor ``bias``."""
        return 1.0

    @staticmethod
    @abstractmethod
    def parameter_count(head: Head, width: int, classes: int) -> int:
        """How many numbers a head of this kind learns."""

    @staticmethod
    def shape_of(head: Head) -> tuple[Any, ...]:
        """Hyper-parameters that decide shapes: heads of one group have them in common."""
        return ()

    @abstractmethod
    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """Centred rows (b, d) → (K, classes, b), as for new rows.

        Rows are the last axis: a pass over classes that lie one after the other would be slow.
        """

    @abstractmethod
    def _logits_in_training(self, Z: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        """Write gradients, given those of the logits (K, classes, b)."""

    @abstractmethod
    def _initial(self, seed: int) -> State:
        """Numbers at the start; the output's bias is ``log_prior``."""

    def layers(self, state: State, k: int, steps: int) -> dict[str, np.ndarray]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        factor = float(self._first_factors[k])
        return {name: (value[k] * factor).cpu().numpy() for name, value in state.items()}

    def learn(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        losses, hits, G = self._losses(self._logits_in_training(Z), y)
        self._backward(Z, G.mul_(1 / len(y)))
        for part in self._parts.values():
            part.step()
        self.steps += 1
        return losses, hits

    def score(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        losses, hits, _ = self._losses(self.logits(Z), y)
        return losses, hits

    def weight(self, y: torch.Tensor) -> float:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        weights = self._class_weights
        # On the CPU, because Apple's GPUs have no float64.
        return float(len(y)) if weights is None else float(weights[y].cpu().double().sum())

    def keep(self, heads: list[int]) -> None:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        self.heads, self.seeds = [self.heads[k] for k in heads], [self.seeds[k] for k in heads]
        for part in self._parts.values():
            part.keep(heads)

    def state(self) -> State:
        """See :class:`featpipe.heads.training.trainer.Trainer`."""
        return {name: part.value for name, part in self._parts.items()}

    def _losses(
        self, logits: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weighted cross-entropy and hits (K,), summed over rows, and its gradient by the logits.

        A tie between classes counts as a hit: looking for the first maximum is far slower.
        """
        weights = None if self._class_weights is None else self._class_weights[y]
        if self.classes == 2:
            # softmax over a pair is the logistic function of the difference, in shorter passes.
            truth, margin = y.float(), logits[:, 1] - logits[:, 0]
            losses = torch.nn.functional.softplus(margin * (1 - 2 * truth))
            hits = ((margin > 0) == y).sum(dim=1)
            half = margin.sigmoid_().sub_(truth)
            gradient = torch.stack([-half, half], dim=1)
        else:
            logs = torch.log_softmax(logits, dim=1)
            of_truth = logs.gather(1, y.expand(len(logs), 1, -1))[:, 0]
            hits = (of_truth == logs.amax(dim=1)).sum(dim=1)
            losses = -of_truth
            gradient = logs.exp_().sub_((y == self._class_numbers).float())
        if weights is not None:
            losses, gradient = losses.mul_(weights), gradient.mul_(weights)
        return losses.sum(dim=1), hits, gradient

    def _settings(self, name: str) -> list[float]:
        return [float(getattr(head, name)) for head in self.heads]


def draw_linear(generator: torch.Generator, outputs: int, inputs: int) -> State:
    """Weight and bias of a layer, drawn as ``torch.nn.Linear`` draws them."""
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return {
        "weight": weight,
        "bias": torch.empty(outputs).uniform_(-bound, bound, generator=generator),
    }
