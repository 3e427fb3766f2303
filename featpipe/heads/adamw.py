"""AdamW for many heads at once, each with its own learning rate and weight decay.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), with PyTorch's defaults.
``torch.optim`` is left alone: its first step imports PyTorch's compiler, which takes longer than
training most heads.
"""

from __future__ import annotations

import numpy as np
import torch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
_FUSED_FROM = 8192
"""Numbers per head from which one fused pass per head beats passes over all heads."""


class AdamW:
    """The optimiser of one tensor (K, …): its first axis counts heads.

    Parameters
    ----------
    value : Tensor, shape (K, …), contiguous
        Changed in place.
    learning_rate, weight_decay : sequence of K floats
    """

    def __init__(
        self, value: torch.Tensor, learning_rate: list[float], weight_decay: list[float]
    ) -> None:
        self.value, self.gradient = value, torch.zeros_like(value)
        self._first, self._second = torch.zeros_like(value), torch.zeros_like(value)
        self._rates, self._decays = list(learning_rate), list(weight_decay)
        self._step = torch.zeros((), device=value.device)
        self._steps = 0
        self._arrange()

    def step(self) -> None:
        """Follow ``gradient``."""
        self._steps += 1
        self._step += 1
        if self.value[0].numel() >= _FUSED_FROM:
            self._head_by_head()
        else:
            self._all_together()

    def keep(self, heads: list[int]) -> None:
        """Forget all heads but these."""
        index = torch.tensor(heads, device=self.value.device)
        for name in ("value", "gradient", "_first", "_second"):
            # One after the other, so that only one tensor is ever there twice.
            setattr(self, name, getattr(self, name)[index])
        self._rates = [self._rates[k] for k in heads]
        self._decays = [self._decays[k] for k in heads]
        self._arrange()

    def _arrange(self) -> None:
        """Group heads of equal settings, and spread the settings over the tensor's axes."""
        self._groups: dict[tuple[float, float], list[int]] = {}
        for k, settings in enumerate(zip(self._rates, self._decays, strict=True)):
            self._groups.setdefault(settings, []).append(k)
        shape = (-1,) + (1,) * (self.value.dim() - 1)
        rates, decays = np.array(self._rates), np.array(self._decays)
        self._kept = self._spread(1 - rates * decays).view(shape)
        self._rate = self._spread(-rates).view(shape)

    def _spread(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers.astype(np.float32)).to(self.value.device)

    def _head_by_head(self) -> None:
        for (rate, decay), heads in self._groups.items():
            torch._fused_adamw_(
                [self.value[k] for k in heads],
                [self.gradient[k] for k in heads],
                [self._first[k] for k in heads],
                [self._second[k] for k in heads],
                [],
                [self._step] * len(heads),
                lr=rate,
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )

    def _all_together(self) -> None:
        g, first, second = self.gradient, self._first, self._second
        first.lerp_(g, 1 - BETA1)
        second.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        root = np.sqrt(1 - BETA2**self._steps)
        update = second.sqrt().add_(EPSILON * root).reciprocal_().mul_(first)
        self.value.mul_(self._kept)
        self.value.addcmul_(update, self._rate * (root / (1 - BETA1**self._steps)))
