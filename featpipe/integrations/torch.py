"""Cached features as a PyTorch data set."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import Dataset

from featpipe.integrations.arrays import open_features


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of one split for a ``DataLoader``; mapped, and opened anew in each worker.

    Parameters
    ----------
    name : str
        Data set.
    split : {"train", "val", "test", "all"}
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **space
        Which feature space, where the data set has several; see
        :func:`featpipe.open_features`.

    Notes
    -----
    Items are ``(features, label)``: float32 of the space's shape, and the class index (-1
    where unlabelled).
    """

    def __init__(
        self,
        name: str,
        split: str = "train",
        *,
        cache: str | os.PathLike[str] | None = None,
        **space: Any,
    ) -> None:
        self.features, self.labels = open_features(name, split, cache=cache, **space)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = torch.tensor(self.features[index], dtype=torch.float32)
        return row, int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        # A DataLoader fetches a whole batch at once through this: one gather, not n.
        rows = torch.from_numpy(self.features[indices].astype("float32"))
        return list(zip(rows.unbind(), self.labels[indices].tolist(), strict=True))
