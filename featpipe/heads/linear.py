"""``linear``: one matrix, trained with PyTorch."""

from __future__ import annotations

from typing import Any, ClassVar

from featpipe.heads.base import MatrixHead
from featpipe.heads.gradient_head import GradientHead
from featpipe.specs.head_params import LinearParams


class LinearHead(LinearParams, GradientHead, MatrixHead):
    """Softmax regression by AdamW with early stopping; see ``LinearParams``."""

    kind = "linear"
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "weight_decay": (0.0, 1e-2, 1e-1, 1.0),
    }
