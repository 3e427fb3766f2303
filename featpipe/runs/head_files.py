"""A head on disk: ``head.safetensors`` for the numbers, ``head.json`` for everything else.

Nothing in them can run: loading parses numbers and text, and builds a head of a known kind.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.base.disk import keep_as, read_regular, remove_file, write_atomically
from featpipe.base.errors import (
    DamageError,
    FeatpipeError,
    NotFoundError,
    StorageError,
    other_version,
)
from featpipe.base.ids import DIGEST_BYTES
from featpipe.base.space import FeatureSpace
from featpipe.heads import new_head
from featpipe.heads.base import Head, History

HEAD_VERSION = 1
JSON_NAME, TENSORS_NAME = "head.json", "head.safetensors"
SPARE_NAME = "head.safetensors.old"
"""The tensors of the head that is being replaced, until ``head.json`` is."""


@dataclass
class TrainedHead:
    """A head and what it must be fed.

    Attributes
    ----------
    head : Head
    space : FeatureSpace
        The only feature space whose rows it accepts.
    weights_spec : str
        How the backbone's weights were named when its features were made.
    dataset : dict
        Name, digest and split digests of what it was trained on.
    history : History
    metrics : dict
        Training and validation scores of the kept state.
    info : dict
        Versions, seed, seconds; for people.
    train_ids : ndarray of uint8, shape (n, 32)
        Image ids of train and validation, to find them again among test pictures.
    """

    head: Head
    space: FeatureSpace
    weights_spec: str
    dataset: dict[str, Any]
    history: History
    metrics: dict[str, Any]
    info: dict[str, Any]
    train_ids: np.ndarray


def holds_head(folder: Path) -> bool:
    """Whether a run folder already has a head."""
    return (folder / JSON_NAME).exists()


def save_head(folder: Path, trained: TrainedHead) -> Path:
    """Write a head into a run folder; ``head.json`` comes last and makes it complete."""
    from safetensors.numpy import save

    head = trained.head
    tensors = {name: np.ascontiguousarray(t) for name, t in head.tensors().items()}
    data = save({**tensors, "train_image_sha256": trained.train_ids})
    document = {
        "format": HEAD_VERSION,
        "kind": head.kind,
        "classes": head.classes_.tolist(),
        "params": head.params,
        "feature_space": json.loads(trained.space.canonical_json),
        "feature_space_id": trained.space.id,
        "weights": trained.weights_spec,
        "dataset": trained.dataset,
        "history": {
            "axis": trained.history.axis,
            "best": trained.history.best,
            "rows": trained.history.rows,
        },
        "metrics": trained.metrics,
        "info": trained.info,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    document["sha256"] = _document_digest(document)
    text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
    if _is_complete(folder):
        # The old head answers until the new one is complete. A spare that is there although
        # the head is not belongs to one whose replacement was cut short before: it stays.
        keep_as(folder / TENSORS_NAME, folder / SPARE_NAME)
    write_atomically(folder / TENSORS_NAME, data)
    write_atomically(folder / JSON_NAME, text.encode("ascii"))
    remove_file(folder / SPARE_NAME)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether the tensors in a run folder are those its ``head.json`` names."""
    try:
        named = json.loads(read_regular(folder / JSON_NAME))["tensors_sha256"]
        return bool(hashlib.sha256(read_regular(folder / TENSORS_NAME)).hexdigest() == named)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _document_digest(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def load_head(path: Path) -> TrainedHead:
    """Read the head in a run folder (or named by its ``head.json``).

    Raises
    ------
    NotFoundError
        There is none.
    DamageError
        Its files are not whole, do not belong together, or have a newer format.
    """
    folder = path.parent if path.name in (JSON_NAME, TENSORS_NAME) else path
    try:
        text = read_regular(folder / JSON_NAME)
        data = read_regular(folder / TENSORS_NAME)
        spare = read_regular(folder / SPARE_NAME) if (folder / SPARE_NAME).exists() else b""
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(
            f"expected a head ({JSON_NAME} and {TENSORS_NAME}) in {folder}, found none; "
            "train one with 'featpipe train-head NAME', it prints its folder"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {folder}, but: {error.strerror}") from error
    try:
        return _decode(text, data, spare)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, FeatpipeError) and not isinstance(error, ValueError):
            raise
        raise _damaged(folder, str(error).splitlines()[0] if str(error) else repr(error)) from error
    except DamageError as error:
        raise _damaged(folder, str(error)) from error


def _decode(text: bytes, data: bytes, spare: bytes) -> TrainedHead:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    document = json.loads(text)
    if document["format"] != HEAD_VERSION:
        raise ValueError(other_version("format", document["format"], HEAD_VERSION))
    if _document_digest(document) != document["sha256"]:
        raise ValueError(f"{JSON_NAME} does not have the digest it names")
    if hashlib.sha256(data).hexdigest() != document["tensors_sha256"]:
        # Whoever replaced the head ended between its two files: the old one still stands.
        data = spare
    if hashlib.sha256(data).hexdigest() != document["tensors_sha256"]:
        raise ValueError(f"{TENSORS_NAME} is not the one {JSON_NAME} was written with")
    space = FeatureSpace.from_json(json.dumps(document["feature_space"]))
    if space.id != document["feature_space_id"]:
        raise ValueError("its feature space does not match its id")
    head = new_head(document["kind"], document["params"])
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    train_ids = tensors.pop("train_image_sha256")
    if train_ids.ndim != 2 or train_ids.shape[1] != DIGEST_BYTES or train_ids.dtype != np.uint8:
        raise ValueError(f"its list of training pictures is {train_ids.dtype} {train_ids.shape}")
    head.set_tensors(tensors, document["classes"])
    if len(head.mean_) != int(np.prod(space.shape)):
        raise ValueError(f"it takes {len(head.mean_)} features, its space has {space.shape}")
    history = document["history"]
    _check_document(document)
    return TrainedHead(
        head=head,
        space=space,
        weights_spec=document["weights"],
        dataset=document["dataset"],
        history=History(history["axis"], history["rows"], history["best"]),
        metrics=document["metrics"],
        info=document["info"],
        train_ids=train_ids,
    )


def _check_document(document: dict[str, Any]) -> None:
    """Refuse what later steps could not work with."""
    history, dataset = document["history"], document["dataset"]
    axis, names = history["axis"], ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    numbers = [row[name] for row in history["rows"] for name in (axis, *names)]
    if not numbers or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("its history is not one of numbers")
    if axis not in ("epoch", "C") or history["best"] not in range(len(history["rows"])):
        raise ValueError("its history keeps no row of it")
    if not all(isinstance(dataset[name], str) for name in ("name", "sha256", "val")):
        raise ValueError("its data set is not named")
    classes = document["classes"]
    if not isinstance(document["weights"], str) or not isinstance(classes, list):
        raise ValueError("its weights or its classes are not named")
    # NumPy drops zeros at the end of a text.
    is_named = all(isinstance(name, str) and "\0" not in name for name in classes)
    if not is_named or len(set(classes)) < len(classes):
        raise ValueError("its classes are not so many different names")
    if not isinstance(document["info"], dict) or not isinstance(document["metrics"], dict):
        raise ValueError("its notes are no table")


def _damaged(folder: Path, why: str) -> DamageError:
    return DamageError(
        f"expected a whole head in {folder}, found: {why}; train it again (seconds), or "
        "restore both files from one copy"
    )
