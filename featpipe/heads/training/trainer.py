"""What the epoch loop needs of heads in training, however they are computed."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

State = dict[str, torch.Tensor]
"""Learned tensors by name; their first axis counts heads."""


class Trainer(Protocol):
    """K heads that see the same batches and nothing of each other.

    Attributes
    ----------
    count : int
        K, the heads still in training.
    steps : int
        Steps made so far.
    widest : int
        Numbers of a row, or of the widest activation that it leads to.
    """

    steps: int
    widest: int

    @property
    def count(self) -> int:
        """K, the heads still in training."""

    def learn(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Make one step on a batch.

        Parameters
        ----------
        Z : Tensor of float32, shape (b, d)
            Centred rows.
        y : Tensor of int64, shape (b,)
            Class indices.

        Returns
        -------
        losses, hits : Tensor, shape (K,)
            Sums over the batch, as they were before the step; a loss counts by the weight of its
            class.
        """

    def score(self, Z: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses and hits as :meth:`learn` gives them, without learning."""

    def weight(self, y: torch.Tensor) -> float:
        """Sum of the class weights of rows of classes ``y``, (n,) int64."""

    def state(self) -> State:
        """What :meth:`layers` needs of the heads; the tensors change with the next step."""

    def layers(self, state: State, k: int, steps: int) -> dict[str, np.ndarray]:
        """Layers of one head.

        Parameters
        ----------
        state : dict of str to Tensor
            A copy of :meth:`state`, of all heads that there were at the start.
        k : int
            Index of the head at the start.
        steps : int
            Steps made when the state was copied.
        """

    def keep(self, heads: list[int]) -> None:
        """Drop all heads but these, given by their present indices."""
