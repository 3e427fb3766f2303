"""Stage 2: a data set's cached rows become a head. No picture is opened, no backbone built."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.errors import DataError, StorageError, UsageError
from featpipe.features import choose_space
from featpipe.hardware import resolve_device
from featpipe.heads import head_class, new_head
from featpipe.heads.files import TrainedHead, holds_head, save_head
from featpipe.ids import sortable
from featpipe.progress import Progress, no_progress
from featpipe.splits import DEFAULT_VAL_FRACTION, check_val_fraction, split_by_content
from featpipe.store.datasets import NO_LABEL, Dataset, load_dataset
from featpipe.store.feature_store import FeatureStore

DEFAULT_RUNS = Path("runs")


@dataclass(frozen=True)
class TrainResult:
    """A trained head.

    Attributes
    ----------
    head : Path
        Its run folder.
    kind : str
    classes : list of str
    space : str
        Id of its feature space.
    train, val : dict
        ``n, loss, accuracy`` of the kept state.
    best : dict
        The kept row of the history.
    seconds : float
    """

    head: Path
    kind: str
    classes: list[str]
    space: str
    train: dict[str, float]
    val: dict[str, float]
    best: dict[str, float]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The result as the command prints it."""
        return {**dataclasses.asdict(self), "head": str(self.head)}


def train_head(
    name: str,
    *,
    cache: Path,
    head: str = "linear",
    params: dict[str, Any] | None = None,
    tap: str | None = None,
    pool: str | None = None,
    seed: int = 0,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    out: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = no_progress,
) -> TrainResult:
    """Train a head on a data set's train split, selecting on validation only.

    Parameters
    ----------
    name : str
        Data set.
    cache : Path
    head : {"linear", "mlp", "logistic"}
    params : dict, optional
        Hyper-parameters of the head; see its class for names and defaults.
    tap, pool : str, optional
        Needed where the data set has more than one feature space.
    seed : int
        Makes a CPU run repeat exactly.
    val_fraction : float
        Share of train set aside, by content, where the data set has no validation split.
    out : Path, optional
        Run folder; default: the next free ``runs/<name>-<head>-<number>``.
    overwrite : bool
        Replace a head that ``out`` already holds.
    device : str
    progress : Progress

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    started = time.perf_counter()
    check_seed(seed)
    check_val_fraction(val_fraction)
    model = new_head(head, params or {})
    if out is not None and holds_head(out) and not overwrite:
        raise UsageError(
            f"expected a run folder without a head, found one in {out}; "
            "name another --out, or replace it with --overwrite"
        )
    dataset = load_dataset(cache, name)
    space, weights_spec = choose_space(dataset, tap=tap, pool=pool)
    train, val = training_rows(dataset, val_fraction)
    classes = _classes_in(dataset, train)
    label = _renumbered(dataset, classes)
    # Validation pictures of classes that train lacks could only ever be wrong.
    val = val[label[val] >= 0]
    if not len(val):
        raise DataError(_no_validation(dataset))
    rows = FeatureStore(cache, space).rows(dataset.image_sha256[np.concatenate([train, val])])
    X, X_val = rows.select(np.arange(len(train))), rows.select(np.arange(len(train), len(rows)))
    model.classes_ = np.array(classes)
    steps = getattr(model, "epochs", 0)
    with progress(f"train {head}", steps) as bar:
        history = model.fit(
            X,
            label[train],
            X_val,
            label[val],
            seed=seed,
            device=resolve_device(device),
            tick=lambda row: bar.advance(val_loss=f"{row['val_loss']:.4f}"),
        )
    best = history.rows[history.best]
    scores = {
        split: {"n": n, "loss": best[f"{split}_loss"], "accuracy": best[f"{split}_accuracy"]}
        for split, n in (("train", len(train)), ("val", len(val)))
    }
    seconds = round(time.perf_counter() - started, 3)
    used = np.concatenate([train, val])
    trained = TrainedHead(
        head=model,
        space=space,
        weights_spec=weights_spec,
        dataset=_describe(dataset, train, val, val_fraction),
        history=history,
        metrics=scores,
        info={"seed": seed, "seconds": seconds, **_versions()},
        train_ids=_unique(dataset.image_sha256[used]),
    )
    folder = out if out is not None else _next_run_folder(f"{name}-{head}")
    save_head(folder, trained)
    return TrainResult(
        folder, head, classes, space.id, scores["train"], scores["val"], best, seconds
    )


def check_seed(seed: int) -> None:
    """Refuse what cannot seed a generator.

    Raises
    ------
    UsageError
    """
    if not 0 <= seed < 2**32:
        raise UsageError(f"expected --seed of 0 to 4294967295, found {seed}")


def training_rows(dataset: Dataset, val_fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of labelled train and validation pictures.

    Where the data set has no validation split, a share of train is set aside by content.

    Raises
    ------
    DataError
        Either would be empty.
    """
    labelled = dataset.label != NO_LABEL
    if not (labelled & dataset.usable).any():
        raise DataError(
            f"expected labelled pictures in data set '{dataset.name}', found none; "
            "put them into one folder per class, or give a list with a 'label' column"
        )
    train = dataset.in_split("train")
    train = train[labelled[train]]
    if "val" in dataset.split_names:
        val = dataset.in_split("val")
        val = val[labelled[val]]
    else:
        shares = (1 - val_fraction, val_fraction)
        part = split_by_content(
            dataset.image_sha256[train], dataset.label[train], shares, salt="val"
        )
        train, val = train[part == 0], train[part == 1]
    if not len(train) or not len(val):
        raise DataError(_no_validation(dataset))
    return train, val


def _no_validation(dataset: Dataset) -> str:
    return (
        f"expected pictures to train on and to validate with in data set '{dataset.name}', "
        "found too few; add pictures (at least two different ones per class), or raise --val"
    )


def _classes_in(dataset: Dataset, train: np.ndarray) -> list[str]:
    present = np.unique(dataset.label[train])
    if len(present) < 2:
        found = ", ".join(repr(dataset.classes[i]) for i in present)
        raise DataError(
            f"expected at least two classes in the train split of '{dataset.name}', found "
            f"{found}; a classifier needs something to tell apart"
        )
    return [dataset.classes[i] for i in present]


def _renumbered(dataset: Dataset, classes: list[str]) -> np.ndarray:
    """Labels as indices into the head's classes, -1 where it has none."""
    number = {name: i for i, name in enumerate(classes)}
    table = np.array([*(number.get(name, -1) for name in dataset.classes), -1], np.int64)
    return table[dataset.label]


def _describe(
    dataset: Dataset, train: np.ndarray, val: np.ndarray, val_fraction: float
) -> dict[str, Any]:
    given = "val" in dataset.split_names
    return {
        "name": dataset.name,
        "sha256": dataset.digest(),
        "train_sha256": _ids_digest(dataset.image_sha256[train]),
        "val_sha256": _ids_digest(dataset.image_sha256[val]),
        "val": "given" if given else f"{val_fraction:g} of train, by content",
    }


def _unique(ids: np.ndarray) -> np.ndarray:
    return ids[np.unique(sortable(ids), return_index=True)[1]]


def _ids_digest(ids: np.ndarray) -> str:
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in ids))).hexdigest()


def _versions() -> dict[str, str]:
    names = ("featpipe", "numpy", "scikit-learn", "torch")
    return {name: importlib.metadata.version(name) for name in names}


def _next_run_folder(stem: str) -> Path:
    """Make and return the next free numbered folder; several processes never share one."""
    number = 1
    while True:
        folder = DEFAULT_RUNS / f"{stem}-{number}"
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StorageError(
                f"expected to make the run folder {folder}, but: {error.strerror}; "
                "name a writable one with --out"
            ) from error


def head_params(head: str, given: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that were given, checked against the kind of head.

    Raises
    ------
    UsageError
        The head has no such hyper-parameter.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    known = head_class(head).param_names()
    for name in chosen:
        if name not in known:
            options = ", ".join("--" + n.replace("_", "-") for n in known)
            raise UsageError(
                f"expected only options of a '{head}' head ({options}), found "
                f"--{name.replace('_', '-')}"
            )
    return chosen
