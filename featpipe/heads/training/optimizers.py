r"""Optimisers of the tensors of one torch module, after what backward left in their ``grad``.

AdamW, SGD with momentum and RMSprop, with PyTorch's defaults but for one thing: weight decay is
decoupled in all of them (:math:`w \leftarrow (1 - r \lambda) w` before each step of rate r), so
that one value means the same everywhere. Vectors (biases, scales of norms) are not decayed.
Parameters may have learning rates of their own. Those of one rate and one decay are updated by
one call.

``torch.optim`` is not used: its import brings PyTorch's compiler, which took 1.7 s where it was
measured, longer than an epoch of a small network. Where a PyTorch has no fused kernel, public
operators do the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch

from featpipe.heads.training.adamw import BETA1, BETA2, EPSILON, HAS_FUSED_KERNEL

ALPHA = 0.99
"""Of RMSprop: how much of the mean of squares a step keeps."""
HAS_FUSED_SGD = hasattr(torch, "_fused_sgd_")


class Optimizer(ABC):
    """Makes steps by the gradients of parameters; those without a gradient stay as they are.

    Parameters
    ----------
    parameters : iterable of Parameter
        Those that require no gradient are left out.
    rate, decay, momentum : float
    factors : sequence of float, optional
        What the rate is multiplied by, of each parameter; 1 where it is not given.
    fused : bool
        Whether to use PyTorch's fused kernels.

    Attributes
    ----------
    rate : float
        The learning rate of the next step; a schedule sets it.
    """

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        *,
        rate: float,
        decay: float,
        momentum: float,
        factors: Sequence[float] | None = None,
        fused: bool = HAS_FUSED_KERNEL and HAS_FUSED_SGD,
    ) -> None:
        every = list(parameters)
        self.groups: dict[tuple[float, float], list[torch.Tensor]] = {}
        for parameter, factor in zip(every, factors or [1.0] * len(every), strict=True):
            if parameter.requires_grad:
                group = factor, decay if parameter.dim() > 1 else 0.0
                self.groups.setdefault(group, []).append(parameter)
        self.rate, self.momentum, self.fused = rate, momentum, fused
        self.steps = 0
        self._memory: dict[int, list[torch.Tensor]] = {}

    @staticmethod
    @abstractmethod
    def remembers(momentum: float) -> int:
        """How many tensors of the size of a parameter it keeps for each."""

    @torch.no_grad()
    def step(self) -> None:
        """Make one step, and forget the gradients."""
        self.steps += 1
        for (factor, decay), parameters in self.groups.items():
            active = [p for p in parameters if p.grad is not None]
            gradients = [p.grad for p in active if p.grad is not None]
            if active:
                self._update(active, gradients, rate=self.rate * factor, decay=decay)
            for parameter in active:
                parameter.grad = None

    @abstractmethod
    def _update(
        self,
        values: list[torch.Tensor],
        gradients: list[torch.Tensor],
        *,
        rate: float,
        decay: float,
    ) -> None: ...

    def _remembered(self, values: list[torch.Tensor], count: int) -> list[list[torch.Tensor]]:
        """``count`` lists of tensors like the values, zero at first, that steps change."""
        for value in values:
            if id(value) not in self._memory:
                self._memory[id(value)] = [torch.zeros_like(value) for _ in range(count)]
        return [[self._memory[id(value)][i] for value in values] for i in range(count)]


class ModuleAdamW(Optimizer):
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019)."""

    @staticmethod
    def remembers(momentum: float) -> int:
        """See :meth:`Optimizer.remembers`."""
        return 2

    def _update(
        self,
        values: list[torch.Tensor],
        gradients: list[torch.Tensor],
        *,
        rate: float,
        decay: float,
    ) -> None:
        first, second = self._remembered(values, 2)
        if self.fused:
            steps = torch.full((), float(self.steps), device=values[0].device)
            torch._fused_adamw_(
                values,
                gradients,
                first,
                second,
                [],
                [steps] * len(values),
                lr=rate,
                beta1=BETA1,
                beta2=BETA2,
                weight_decay=decay,
                eps=EPSILON,
                amsgrad=False,
                maximize=False,
            )
            return
        _shrink(values, rate * decay)
        correction = math.sqrt(1 - BETA2**self.steps)
        for value, gradient, mean, square in zip(values, gradients, first, second, strict=True):
            mean.lerp_(gradient, 1 - BETA1)
            square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            spread = square.sqrt().div_(correction).add_(EPSILON)
            value.addcdiv_(mean, spread, value=-rate / (1 - BETA1**self.steps))


class SGD(Optimizer):
    """Stochastic gradient descent; a step is the gradient plus the last step times momentum."""

    @staticmethod
    def remembers(momentum: float) -> int:
        """See :meth:`Optimizer.remembers`."""
        return 1 if momentum else 0

    def _update(
        self,
        values: list[torch.Tensor],
        gradients: list[torch.Tensor],
        *,
        rate: float,
        decay: float,
    ) -> None:
        _shrink(values, rate * decay)
        moving = self._remembered(values, 1)[0] if self.momentum else []
        if self.fused:
            torch._fused_sgd_(
                values,
                gradients,
                moving,
                weight_decay=0.0,
                momentum=self.momentum,
                lr=rate,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )
            return
        for i, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
            step = moving[i].mul_(self.momentum).add_(gradient) if moving else gradient
            value.add_(step, alpha=-rate)


class RMSprop(Optimizer):
    """Tieleman and Hinton (2012): gradients divided by the root of their mean square."""

    @staticmethod
    def remembers(momentum: float) -> int:
        """See :meth:`Optimizer.remembers`."""
        return 2

    def _update(
        self,
        values: list[torch.Tensor],
        gradients: list[torch.Tensor],
        *,
        rate: float,
        decay: float,
    ) -> None:
        _shrink(values, rate * decay)
        squares, moving = self._remembered(values, 2)
        for value, gradient, square, last in zip(values, gradients, squares, moving, strict=True):
            square.mul_(ALPHA).addcmul_(gradient, gradient, value=1 - ALPHA)
            spread = square.sqrt().add_(EPSILON)
            if self.momentum:
                last.mul_(self.momentum).addcdiv_(gradient, spread)
                value.add_(last, alpha=-rate)
            else:
                value.addcdiv_(gradient, spread, value=-rate)


def _shrink(values: list[torch.Tensor], share: float) -> None:
    """Decoupled weight decay: take a share of every value away."""
    if share:
        torch._foreach_mul_(values, 1 - share)


OPTIMIZERS: dict[str, type[Optimizer]] = {"adamw": ModuleAdamW, "sgd": SGD, "rmsprop": RMSprop}
