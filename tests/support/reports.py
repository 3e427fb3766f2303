"""Pretended heads and mistakes, for pages."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from featpipe.heads import new_head
from featpipe.heads.base import History, HistoryRow
from featpipe.reports.mistakes import Mistake
from featpipe.runs.trained_head import TrainedHead
from support.samples import image_ids, small_space

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=http://evil.example/x onerror=alert(1)>",
    "--><b>&amp;",
    "$\\frac{$ $$",
    "$math$",
    "line\nbreak\ttab",
    "‮right to left",
    "猫 chat",
]


def history(rows: int = 4, axis: str = "epoch") -> History:
    return History(
        axis,
        [
            HistoryRow(
                at=10.0 ** -(i + 1) if axis == "C" else i + 1,
                train_loss=1 / (i + 1),
                train_accuracy=0.5 + i / 20,
                val_loss=1.1 / (i + 1),
                val_accuracy=0.4 + i / 20,
            )
            for i in range(rows)
        ],
        rows - 1,
    )


def trained_head(classes: list[str], **changes: Any) -> TrainedHead:
    head = new_head("linear", {})
    head.classes_ = np.array(classes)
    fields: dict[str, Any] = {
        "head": head,
        "spaces": (small_space(),),
        "weights_name": "random:0",
        "dataset": {"name": "pets", "sha256": "ab" * 32, "val": "given"},
        "history": history(),
        "metrics": {},
        "info": {"seed": 0, "torch": "9.9"},
        "train_ids": image_ids(1),
    }
    return TrainedHead(**{**fields, **changes})


def mistake(path: str, data: bytes | None, **changes: Any) -> Mistake:
    """A mistake whose picture is ``data``; None for one that is gone."""

    def read(asked: str) -> bytes:
        assert asked == path
        if data is None:
            raise FileNotFoundError(asked)
        return data

    fields: dict[str, Any] = {
        "path": path,
        "truth": "cat",
        "predicted": "dog",
        "probability": 0.876,
        "image_id": hashlib.sha256(data or b"").digest(),
        "read": read,
    }
    return Mistake(**{**fields, **changes})
