"""``linear``: one matrix, trained with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.heads.base import History, MatrixHead, Tick, number, whole


@dataclass
class LinearHead(MatrixHead):
    """Softmax regression by AdamW with early stopping.

    Attributes
    ----------
    learning_rate : float
    weight_decay : float
        Decoupled.
    batch_size : int
    epochs : int
        At most this many.
    patience : int
        Epochs without a lower validation loss before training stops.
    """

    kind = "linear"
    learning_rate: float = 3e-4
    weight_decay: float = 1e-2
    batch_size: int = 128
    epochs: int = 200
    patience: int = 10

    def __post_init__(self) -> None:
        whole(self, "batch_size", "epochs", "patience")
        number(self, "learning_rate", 0, above=True)
        number(self, "weight_decay", 0)

    def fit(
        self,
        X: Any,
        y: np.ndarray,
        X_val: Any,
        y_val: np.ndarray,
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`."""
        from torch import nn

        from featpipe.heads.gradient import Schedule, train

        self._learn_scale(X)

        def make() -> nn.Linear:
            return nn.Linear(len(self.mean_), len(self.classes_))

        schedule = Schedule(**self.params)
        module, history = train(
            make, self, X, y, X_val, y_val, schedule, seed=seed, device=device, tick=tick
        )
        self.weight_ = module.weight.detach().cpu().numpy()
        self.bias_ = module.bias.detach().cpu().numpy()
        return history
