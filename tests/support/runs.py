"""A trained head to save and load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead, _document_digest
from support.heads import MAP_KINDS, made, separable, space_for
from support.samples import image_ids

CLASSES = ["cat", "<dog>", "caf\udce9 猫"]


def trained_head(kind: str = "linear", seed: int = 0) -> TrainedHead:
    """A head for small_space(), or maps, and three classes, trained for a moment."""
    rng = np.random.default_rng(seed)
    y = np.arange(30) % 3
    X = (rng.normal(size=(30, 4)) + 2 * np.eye(3, 4)[y]).astype(np.float16)
    if kind in MAP_KINDS:
        X, y = separable(kind, 30, 3, seed=seed, dtype="f2")
    head = made(kind, PARAMS[kind])
    head.classes_ = np.array(CLASSES)
    history = head.fit(X, y, X, y, seed=seed, device="cpu", tick=lambda row: None)
    return TrainedHead(
        head=head,
        spaces=(space_for(kind),),
        weights_name="random:0",
        dataset={"name": "pets", "sha256": "ab" * 32, "val": "given"},
        history=history,
        metrics={
            "train": {"n": 30, "loss": 0.5, "accuracy": 0.9},
            "val": {"n": 30, "loss": 0.6, "accuracy": 0.8},
        },
        info={"seed": seed},
        train_ids=image_ids(*range(30)),
    )


PARAMS: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 3, "weight_decay": 0.5},
    "mlp": {"epochs": 3, "hidden": 7, "dropout": 0.25},
    "logistic": {},
    "knn": {},
    **{kind: {"epochs": 2, "weight_decay": 0.5, "optimizer": "sgd"} for kind in MAP_KINDS},
}


JSON_NAME, TENSORS_NAME = "head.json", "head.safetensors"
"""What the file format promises of a run folder."""


def save_head(folder: Path, trained: TrainedHead) -> Path:
    Run(folder).save_head(trained)
    return folder


def load_head(path: Path) -> TrainedHead:
    return Run.at(path).load_head()


def holds_head(folder: Path) -> bool:
    return Run(folder).has_head


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change ``head.json`` and make its digest agree, so that only its meaning is wrong."""
    document = json.loads((folder / JSON_NAME).read_text())
    changed = change(document)
    document = document if changed is None else changed
    if isinstance(document, dict):
        document["sha256"] = _document_digest(document)
    (folder / JSON_NAME).write_text(json.dumps(document))


def rewrite_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the tensors and make ``head.json`` agree, so that only their meaning is wrong."""
    tensors = load((folder / TENSORS_NAME).read_bytes())
    change(tensors)
    data = save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
    (folder / TENSORS_NAME).write_bytes(data)
    rewrite(folder, lambda d: d.update(tensors_sha256=hashlib.sha256(data).hexdigest()))
