"""Cached features as a PyTorch data set."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils.data import Dataset

from featpipe.integrations.arrays import open_features


class FeatureDataset(Dataset[tuple[torch.Tensor, int]]):
    """Rows of one split for a ``DataLoader``, memory-mapped; each worker opens them itself.

    Parameters
    ----------
    name : str
        Name of the data set.
    split : {"train", "val", "test", "all"}
        Which rows; ``all`` takes every split.
    cache : path, optional
        Cache root; default: ``$FEATPIPE_CACHE``, else ``./cache``.
    **space
        Selects a feature space if the data set has several; see
        :func:`featpipe.open_features`.

    Notes
    -----
    Items are ``(features, label)``: float32 of the space's shape, and the class index (-1
    if unlabelled).
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
        # A DataLoader calls this for a whole batch: one indexed read instead of n.
        rows = torch.from_numpy(self.features[indices].astype("float32"))
        return list(zip(rows.unbind(), self.labels[indices].tolist(), strict=True))
