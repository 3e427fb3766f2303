"""The training loop of the PyTorch heads: early stopping, best epoch kept, for many at once.

A single head is a stack of one. All heads of a call see the same batches in the same order,
drawn from the run's seed; a head's own seed decides its initial weights and its dropout.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featpipe.base.errors import DataError
from featpipe.base.hardware import free_memory
from featpipe.heads.base import Head, History, Tick
from featpipe.heads.training.head_group import LinearStack, MLPStack, Stack
from featpipe.heads.training.rows import Rows, rows_of

STACK_SHARE = 0.25
"""Of the memory that is free, what a stack may take; a larger one is trained in parts."""
_MEASURE_BYTES = 16 * 2**20
_SMALL_STEP = 2**23
"""Multiplications of a step below which a second thread costs more than it brings."""
_READING = 16
"""Multiplications that take the time of gathering, converting and centring one number."""
_COPIES = 6
"""Of every number learned: itself, its gradient, two moments, the best, one while compacting."""
_STACKS: dict[str, type[Stack]] = {"linear": LinearStack, "mlp": MLPStack}

Told = Callable[[int, dict[str, float]], None]
"""Called after every epoch: epochs of heads that need no more training, and the best row."""


@dataclass
class Outcome:
    """How one head's training ended.

    Attributes
    ----------
    history : History
    diverged : str
        What was found where its loss ceased to be finite; empty where it did not.
    layers : dict
        Of its best epoch; empty where it diverged.
    """

    history: History
    diverged: str
    layers: dict[str, np.ndarray]

    @property
    def lowest(self) -> float:
        """Validation loss of its best epoch; infinite where it diverged."""
        return np.inf if self.diverged else self.history.rows[self.history.best]["val_loss"]


def train(
    head: Head,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    seed: int,
    device: str,
    tick: Tick,
) -> History:
    """Train one head; it ends in its best epoch's state.

    Raises
    ------
    DataError
        Training diverged.
    """
    (outcome,) = train_all(
        [head],
        [seed],
        X,
        y,
        X_val,
        y_val,
        seed=seed,
        device=device,
        told=lambda _, row: tick(row),
    )
    if outcome.diverged:
        raise DataError(outcome.diverged)
    head.set_layers(outcome.layers)
    return outcome.history


def train_all(
    heads: Sequence[Head],
    seeds: Sequence[int],
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    seed: int,
    device: str,
    told: Told,
    only_best: bool = False,
) -> list[Outcome]:
    """Train heads that differ in seed, learning rate, weight decay, dropout or width.

    Heads are given their scale; their layers are left to the caller. ``only_best`` keeps those
    of the head with the lowest validation loss alone, for all of them may not fit into memory.
    """
    rows, val_rows = rows_of(X, y, device), rows_of(X_val, y_val, device)
    mean, scale = rows.mean_and_scale()
    for head in heads:
        head.mean_, head.scale_ = mean, scale
    for part in (rows, val_rows):
        part.centre_on(mean)
    outcomes: dict[int, Outcome] = {}
    for numbers in _parts(heads, rows, device):
        kind = _STACKS[heads[0].kind]
        stack = kind(
            [heads[i] for i in numbers],
            [seeds[i] for i in numbers],
            width=rows.width,
            classes=len(heads[0].classes_),
            scale=float(heads[0].scale_[0]),
            device=device,
        )
        order = np.random.default_rng(seed)
        with torch.inference_mode(), _threads_for(stack, rows.width):
            found = _Training(stack, rows, val_rows, order, told).run(only_best=only_best)
        outcomes.update(zip(numbers, found, strict=True))
        if only_best:
            best = min(outcomes, key=lambda i: (outcomes[i].lowest, i))
            for i, outcome in outcomes.items():
                outcome.layers = outcome.layers if i == best else {}
    return [outcomes[i] for i in range(len(heads))]


@contextlib.contextmanager
def _threads_for(stack: Stack, width: int) -> Iterator[None]:
    """One thread where steps are small, and two would mostly wait for each other."""
    schedule: Any = stack.heads[0]
    numbers = sum(stack.numbers_of(head, width, stack.classes) for head in stack.heads)
    before = torch.get_num_threads()
    if schedule.batch_size * (_READING * width + numbers) < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _parts(heads: Sequence[Head], rows: Rows, device: str) -> list[list[int]]:
    """Numbers of heads that are trained together: of one width, and not too many for memory."""
    widths: dict[int, list[int]] = {}
    for i, head in enumerate(heads):
        widths.setdefault(getattr(head, "hidden", 0), []).append(i)
    budget = STACK_SHARE * free_memory(device)
    parts = []
    for numbers in widths.values():
        head = heads[numbers[0]]
        classes = len(heads[0].classes_)
        size = 4 * _COPIES * _STACKS[head.kind].numbers_of(head, rows.width, classes)
        step = max(1, int(budget / size))
        parts += [numbers[i : i + step] for i in range(0, len(numbers), step)]
    return parts


class _Training:
    """One stack's way from its first epoch to its last head's best."""

    def __init__(
        self, stack: Stack, rows: Rows, val_rows: Rows, order: np.random.Generator, told: Told
    ) -> None:
        self.stack, self.rows, self.val_rows, self.order = stack, rows, val_rows, order
        self.told = told
        schedule: Any = stack.heads[0]
        self.batch_size, self.epochs = schedule.batch_size, schedule.epochs
        self.patience = schedule.patience
        count = len(stack.heads)
        self.histories = [History("epoch") for _ in range(count)]
        self.diverged = [""] * count
        self.best_loss = [np.inf] * count
        self.best_steps = [0] * count
        self.best = {name: value.clone() for name, value in stack.state().items()}
        self.members = list(range(count))
        """Which head each row of the stack is."""
        self.running = set(self.members)

    def run(self, *, only_best: bool) -> list[Outcome]:
        """Train until every head is done."""
        for epoch in range(1, self.epochs + 1):
            results = self._epoch()
            best_row: dict[str, float] = {}
            before = len(self.running)
            for k, numbers in zip(self.members, zip(*results, strict=True), strict=True):
                if k in self.running:
                    row = self._judge(k, epoch, *numbers)
                    if row and (not best_row or row["val_loss"] < best_row["val_loss"]):
                        best_row = row
            self._remember()
            gone = before - len(self.running)
            if best_row:
                self.told(before + gone * (self.epochs - epoch), best_row)
            if not self.running:
                break
            self._compact()
        outcomes = [
            Outcome(*ended, {}) for ended in zip(self.histories, self.diverged, strict=True)
        ]
        every = range(len(outcomes))
        for k in (min(every, key=lambda k: outcomes[k].lowest),) if only_best else every:
            if not outcomes[k].diverged:
                outcomes[k].layers = self.stack.layers(self.best, k, self.best_steps[k])
        return outcomes

    def _epoch(self) -> list[list[float]]:
        """Train on every batch; training loss and accuracy, then validation's, of each head."""
        seen = [
            self.stack.learn(*batch) for batch in self.rows.shuffled(self.order, self.batch_size)
        ]
        step = max(32, min(1024, _MEASURE_BYTES // (4 * max(1, self.rows.width))))
        scored = [self.stack.score(*batch) for batch in self.val_rows.in_order(step)]
        # Sums stay on the device until here: asking earlier would make it wait at every batch.
        return [
            (torch.stack(numbers).double().sum(dim=0) / count).tolist()
            for sums, count in ((seen, len(self.rows)), (scored, len(self.val_rows)))
            for numbers in zip(*sums, strict=True)
        ]

    def _judge(
        self,
        k: int,
        epoch: int,
        train_loss: float,
        train_accuracy: float,
        val_loss: float,
        val_accuracy: float,
    ) -> dict[str, float]:
        """Take down a head's epoch, and let it go when it is done; no row where it diverged."""
        history = self.histories[k]
        if not np.isfinite([train_loss, val_loss]).all():
            self.diverged[k] = (
                f"expected a finite loss, found {train_loss:g} in training and {val_loss:g} in "
                f"validation at epoch {epoch}: training diverged; lower --learning-rate"
            )
            self.running.discard(k)
            return {}
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        history.rows.append(row)
        if val_loss < self.best_loss[k]:
            self.best_loss[k], history.best = val_loss, epoch - 1
            self.best_steps[k] = self.stack.steps
        elif epoch - 1 - history.best >= self.patience:
            self.running.discard(k)
        return row

    def _remember(self) -> None:
        """Copy the state of every head whose best epoch was this one."""
        improved = {k for k, steps in enumerate(self.best_steps) if steps == self.stack.steps}
        found = [(row, k) for row, k in enumerate(self.members) if k in improved]
        for name, value in self.stack.state().items():
            if len(found) == len(self.best_loss):
                self.best[name].copy_(value)
                continue
            for row, k in found:
                self.best[name][k] = value[row]

    def _compact(self) -> None:
        """Drop heads that are done, once they are half of the stack."""
        if 2 * len(self.running) <= len(self.members):
            kept = [row for row, k in enumerate(self.members) if k in self.running]
            self.members = [self.members[row] for row in kept]
            self.stack.keep(kept)
