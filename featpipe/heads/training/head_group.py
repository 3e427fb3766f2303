"""Many heads of one shape as one computation: forward pass, gradients and updates, in PyTorch.

The first axis of every tensor counts heads. They see the same batches and nothing of each other,
so a head in a stack learns what it would have learned alone. Gradients are written out: there are
but two kinds of layers, and autograd would keep more than they need.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from featpipe.heads.base import Head
from featpipe.heads.training.adamw import AdamW


class Stack(ABC):
    """K heads in training.

    Parameters
    ----------
    heads : sequence of Head
        Their hyper-parameters; those that decide shapes are equal.
    seeds : sequence of int
        A head's seed decides its initial weights and its dropout.
    width, classes : int
        Features of a row, and classes.
    scale : float
        Divides every row. Rows come undivided: products are scaled instead, which are smaller.
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
        device: str,
    ) -> None:
        self.heads, self.seeds = list(heads), list(seeds)
        self.width, self.classes, self.device = width, classes, device
        self._inverse = 1 / scale
        self.steps = 0
        self._class_numbers = torch.arange(classes, device=device)[:, None]
        drawn = {seed: self._initial(seed) for seed in dict.fromkeys(seeds)}
        names = next(iter(drawn.values()))
        options = self._settings("learning_rate"), self._settings("weight_decay")
        self._parts = {
            name: AdamW(torch.stack([drawn[seed][name] for seed in seeds]).to(device), *options)
            for name in names
        }
        self._heads_at_first, self._seeds_at_first = self.heads, self.seeds
        self._factors_at_first = self._factors

    @property
    def _factors(self) -> torch.Tensor:
        """What products with the parts' values are multiplied by: (K, 1, 1)."""
        return next(part.factors for part in self._parts.values() if part.value.dim() == 3)

    @staticmethod
    @abstractmethod
    def numbers_of(head: Head, width: int, classes: int) -> int:
        """How many numbers a head of this kind learns."""

    @abstractmethod
    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """Centred rows (b, d) → (K, classes, b), as for new rows.

        Rows are last, for passes over the classes of one after the other are slow.
        """

    @abstractmethod
    def _logits_in_training(self, Z: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        """Write gradients, given those of the logits (K, classes, b)."""

    @abstractmethod
    def _initial(self, seed: int) -> dict[str, torch.Tensor]: ...

    def layers(self, state: dict[str, torch.Tensor], k: int, steps: int) -> dict[str, np.ndarray]:
        """Head ``k``'s layers from a :meth:`state`, as they were after so many of its steps."""
        factor = float(self._factors_at_first[k])
        return {name: (value[k] * factor).cpu().numpy() for name, value in state.items()}

    def learn(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on a batch; each head's loss and hits (K,), summed, as before the step."""
        losses, hits, G = self._losses(self._logits_in_training(Z), y)
        self._backward(Z, G.mul_(1 / len(y)))
        for part in self._parts.values():
            part.step()
        self.steps += 1
        return losses, hits

    def score(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each head's loss and hits (K,), summed over the batch."""
        losses, hits, _ = self._losses(self.logits(Z), y)
        return losses, hits

    def keep(self, rows: list[int]) -> None:
        """Forget all heads but these."""
        self.heads, self.seeds = [self.heads[k] for k in rows], [self.seeds[k] for k in rows]
        for part in self._parts.values():
            part.keep(rows)

    def state(self) -> dict[str, torch.Tensor]:
        """What :meth:`layers` needs of the heads, (K, …) each; it changes with the next step."""
        return {name: part.value for name, part in self._parts.items()}

    def _losses(
        self, logits: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Cross-entropy and hits (K,), summed over rows, and the gradient of each row's."""
        if self.classes == 2:
            # Far fewer and longer passes than softmax makes over pairs.
            truth, margin = y.float(), logits[:, 1] - logits[:, 0]
            losses = torch.nn.functional.softplus(margin * (1 - 2 * truth)).sum(dim=1)
            hits = ((margin > 0) == y).sum(dim=1)
            half = margin.sigmoid_().sub_(truth)
            return losses, hits, torch.stack([-half, half], dim=1)
        logs = torch.log_softmax(logits, dim=1)
        of_truth = logs.gather(1, y.expand(len(logs), 1, -1))[:, 0]
        hits = (of_truth == logs.amax(dim=1)).sum(dim=1)
        return -of_truth.sum(dim=1), hits, logs.exp_().sub_((y == self._class_numbers).float())

    def _settings(self, name: str) -> list[float]:
        return [float(getattr(head, name)) for head in self.heads]


class LinearStack(Stack):
    """K softmax regressions: one wide product forward, one back.

    Of two classes only half the difference of their rows is trained: gradients, and so AdamW's
    steps, are each other's opposites, and what the rows have in common does nothing but decay.
    """

    @staticmethod
    def numbers_of(head: Head, width: int, classes: int) -> int:
        """See :meth:`Stack.numbers_of`."""
        return (width + 1) * (1 if classes == 2 else classes)

    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """See :meth:`Stack.logits`."""
        weight, bias = self._parts["weight"].value, self._parts["bias"].value
        flat = torch.addmm(bias.view(-1, 1), weight.view(-1, self.width), Z.T, alpha=self._inverse)
        found = flat.view(len(weight), -1, len(Z)).mul_(self._factors)
        return torch.cat([-found, found], dim=1) if self.classes == 2 else found

    _logits_in_training = logits

    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        if self.classes == 2:
            G = G[:, 1:]
        flat = G.reshape(-1, len(Z))
        weight, bias = self._parts["weight"].gradient, self._parts["bias"].gradient
        torch.sum(flat, dim=1, out=bias.view(-1))
        torch.mm(flat.mul_(self._inverse), Z, out=weight.view(-1, self.width))

    def _initial(self, seed: int) -> dict[str, torch.Tensor]:
        drawn = _linear(torch.Generator().manual_seed(seed), self.classes, self.width)
        return {k: (v[1:] - v[:1]) / 2 for k, v in drawn.items()} if self.classes == 2 else drawn

    def layers(self, state: dict[str, torch.Tensor], k: int, steps: int) -> dict[str, np.ndarray]:
        """See :meth:`Stack.layers`."""
        found = super().layers(state, k, steps)
        if self.classes == 2:
            head: Any = self._heads_at_first[k]
            left = (1 - head.learning_rate * head.weight_decay) ** steps
            generator = torch.Generator().manual_seed(self._seeds_at_first[k])
            for name, drawn in _linear(generator, self.classes, self.width).items():
                common = drawn.numpy().mean(axis=0, keepdims=True) * left
                found[name] = np.concatenate([common - found[name], common + found[name]])
        return found


class MLPStack(Stack):
    """K perceptrons of one hidden width: the first layers are one wide product."""

    def __init__(self, heads: Sequence[Head], seeds: Sequence[int], **options: Any) -> None:
        first: Any = heads[0]
        self.hidden = int(first.hidden)
        super().__init__(heads, seeds, **options)
        self._arrange()
        self._generators = {
            seed: _dropout_generator(seed, self.device) for seed in dict.fromkeys(seeds)
        }

    def _arrange(self) -> None:
        dropout = torch.tensor(self._settings("dropout"), device=self.device)[:, None, None]
        self._dropout, self._upscale = dropout, 1 / (1 - dropout)
        self._drops = any(self._settings("dropout"))

    def keep(self, rows: list[int]) -> None:
        """See :meth:`Stack.keep`."""
        super().keep(rows)
        self._arrange()

    @staticmethod
    def numbers_of(head: Head, width: int, classes: int) -> int:
        """See :meth:`Stack.numbers_of`."""
        options: Any = head
        return int(options.hidden) * (width + 1 + classes) + classes

    def logits(self, Z: torch.Tensor) -> torch.Tensor:
        """See :meth:`Stack.logits`."""
        return self._output(self._hidden(Z))

    def _logits_in_training(self, Z: torch.Tensor) -> torch.Tensor:
        self._seen = self._hidden(Z)
        if self._drops:
            # Heads of one seed drop by the same numbers, as each would alone.
            drawn = {
                seed: torch.rand(
                    self.hidden, len(Z), device=self.device, generator=self._generators[seed]
                )
                for seed in dict.fromkeys(self.seeds)
            }
            for k, seed in enumerate(self.seeds):
                self._seen[k].mul_(drawn[seed] >= self._dropout[k])
            self._seen.mul_(self._upscale)
        return self._output(self._seen)

    def _hidden(self, Z: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parts["hidden.weight"].value, self._parts["hidden.bias"].value
        flat = torch.addmm(bias.view(-1, 1), weight.view(-1, self.width), Z.T, alpha=self._inverse)
        return flat.view(len(weight), self.hidden, len(Z)).mul_(self._factors).relu_()

    def _output(self, H: torch.Tensor) -> torch.Tensor:
        weight, bias = self._parts["output.weight"].value, self._parts["output.bias"].value
        return torch.baddbmm(bias[..., None], weight, H).mul_(self._factors)

    def _backward(self, Z: torch.Tensor, G: torch.Tensor) -> None:
        parts = self._parts
        torch.sum(G, dim=2, out=parts["output.bias"].gradient)
        torch.bmm(G, self._seen.transpose(1, 2), out=parts["output.weight"].gradient)
        weight = parts["output.weight"].value
        # A unit that was dropped or silent is 0 and passes nothing back.
        back = torch.bmm(weight.transpose(1, 2), G * self._factors).mul_(self._seen > 0)
        if self._drops:
            back.mul_(self._upscale)
        flat = back.view(-1, len(Z))
        torch.sum(flat, dim=1, out=parts["hidden.bias"].gradient.view(-1))
        flat.mul_(self._inverse)
        torch.mm(flat, Z, out=parts["hidden.weight"].gradient.view(-1, self.width))

    def _initial(self, seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shapes = (
            ("hidden", self.hidden, self.width),
            ("output", self.classes, self.hidden),
        )
        return {
            f"{name}.{part}": value
            for name, outputs, inputs in shapes
            for part, value in _linear(generator, outputs, inputs).items()
        }


def _dropout_generator(seed: int, device: str) -> torch.Generator:
    # Not the numbers the initial weights were drawn from.
    drawn = np.random.SeedSequence([seed, 1]).generate_state(1)[0]
    return torch.Generator(device).manual_seed(int(drawn))


def _linear(generator: torch.Generator, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    """Weight and bias of a layer, drawn as ``torch.nn.Linear`` draws them."""
    bound = 1 / math.sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return {
        "weight": weight,
        "bias": torch.empty(outputs).uniform_(-bound, bound, generator=generator),
    }
