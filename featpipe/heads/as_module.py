"""Heads as torch modules: raw feature rows in, logits out; they standardise rows themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


class Standardise(nn.Module):
    """Maps (n, c, h, w) minus a mean for each channel, divided by one scale.

    Parameters
    ----------
    mean : ndarray of float32, shape (c,)
    scale : ndarray of float32, shape (1,)
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean.copy())[:, None, None])
        self.register_buffer("scale", torch.from_numpy(scale.copy()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return (maps - self.mean) / self.scale


class Average(nn.Module):
    """The average of maps over their places: what features with pooling ``avg`` are.

    Parameters
    ----------
    axes : tuple of int
        Those of the places, counted with the batch's.
    """

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return maps.mean(dim=self.axes)


def on_flat_rows(
    layers: Sequence[tuple[np.ndarray, np.ndarray]],
    mean: NDArray[np.float32],
    scale: NDArray[np.float32],
) -> nn.Sequential:
    """Matrices with ReLUs between them, for rows (n, …) that are flattened first.

    The first matrix takes mean and scale along: :math:`W (x - m) / s + b = W' x + b'` with
    :math:`W' = W / s` and :math:`b' = b - W' m`.

    Parameters
    ----------
    layers : sequence of (weight, bias)
        Of shapes (outputs, inputs) and (outputs,).
    mean, scale : ndarray of float32, shapes (d,) and (1,) or (d,)
    """
    (weight, bias), *rest = layers
    wide = weight.astype(np.float64) / scale
    first = (wide, bias - wide @ mean.astype(np.float64))
    modules: list[nn.Module] = [nn.Flatten()]
    for number, (matrix, offset) in enumerate([first, *rest]):
        modules += [nn.ReLU()] if number else []
        modules.append(linear(matrix, offset))
    return nn.Sequential(*modules).eval()


def linear(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    """A dense layer with these numbers, in float32; it learns no more."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    state = {"weight": weight, "bias": bias}
    tensors = {name: torch.from_numpy(np.array(t, np.float32)) for name, t in state.items()}
    layer.load_state_dict(tensors, assign=True)
    return layer.requires_grad_(False)


class Neighbours(nn.Module):
    """Log-probabilities by the training rows that are nearest to a row; see ``KNNHead``.

    Parameters
    ----------
    rows : ndarray, shape (n, d)
        Training rows of norm 1.
    votes : ndarray, shape (n, classes)
        For each training row, the weight of its vote in the column of its class.
    scale : ndarray of float32, shape (1,) or (d,)
    k : int
    vote_temperature, smoothing : float
    """

    rows: torch.Tensor
    votes: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        rows: np.ndarray,
        votes: np.ndarray,
        scale: NDArray[np.float32],
        *,
        k: int,
        vote_temperature: float,
        smoothing: float,
    ) -> None:
        super().__init__()
        for name, numbers in {"rows": rows, "votes": votes, "scale": scale}.items():
            self.register_buffer(name, torch.from_numpy(numbers.astype(np.float32)))
        self._k, self._temperature, self._smoothing = k, vote_temperature, smoothing

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (n, …) → logarithms of the class probabilities (n, classes)."""
        flat = rows.flatten(1) / self.scale
        norm = flat.square().sum(dim=1, keepdim=True).sqrt()
        unit = flat / torch.where(norm == 0, torch.ones_like(norm), norm)
        similarity, number = (unit @ self.rows.T).topk(self._k, dim=1)
        vote = ((similarity - similarity[:, :1]) / self._temperature).exp()
        votes = (vote[:, :, None] * self.votes[number]).sum(dim=1)  # n k classes → n classes
        shares = votes + self._smoothing / self.votes.shape[1]
        return (shares / shares.sum(dim=1, keepdim=True)).log()
