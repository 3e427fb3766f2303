"""``linear``: one matrix, trained with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

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
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 1e-2, 1e-1, 1.0),
    }
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
        from featpipe.heads.training.loop import train

        return train(self, X, y, X_val, y_val, seed=seed, device=device, tick=tick)
