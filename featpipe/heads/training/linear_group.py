r"""Softmax regressions in training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from featpipe.heads.base import Head
from featpipe.heads.training.head_group import HeadGroup, draw_linear
from featpipe.heads.training.trainer import State

_SPREAD = 0.1
"""Initial weights as a share of those that ``torch.nn.Linear`` draws. What they add to a logit of a
row unlike those of training is never unlearned; full ones cost up to three points of accuracy."""


class LinearGroup(HeadGroup):
    r"""K softmax regressions: one wide product forward, one back.

    With two classes the gradients of the two rows of a weight matrix are each other's opposites,
    :math:`g_1 = -g_0`, and so are AdamW's steps. So :math:`\delta = (w_1 - w_0) / 2` is trained
    alone, with logits :math:`-\delta x` and :math:`\delta x`; the rows' mean
    :math:`(w_0 + w_1) / 2` changes no probability, only decays, and is added at the end.
    """

    @staticmethod
    def parameter_count(head: Head, width: int, classes: int) -> int:
        """See :class:`HeadGroup`."""
        return (width + 1) * (1 if classes == 2 else classes)

    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """See :class:`HeadGroup`."""
        weight, bias = self._parts["weight"].value, self._parts["bias"].value
        product = torch.addmm(
            bias.view(-1, 1), weight.view(-1, self.width), Z.T, alpha=self._inverse_scale
        )
        logits = product.view(len(weight), -1, len(Z)).mul_(self._factors)
        return torch.cat([-logits, logits], dim=1) if self.classes == 2 else logits

    _logits_in_training = logits

    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        if self.classes == 2:
            G = G[:, 1:]
        flat = G.reshape(-1, len(Z))
        weight, bias = self._parts["weight"].gradient, self._parts["bias"].gradient
        torch.sum(flat, dim=1, out=bias.view(-1))
        torch.mm(flat.mul_(self._inverse_scale), Z, out=weight.view(-1, self.width))

    def _initial(self, seed: int) -> State:
        drawn = self._drawn(seed)
        return {k: (v[1:] - v[:1]) / 2 for k, v in drawn.items()} if self.classes == 2 else drawn

    @property
    def _bias_pace(self) -> float:
        """See :class:`HeadGroup`.

        Features are centred near the mean of the large classes. Where classes are weighted, the
        bias must follow what the weights add to rows far from there, so it moves as the weight of
        one more feature would, as large as a row. Otherwise it starts where it belongs.
        """
        return 1.0 if self._class_weights is None else math.sqrt(self.width)

    def _drawn(self, seed: int) -> State:
        """Both rows of a weight matrix, also where half their difference is trained."""
        drawn = draw_linear(torch.Generator().manual_seed(seed), self.classes, self.width)
        return {"weight": drawn["weight"] * _SPREAD, "bias": self._log_prior}

    def layers(self, state: State, k: int, steps: int) -> dict[str, np.ndarray]:
        """See :class:`HeadGroup`."""
        layers = super().layers(state, k, steps)
        if self.classes == 2:
            head: Any = self._first_heads[k]
            decay = (1 - head.learning_rate * head.weight_decay) ** steps
            drawn = self._drawn(self._first_seeds[k])["weight"].numpy()
            # The mean of the bias is 0.
            means = {"weight": drawn.mean(axis=0, keepdims=True) * decay, "bias": np.float32(0)}
            for name, mean in means.items():
                layers[name] = np.concatenate([mean - layers[name], mean + layers[name]])
        return layers
