"""The training loop of the PyTorch heads: AdamW, early stopping, best epoch kept.

AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from featpipe.errors import DataError
from featpipe.heads.base import Head, History, Tick

_MEASURE_ROWS = 1024
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Schedule:
    """Hyper-parameters of the loop; see the heads for their meaning."""

    learning_rate: float
    weight_decay: float
    batch_size: int
    epochs: int
    patience: int


def train(
    make: Callable[[], Module],
    head: Head,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    schedule: Schedule,
    *,
    seed: int,
    device: str,
    tick: Tick,
) -> tuple[Module, History]:
    """Make a module and train it on standardised rows; it ends in its best epoch's state.

    Nobody else's random numbers are touched.

    Rows stay in their stored dtype and are standardised batch by batch, on the device.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = make().to(device)
        history = _loop(module, head, X, y, X_val, y_val, schedule, device, tick)
    return module, history


def _loop(
    module: nn.Module,
    head: Head,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    schedule: Schedule,
    device: str,
    tick: Tick,
) -> History:
    train_rows, val_rows = _Rows(X, y, head, device), _Rows(X_val, y_val, head, device)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    history = History("epoch")
    best_loss, best_state = np.inf, copy.deepcopy(module.state_dict())
    for epoch in range(1, schedule.epochs + 1):
        train_loss, train_accuracy = _train_epoch(module, optimiser, train_rows, schedule)
        val_loss, val_accuracy = _measure(module, val_rows)
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
        }
        if not np.isfinite([train_loss, val_loss]).all():
            raise DataError(
                f"expected a finite loss, found {train_loss:g} in training and {val_loss:g} in "
                f"validation at epoch {epoch}: training diverged; lower --learning-rate"
            )
        history.rows.append(row)
        tick(row)
        if val_loss < best_loss:
            best_loss, history.best = val_loss, epoch - 1
            best_state = copy.deepcopy(module.state_dict())
        elif epoch - 1 - history.best >= schedule.patience:
            break
    module.load_state_dict(best_state)
    return history


def _train_epoch(
    module: nn.Module, optimiser: torch.optim.Optimizer, rows: _Rows, schedule: Schedule
) -> tuple[float, float]:
    """Loss and accuracy as seen while training, dropout included."""
    module.train()
    order = torch.randperm(len(rows.y))
    loss_sum = torch.zeros((), device=rows.device)
    hits = torch.zeros((), device=rows.device)
    for batch in torch.split(order, schedule.batch_size):
        X, y = rows.batch(batch)
        logits = module(X)
        loss = nn.functional.cross_entropy(logits, y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        loss_sum += loss.detach() * len(y)
        hits += (logits.argmax(dim=1) == y).sum()
    return float(loss_sum) / len(order), float(hits) / len(order)


@torch.inference_mode()
def _measure(module: nn.Module, rows: _Rows) -> tuple[float, float]:
    module.eval()
    loss_sum, hits = 0.0, 0.0
    for batch in torch.split(torch.arange(len(rows.y)), _MEASURE_ROWS):
        X, y = rows.batch(batch)
        logits = module(X)
        loss_sum += float(nn.functional.cross_entropy(logits, y, reduction="sum"))
        hits += float((logits.argmax(dim=1) == y).sum())
    return loss_sum / len(rows.y), hits / len(rows.y)


class _Rows:
    """Feature rows in memory in their stored dtype, standardised when a batch is taken."""

    def __init__(self, X: Any, y: np.ndarray, head: Head, device: str) -> None:
        self.device = device
        self._X = torch.tensor(np.asarray(X)).flatten(1).to(device)
        self.y = torch.from_numpy(y).to(device)
        self._mean = torch.from_numpy(head.mean_).to(device)
        self._scale = torch.from_numpy(head.scale_).to(device)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        index = index.to(self.device)
        return (self._X[index].float() - self._mean) / self._scale, self.y[index]
