r"""AdamW for many heads at once, each with its own learning rate and weight decay.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), with PyTorch's defaults.
With learning rate :math:`r_k`, decay :math:`\lambda_k` and the moments' ratio
:math:`u = \hat m / (\sqrt{\hat v} + \epsilon)`, one step of head k is

.. math:: w_k \leftarrow (1 - r_k \lambda_k)\, w_k - r_k\, u_k

PyTorch's fused kernel makes such a step in one pass over a tensor, but takes one learning rate
for the whole tensor. So each head is kept as :math:`v_k = w_k / f_k` with the factor
:math:`f_k = r_k / r`, where r is the lowest rate of all heads. Dividing the step by the factor
gives

.. math:: v_k \leftarrow (1 - r_k \lambda_k)\, v_k - r\, u_k

in which every head steps by the same rate r. Moments depend on the gradients by w alone.

``torch.optim`` is not used: its first step imports PyTorch's compiler, which takes longer than
training most heads. Where a PyTorch has no fused kernel, public operators do the same.
"""

from __future__ import annotations

import math

import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
HAS_FUSED_KERNEL = hasattr(torch, "_fused_adamw_")


class AdamW:
    """The optimiser of one tensor (K, …) whose first axis counts heads.

    Parameters
    ----------
    value : Tensor, shape (K, …), contiguous
    learning_rate, weight_decay : sequence of K floats
    fused : bool
        Whether to use PyTorch's fused kernel.

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
        self,
        value: torch.Tensor,
        learning_rate: list[float],
        weight_decay: list[float],
        *,
        fused: bool = HAS_FUSED_KERNEL,
    ) -> None:
        self._rate = min(learning_rate)
        shape = (-1,) + (1,) * (value.dim() - 1)
        rates, decays = (
            torch.tensor(numbers, dtype=torch.float64).view(shape)
            for numbers in (learning_rate, weight_decay)
        )
        self.factors = (rates / self._rate).float().to(value.device)
        self._shrinkage = (1 - rates * decays).float().to(value.device)
        self._decays = any(weight_decay)
        self._fused = fused
        self.value, self.gradient = value / self.factors, torch.zeros_like(value)
        self._first, self._second = torch.zeros_like(value), torch.zeros_like(value)
        self._steps = 0
        # The fused kernel counts the steps itself, on the device.
        self._steps_on_device = torch.zeros((), device=value.device)

    def step(self) -> None:
        """Make one step by ``gradient``."""
        if self._decays:
            self.value.mul_(self._shrinkage)
        if self._fused:
            self._fused_step()
        else:
            self._plain_step()

    def _fused_step(self) -> None:
        self._steps_on_device += 1
        torch._fused_adamw_(
            [self.value],
            [self.gradient],
            [self._first],
            [self._second],
            [],
            [self._steps_on_device],
            lr=self._rate,
            beta1=BETA1,
            beta2=BETA2,
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def _plain_step(self) -> None:
        self._steps += 1
        self._first.lerp_(self.gradient, 1 - BETA1)
        self._second.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        spread = self._second.sqrt().div_(math.sqrt(1 - BETA2**self._steps)).add_(EPSILON)
        rate = self._rate / (1 - BETA1**self._steps)
        self.value.addcdiv_(self._first, spread, value=-rate)

    def keep(self, heads: list[int]) -> None:
        """Forget all heads but these."""
        index = torch.tensor(heads, device=self.value.device)
        for name in ("value", "gradient", "_first", "_second", "factors", "_shrinkage"):
            # One tensor after the other, so that only one exists twice at a time.
            setattr(self, name, getattr(self, name)[index])
