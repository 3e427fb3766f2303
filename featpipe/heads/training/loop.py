"""The epoch loop: early stopping, best epoch kept, for many heads at once.

It knows heads only as a :class:`featpipe.heads.training.trainer.Trainer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from featpipe.heads.base import History, HistoryRow
from featpipe.heads.doubts import epoch_doubts
from featpipe.heads.training.feature_rows import FeatureRowSet
from featpipe.heads.training.trainer import State, Trainer

_SCORE_BYTES = 16 * 2**20
"""The widest numbers of the rows that are scored at once, as float32."""

OnEpoch = Callable[[int, HistoryRow], None]
"""Called after every epoch with two arguments: how many epochs of heads are done by it (those that
a head that stops early will not need count too), and the best row of this epoch."""


@dataclass(frozen=True)
class Plan:
    """How long a group of heads is trained.

    Attributes
    ----------
    batch_size : int
        Rows per step.
    epochs : int
        Largest number of epochs.
    min_steps : int
        Steps that an epoch makes at least.
    patience : int
        Epochs without a lower validation loss before a head stops.
    anneals : bool
        Whether the learning rate falls to 0 over the epochs.
    """

    batch_size: int
    epochs: int
    min_steps: int
    patience: int
    anneals: bool = False

    def passes(self, rows: int) -> int:
        """How often an epoch passes over so many rows."""
        return -(-self.min_steps // self._batches(rows))

    def steps(self, rows: int) -> int:
        """Steps of all epochs over so many rows."""
        return self.epochs * self.passes(rows) * self._batches(rows)

    def _batches(self, rows: int) -> int:
        return -(-rows // self.batch_size)


@dataclass
class TrainedState:
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
        """What its best epoch was selected by; infinite where it diverged."""
        return np.inf if self.diverged else self.history.kept.selection_loss


class EpochLoop:
    """The training of all heads of one trainer, until each has stopped.

    Parameters
    ----------
    trainer : Trainer
    plan : Plan
    rows, val_rows : FeatureRowSet
    order : Generator
        Shuffles the rows of every epoch.
    on_epoch : callable
    """

    def __init__(
        self,
        trainer: Trainer,
        plan: Plan,
        rows: FeatureRowSet,
        val_rows: FeatureRowSet,
        order: np.random.Generator,
        on_epoch: OnEpoch,
    ) -> None:
        self.trainer, self.plan = trainer, plan
        self.rows, self.val_rows, self.order = rows, val_rows, order
        self.on_epoch = on_epoch
        count = trainer.count
        self.histories = [History("epoch") for _ in range(count)]
        self.diverged = [""] * count
        self.best_loss = [np.inf] * count
        self.best_steps = [0] * count
        self.best: State = {}
        """The state of every head's best epoch; empty before the first epoch."""
        self.members = list(range(count))
        """The heads that the trainer still has, by their index at the start."""
        self.running = set(self.members)

    def run(self, *, only_best: bool) -> list[TrainedState]:
        """Train until every head is done."""
        epochs = self.plan.epochs
        for epoch in range(1, epochs + 1):
            running = len(self.running)
            judged = self._judge_all(epoch, self._train_epoch())
            stopped = running - len(self.running)
            if judged:
                best = min(judged, key=lambda row: row.selection_loss)
                self.on_epoch(running + stopped * (epochs - epoch), best)
            if not self.running:
                break
            self._drop_finished()
        for history in self.histories:
            history.warnings += epoch_doubts(history, epochs, anneals=self.plan.anneals)
        ends = [TrainedState(*end, {}) for end in zip(self.histories, self.diverged, strict=True)]
        everyone = range(len(ends))
        for k in (min(everyone, key=lambda k: ends[k].lowest),) if only_best else everyone:
            if not ends[k].diverged:
                ends[k].layers = self.trainer.layers(self.best, k, self.best_steps[k])
        return ends

    def _train_epoch(self) -> list[list[float]]:
        """Train on every batch; training loss and accuracy, then validation's, of each head."""
        batch_size, passes = self.plan.batch_size, self.plan.passes(len(self.rows))
        started = time.perf_counter()
        learned = [
            self.trainer.learn(*batch)
            for _ in range(passes)
            for batch in self.rows.shuffled(self.order, batch_size)
        ]
        # Reading the sums waits for the device, so that the time is the training's alone.
        means = self._means(learned, self.rows, passes)
        seconds = time.perf_counter() - started
        for k in self.running:
            self.histories[k].epoch_seconds.append(seconds)
        step = max(32, min(1024, _SCORE_BYTES // (4 * max(1, self.trainer.widest))))
        scored = [self.trainer.score(*batch) for batch in self.val_rows.in_order(step)]
        return [*means, *self._means(scored, self.val_rows, 1)]

    def _means(
        self, sums: list[tuple[torch.Tensor, torch.Tensor]], rows: FeatureRowSet, passes: int
    ) -> list[list[float]]:
        """Mean loss, rows weighted by class, and accuracy of each head from its sums of batches."""
        # Sums stay on the device until here: reading them earlier would wait at every batch. They
        # are added up on the CPU, because Apple's GPUs have no float64.
        totals = self.trainer.weight(rows.y), len(rows)
        return [
            (torch.stack(numbers).cpu().double().sum(dim=0) / (passes * total)).tolist()
            for numbers, total in zip(zip(*sums, strict=True), totals, strict=True)
        ]

    def _judge_all(self, epoch: int, results: list[list[float]]) -> list[HistoryRow]:
        """Enter every running head's epoch, and keep the state of those that improved."""
        judged = []
        for k, numbers in zip(self.members, zip(*results, strict=True), strict=True):
            if k in self.running:
                row = self._judge(k, HistoryRow(epoch, *numbers))
                judged += [] if row is None else [row]
        self._keep_improved()
        return judged

    def _judge(self, k: int, row: HistoryRow) -> HistoryRow | None:
        """Enter a head's epoch, and stop it when it is done; None where it diverged."""
        history = self.histories[k]
        if not np.isfinite([row.train_loss, row.val_loss]).all():
            self.diverged[k] = (
                f"expected a finite loss, found {row.train_loss:g} in training and "
                f"{row.val_loss:g} in validation at epoch {row.at:g}: training diverged; lower "
                "--learning-rate"
            )
            self.running.discard(k)
            return None
        history.rows.append(row)
        if row.selection_loss < self.best_loss[k]:
            self.best_loss[k], history.best = row.selection_loss, len(history.rows) - 1
            self.best_steps[k] = self.trainer.steps
        elif len(history.rows) - 1 - history.best >= self.plan.patience:
            self.running.discard(k)
        return row

    def _keep_improved(self) -> None:
        """Copy the state of every head whose best epoch was this one."""
        if not self.best:
            # Every head that has not diverged improves in its first epoch.
            self.best = {name: value.clone() for name, value in self.trainer.state().items()}
            return
        improved = {k for k, steps in enumerate(self.best_steps) if steps == self.trainer.steps}
        places = [(place, k) for place, k in enumerate(self.members) if k in improved]
        for name, value in self.trainer.state().items():
            if len(places) == len(self.best_loss):
                self.best[name].copy_(value)
                continue
            for place, k in places:
                self.best[name][k] = value[place]

    def _drop_finished(self) -> None:
        """Let the trainer drop the heads that have stopped, once they are half of its heads."""
        if 2 * len(self.running) <= len(self.members):
            kept = [place for place, k in enumerate(self.members) if k in self.running]
            self.members = [self.members[place] for place in kept]
            self.trainer.keep(kept)
