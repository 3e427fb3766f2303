"""AdamW for many heads at once, each with its own learning rate and weight decay.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), with PyTorch's defaults.
``torch.optim`` is left alone: its first step imports PyTorch's compiler, which takes longer than
training most heads.
"""

from __future__ import annotations

import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """The optimiser of one tensor (K, …): its first axis counts heads.

    All heads take steps of one length, the lowest learning rate, in a single pass over the
    tensor. A head of a higher rate is kept as many times smaller: to it, the step is longer.

    Parameters
    ----------
    value : Tensor, shape (K, …), contiguous
    learning_rate, weight_decay : sequence of K floats

    Attributes
    ----------
    value : Tensor, shape (K, …)
        Each head's numbers, divided by its factor.
    factors : Tensor, shape (K, 1, …)
        Each head's learning rate / the lowest.
    gradient : Tensor, shape (K, …)
        By the numbers themselves, not divided; to be written before each step.
    """

    def __init__(
        self, value: torch.Tensor, learning_rate: list[float], weight_decay: list[float]
    ) -> None:
        self._rate = min(learning_rate)
        shape = (-1,) + (1,) * (value.dim() - 1)
        rates, decays = (
            torch.tensor(numbers, dtype=torch.float64).view(shape)
            for numbers in (learning_rate, weight_decay)
        )
        self.factors = (rates / self._rate).float().to(value.device)
        self._left = (1 - rates * decays).float().to(value.device)
        self._decays = any(weight_decay)
        self.value, self.gradient = value / self.factors, torch.zeros_like(value)
        self._first, self._second = torch.zeros_like(value), torch.zeros_like(value)
        self._step = torch.zeros((), device=value.device)

    def step(self) -> None:
        """Follow ``gradient``."""
        self._step += 1
        if self._decays:
            self.value.mul_(self._left)
        torch._fused_adamw_(
            [self.value],
            [self.gradient],
            [self._first],
            [self._second],
            [],
            [self._step],
            lr=self._rate,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def keep(self, heads: list[int]) -> None:
        """Forget all heads but these."""
        index = torch.tensor(heads, device=self.value.device)
        for name in ("value", "gradient", "_first", "_second", "factors", "_left"):
            # One after the other, so that only one tensor is ever there twice.
            setattr(self, name, getattr(self, name)[index])
