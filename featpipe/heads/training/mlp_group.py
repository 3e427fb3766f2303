"""Perceptrons with one hidden layer in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from featpipe.heads.base import Head
from featpipe.heads.training.head_group import HeadGroup, draw_linear
from featpipe.heads.training.trainer import State


class MLPGroup(HeadGroup):
    """K perceptrons of one hidden width: the first layers are one wide product."""

    def __init__(self, heads: Sequence[Head], seeds: Sequence[int], **options: Any) -> None:
        first: Any = heads[0]
        self.hidden = int(first.hidden)
        super().__init__(heads, seeds, **options)
        self._set_dropout()
        self._generators = {
            seed: _dropout_generator(seed, self.device) for seed in dict.fromkeys(seeds)
        }

    def _set_dropout(self) -> None:
        dropout = torch.tensor(self._settings("dropout"), device=self.device)[:, None, None]
        self._dropout, self._upscale = dropout, 1 / (1 - dropout)
        self._drops = any(self._settings("dropout"))

    def keep(self, heads: list[int]) -> None:
        """See :class:`HeadGroup`."""
        super().keep(heads)
        self._set_dropout()

    @staticmethod
    def parameter_count(head: Head, width: int, classes: int) -> int:
        """See :class:`HeadGroup`."""
        options: Any = head
        return int(options.hidden) * (width + 1 + classes) + classes

    @staticmethod
    def shape_of(head: Head) -> tuple[Any, ...]:
        """See :class:`HeadGroup`."""
        options: Any = head
        return (options.hidden,)

    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """See :class:`HeadGroup`."""
        return self._output(self._hidden(Z))

    def _logits_in_training(self, Z: torch.Tensor) -> torch.Tensor:
        self._active = self._hidden(Z)
        if self._drops:
            # Heads of one seed drop by the same numbers, as each would alone.
            drawn = {
                seed: torch.rand(
                    self.hidden, len(Z), device=self.device, generator=self._generators[seed]
                )
                for seed in dict.fromkeys(self.seeds)
            }
            for k, seed in enumerate(self.seeds):
                self._active[k].mul_(drawn[seed] >= self._dropout[k])
            self._active.mul_(self._upscale)
        return self._output(self._active)

    def _hidden(self, Z: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parts["hidden.weight"].value, self._parts["hidden.bias"].value
        product = torch.addmm(
            bias.view(-1, 1), weight.view(-1, self.width), Z.T, alpha=self._inverse_scale
        )
        return product.view(len(weight), self.hidden, len(Z)).mul_(self._factors).relu_()

    def _output(self, H: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parts["output.weight"].value, self._parts["output.bias"].value
        return torch.baddbmm(bias[..., None], weight, H).mul_(self._factors)

    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        parts = self._parts
        torch.sum(G, dim=2, out=parts["output.bias"].gradient)
        torch.bmm(G, self._active.transpose(1, 2), out=parts["output.weight"].gradient)
        weight = parts["output.weight"].value
        # A unit that was dropped or not active is 0 and passes nothing back.
        back = torch.bmm(weight.transpose(1, 2), G * self._factors).mul_(self._active > 0)
        if self._drops:
            back.mul_(self._upscale)
        flat = back.view(-1, len(Z))
        torch.sum(flat, dim=1, out=parts["hidden.bias"].gradient.view(-1))
        flat.mul_(self._inverse_scale)
        torch.mm(flat, Z, out=parts["hidden.weight"].gradient.view(-1, self.width))

    def _initial(self, seed: int) -> State:
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            ("hidden", self.hidden, self.width),
            ("output", self.classes, self.hidden),
        )
        drawn = {
            f"{name}.{part}": value
            for name, outputs, inputs in shapes
            for part, value in draw_linear(generator, outputs, inputs).items()
        }
        return {**drawn, "output.bias": self._log_prior}


def _dropout_generator(seed: int, device: str) -> torch.Generator:
    # Not the numbers that the initial weights were drawn from.
    drawn = np.random.SeedSequence([seed, 1]).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(drawn))
