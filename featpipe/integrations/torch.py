"""Cached features as a PyTorch data set."""

from __future__ import annotations

import os

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
    tap, pool : str, optional
        May be left out while the data set has one feature space.
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.

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
        tap: str | None = None,
        pool: str | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self.features, self.labels = open_features(name, split, tap=tap, pool=pool, cache=cache)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = torch.tensor(self.features[index], dtype=torch.float32)
        return row, int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        # A DataLoader fetches a whole batch at once through this: one gather, not n.
        rows = torch.from_numpy(self.features[indices].astype("float32"))
        return list(zip(rows.unbind(), self.labels[indices].tolist(), strict=True))
