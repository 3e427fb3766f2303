"""``linear``: one matrix, trained with PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from featpipe.heads.base import History, MatrixHead, Tick
from featpipe.specs.heads import LinearParams


class LinearHead(LinearParams, MatrixHead):
    """Softmax regression by AdamW with early stopping; see ``LinearParams``."""

    kind = "linear"
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 1e-2, 1e-1, 1.0),
    }

    @property
    def progress_steps(self) -> int:
        """See :meth:`Head.progress_steps`."""
        return self.epochs

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
        from featpipe.heads.training.fit import train

        return train(self, X, y, X_val, y_val, seed=seed, device=device, tick=tick)
