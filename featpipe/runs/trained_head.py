"""A trained head with what it must be fed, and what its two files say.

Nothing in the files can run: reading them parses numbers and text, and builds a head of a known
kind.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError, other_version
from featpipe.base.ids import DIGEST_BYTES
from featpipe.base.joined_spaces import (
    joined_poolings,
    joined_shape,
    joined_taps,
    joining_problem,
    repeated,
)
from featpipe.base.numbers import is_finite
from featpipe.base.preprocessing import describe
from featpipe.base.space import FeatureSpace
from featpipe.base.tensor_files import StoredTensors
from featpipe.base.text import is_name
from featpipe.heads import new_head
from featpipe.heads.base import Head, History, HistoryRow
from featpipe.specs.head_params import check_params

HEAD_VERSION = 3
"""Format of a head of several feature spaces. One with a temperature is written as 2, all others
as 1, which earlier versions read."""
DESCRIPTION_NAME, TENSORS_NAME = "head.json", "head.safetensors"


class SplitScores(TypedDict):
    """How the kept state did on a split: number of pictures, mean loss in nats, accuracy."""

    n: int
    loss: float
    accuracy: float


class TrainingData(TypedDict):
    """What a head was trained on: the data set's name, and digests of its list and its splits.

    ``val`` says where validation pictures came from.
    """

    name: str
    sha256: str
    train_sha256: str
    val_sha256: str
    val: str


@dataclass
class TrainedHead:
    """A head and what it must be fed; it answers like a scikit-learn classifier.

    Attributes
    ----------
    head : Head
    spaces : tuple of FeatureSpace
        The only feature spaces whose rows it accepts; of several, the flattened rows side by side.
    weights_name : str
        How the backbone's weights were named when its features were made.
    dataset : TrainingData
    history : History
    metrics : dict of str to SplitScores
        Of ``train`` and ``val``.
    info : dict
        Versions, seed, seconds; for people.
    train_ids : ndarray of uint8, shape (n, 32)
        Image ids of train and validation, to find them again among test pictures.
    """

    head: Head
    spaces: tuple[FeatureSpace, ...]
    weights_name: str
    dataset: TrainingData
    history: History = field(repr=False)
    metrics: dict[str, SplitScores]
    info: dict[str, Any] = field(repr=False)
    train_ids: np.ndarray = field(repr=False)
    digest: str = ""
    """SHA-256 (hex) of its description; empty where it was not read from files."""

    @property
    def space(self) -> FeatureSpace:
        """Its feature space; of several, the first."""
        return self.spaces[0]

    @property
    def classes_(self) -> NDArray[np.str_]:
        """Class names, (classes,): the columns of :meth:`predict_proba`."""
        return self.head.classes_

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of feature rows.

        Parameters
        ----------
        X : array-like, shape (n, *space.shape) or (n, features)
            Rows of the head's feature space, not standardised; the latter flattened in the order
            C, H, W. Of several spaces, their flattened rows side by side, in the order of
            ``spaces``. Memory-mapped ones are read in blocks.

        Returns
        -------
        ndarray of float64, shape (n, classes)
            Rows sum to 1.

        Raises
        ------
        UsageError
            The rows have another shape. Rows of another feature space with the same shape cannot
            be told from the right ones.
        """
        rows = X if hasattr(X, "shape") else np.asarray(X)
        shape = joined_shape(self.spaces)
        if tuple(rows.shape[1:]) not in (shape, (int(np.prod(shape)),)) or not rows.shape:
            raise UsageError(
                f"expected rows of shape (n, {', '.join(map(str, shape))}), of "
                f"{joined_taps(self.spaces)} with pooling {joined_poolings(self.spaces)}, found "
                f"{tuple(rows.shape)}; open the features that the head was trained on"
            )
        return self.head.predict_proba(rows)

    def predict(self, X: Any) -> NDArray[np.str_]:
        """Most probable class name of each row, (n,); see :meth:`predict_proba`."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


@dataclass(frozen=True)
class HeadDescription:
    """What a head's description says, without its tensors.

    Attributes
    ----------
    kind : str
    classes : list of str
    params : dict
        Hyper-parameters.
    spaces : tuple of FeatureSpace
    dataset : TrainingData
    metrics : dict of str to SplitScores
        Of ``train`` and ``val``.
    info : dict
    digest : str
        SHA-256 (hex) of the description.
    """

    kind: str
    classes: list[str]
    params: dict[str, Any]
    spaces: tuple[FeatureSpace, ...]
    dataset: TrainingData
    metrics: dict[str, SplitScores]
    info: dict[str, Any]
    digest: str


def stored_tensors(trained: TrainedHead) -> dict[str, np.ndarray]:
    """What is stored as the tensors of a head."""
    return {**trained.head.tensors(), "train_image_sha256": trained.train_ids}


def encode_description(trained: TrainedHead, *, tensors_sha256: str) -> bytes:
    """The description of a head, whose tensors it names by the digest of their file."""
    head = trained.head
    document = {
        "format": _format(trained),
        "kind": head.kind,
        "classes": head.classes_.tolist(),
        "params": head.params,
        **_spaces_document(trained.spaces),
        # For those who repeat it without featpipe; nothing here reads it.
        "preprocessing": describe(trained.space.preprocessing),
        "weights": trained.weights_name,
        "dataset": trained.dataset,
        "history": _history_document(trained.history),
        "metrics": trained.metrics,
        "info": trained.info,
        "tensors_sha256": tensors_sha256,
    }
    document["sha256"] = _document_digest(document)
    text = json.dumps(document, indent=2, ensure_ascii=True) + "\n"
    return text.encode("ascii")


def _format(trained: TrainedHead) -> int:
    if len(trained.spaces) > 1:
        return HEAD_VERSION
    return 1 if trained.head.temperature_ == 1.0 else 2


def _spaces_document(spaces: tuple[FeatureSpace, ...]) -> dict[str, Any]:
    documents, ids = [json.loads(one.canonical_json) for one in spaces], [one.id for one in spaces]
    if len(spaces) == 1:
        return {"feature_space": documents[0], "feature_space_id": ids[0]}
    return {"feature_spaces": documents, "feature_space_ids": ids}


def tensors_digest(text: bytes) -> str | None:
    """Digest of the tensors' file that a description names; None where it names none."""
    try:
        named = json.loads(text)["tensors_sha256"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return named if isinstance(named, str) else None


def _document_digest(document: dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode("ascii")).hexdigest()


def decode_description(text: bytes) -> HeadDescription:
    """Read what a head's description says.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError
        It does not describe a head of a kind and format that this featpipe knows.
    """
    document = _checked_document(text)
    kind, params = document["kind"], dict(document["params"])
    check_params(kind, params)
    return HeadDescription(
        kind=kind,
        classes=document["classes"],
        params=params,
        spaces=_spaces(document),
        dataset=document["dataset"],
        metrics={split: _scores(document["metrics"][split]) for split in ("train", "val")},
        info=document["info"],
        digest=document["sha256"],
    )


def _scores(row: dict[str, Any]) -> SplitScores:
    scores: SplitScores = {"n": row["n"], "loss": row["loss"], "accuracy": row["accuracy"]}
    if not all(is_finite(value) for value in scores.values()):
        raise ValueError("its scores are not numbers")
    return scores


def _checked_document(text: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(text)
    if document["format"] not in (1, 2, HEAD_VERSION):
        raise ValueError(other_version("format", document["format"], HEAD_VERSION))
    if _document_digest(document) != document["sha256"]:
        raise ValueError("its description does not have the digest that it names")
    _check_document(document)
    return document


def _spaces(document: dict[str, Any]) -> tuple[FeatureSpace, ...]:
    if document["format"] < HEAD_VERSION:
        listed, ids = [document["feature_space"]], [document["feature_space_id"]]
    else:
        listed, ids = document["feature_spaces"], document["feature_space_ids"]
    if not isinstance(listed, list) or not listed:
        raise ValueError("its feature spaces are not listed")
    spaces = tuple(FeatureSpace.from_json(json.dumps(one)) for one in listed)
    if [space.id for space in spaces] != ids:
        raise ValueError("its feature space does not match its id")
    if repeated(spaces) is not None:
        raise ValueError("one of its feature spaces is listed twice")
    if problem := joining_problem(spaces):
        raise ValueError(f"its feature spaces do not come from one pass: {problem}")
    return spaces


def decode_head(text: bytes, stored: StoredTensors) -> TrainedHead:
    """Make a head of its description and its tensors, whose memory it keeps.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError, RecursionError, DamageError
        They do not describe a head of a format that this featpipe knows.
    OwnCodeError
        The head is a network of the user's own whose code is not permitted, or does not work.
    """
    document = _checked_document(text)
    if stored.sha256 != document["tensors_sha256"]:
        raise ValueError(f"{TENSORS_NAME} is not the one {DESCRIPTION_NAME} was written with")
    spaces = _spaces(document)
    head = new_head(document["kind"], document["params"])
    head.attach(spaces)
    tensors = dict(stored.tensors)
    train_ids = tensors.pop("train_image_sha256")
    if train_ids.ndim != 2 or train_ids.shape[1] != DIGEST_BYTES or train_ids.dtype != np.uint8:
        raise ValueError(f"its list of training pictures is {train_ids.dtype} {train_ids.shape}")
    head.set_tensors(tensors, document["classes"], joined_shape(spaces))
    _check_scale(head, spaces)
    history = _history(document["history"])
    return TrainedHead(
        head=head,
        spaces=spaces,
        weights_name=document["weights"],
        dataset=document["dataset"],
        history=history,
        metrics=document["metrics"],
        info=document["info"],
        train_ids=train_ids,
        digest=document["sha256"],
    )


def _check_scale(head: Head, spaces: tuple[FeatureSpace, ...]) -> None:
    scales = 1 if len(spaces) == 1 else len(head.mean_)
    if head.scale_.shape != (scales,):
        raise ValueError(f"its scale is {head.scale_.shape}, not ({scales},)")


def _history_document(history: History) -> dict[str, Any]:
    rows = [row.as_json(history.axis) for row in history.rows]
    document: dict[str, Any] = {"axis": history.axis, "best": history.best, "rows": rows}
    # Left out where it is empty: formats are for ever.
    return document | ({"untried": history.untried} if history.untried else {})


def _history(document: dict[str, Any]) -> History:
    axis = document["axis"]
    if axis not in ("epoch", "C", "k"):
        raise ValueError("its history is none of epochs, C or k")
    rows = [HistoryRow.from_json(row, axis) for row in document["rows"]]
    if type(document["best"]) is not int or document["best"] not in range(len(rows)):
        raise ValueError("its history keeps no row of it")
    untried = document.get("untried", [])
    if not isinstance(untried, list) or not all(map(is_finite, untried)):
        raise ValueError("its history's untried values are not numbers")
    return History(axis, rows, document["best"], untried=untried)


def _check_document(document: dict[str, Any]) -> None:
    """Refuse what later steps could not work with."""
    dataset = document["dataset"]
    if not all(isinstance(dataset[name], str) for name in ("name", "sha256", "val")):
        raise ValueError("its data set is not named")
    classes = document["classes"]
    if not isinstance(document["weights"], str) or not isinstance(classes, list):
        raise ValueError("its weights or its classes are not named")
    is_named = all(isinstance(name, str) and is_name(name) for name in classes)
    if not is_named or len(set(classes)) < len(classes):
        raise ValueError("its classes are not so many different names")
    if not isinstance(document["kind"], str):
        raise ValueError("its kind is not named")
    if not isinstance(document["info"], dict) or not isinstance(document["metrics"], dict):
        raise ValueError("its notes are no table")
