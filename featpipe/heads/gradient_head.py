"""What the heads that PyTorch trains have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import Head, History, Tick


class GradientHead(Head):
    """A head that is trained by AdamW with early stopping; it has ``GradientParams``."""

    epochs: int
    min_steps: ClassVar[int] = 5
    """Steps that an epoch makes at least, in several passes over the rows where they are few.

    After one step a validation loss says little: patience would be spent before a head has learned.
    """

    @property
    def progress_steps(self) -> int:
        """See :meth:`Head.progress_steps`."""
        return self.epochs

    def fit(
        self,
        X: Any,
        y: NDArray[np.int64],
        X_val: Any,
        y_val: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`."""
        from featpipe.heads.training.fit import train

        return train(self, X, y, X_val, y_val, seed=seed, device=device, tick=tick)
