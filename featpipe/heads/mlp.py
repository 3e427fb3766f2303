"""``mlp``: one hidden layer with dropout, trained with PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featpipe.heads.gradient_head import GradientHead
from featpipe.specs.head_params import MLPParams

if TYPE_CHECKING:
    from torch import nn


class MLPHead(MLPParams, GradientHead):
    """Linear, ReLU, dropout, linear; by AdamW with early stopping; see ``MLPParams``."""

    kind = "mlp"
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {
        "hidden": (64, 256),
        "dropout": (0.2, 0.5),
        "learning_rate": (3e-5, 1e-4, 3e-4, 1e-3),
        "weight_decay": (1e-2, 1.0),
    }

    def logits(self, Z: np.ndarray) -> np.ndarray:
        """See :meth:`Head.logits`."""
        hidden = Z @ self.layers_["hidden.weight"].T + self.layers_["hidden.bias"]
        np.maximum(hidden, 0, out=hidden)
        return hidden @ self.layers_["output.weight"].T + self.layers_["output.bias"]

    def to_module(self, row_shape: tuple[int, ...]) -> nn.Module:
        """See :meth:`Head.to_module`."""
        from featpipe.heads.as_module import on_flat_rows

        parts = [
            (self.layers_[f"{name}.weight"], self.layers_[f"{name}.bias"])
            for name in ("hidden", "output")
        ]
        return on_flat_rows(parts, self.mean_, self.scale_)

    def layers(self) -> dict[str, np.ndarray]:
        """``hidden.weight`` (hidden, d), ``output.weight`` (classes, hidden) and biases."""
        return self.layers_

    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """See :meth:`Head.set_layers`."""
        names = ("hidden.weight", "hidden.bias", "output.weight", "output.bias")
        self.layers_ = {name: layers[name] for name in names}
