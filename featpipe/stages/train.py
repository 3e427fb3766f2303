"""Stage 2: a data set's cached rows become a head. No picture is opened, no backbone built."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featpipe.base.disk import remove_file, write_atomically
from featpipe.base.errors import DataError, StorageError, UsageError
from featpipe.base.hardware import resolve_device
from featpipe.base.ids import sortable
from featpipe.base.progress import Progress, no_progress
from featpipe.datasets.files import NO_LABEL, Dataset, load_dataset
from featpipe.datasets.spaces import choose_space
from featpipe.datasets.splits import DEFAULT_VAL_FRACTION, check_val_fraction, split_by_content
from featpipe.heads import head_class, new_head
from featpipe.heads.base import Head, History
from featpipe.heads.sweep import Plan, Sweep, plan_sweep, run_sweep
from featpipe.runs.head_files import TrainedHead, holds_head, save_head
from featpipe.store.feature_store import FeatureStore

DEFAULT_RUNS = Path("runs")
TABLE_NAME, TABLE_SCHEMA = "sweep.json", 1
MAX_SEEDS = 1000
_SEEDS = 2**32


@dataclass(frozen=True)
class SweepResult:
    """The combinations a head was chosen from.

    Attributes
    ----------
    table : Path
        File that lists them all.
    varied : list of str
        Hyper-parameters they differ in; ``seed`` among them where there were several.
    rows : list of dict
        ``params, seed, best_epoch, train_loss, train_accuracy, val_loss, val_accuracy,
        diverged`` of each, lowest validation loss (of folds: ``cv_loss``) first.
    at_edge : dict of str to {"smallest", "largest"}
        Hyper-parameters whose best value lies at an edge of what was tried.
    """

    table: Path
    varied: list[str]
    rows: list[dict[str, Any]]
    at_edge: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """What the command prints of it; the rest is in the table."""
        return {
            "trained": len(self.rows),
            "table": str(self.table),
            "best": self.rows[0],
            "at_edge": self.at_edge,
        }


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
    sweep : SweepResult, optional
        What it was chosen from.
    """

    head: Path
    kind: str
    classes: list[str]
    space: str
    train: dict[str, float]
    val: dict[str, float]
    best: dict[str, float]
    seconds: float
    sweep: SweepResult | None = None

    def as_json(self) -> dict[str, Any]:
        """The result as the command prints it."""
        document = {**dataclasses.asdict(self), "head": str(self.head)}
        del document["sweep"]
        return document if self.sweep is None else {**document, "sweep": self.sweep.as_json()}


def train_head(
    name: str,
    *,
    cache: Path,
    head: str = "linear",
    params: dict[str, Any] | None = None,
    tap: str | None = None,
    pool: str | None = None,
    sweep: bool = False,
    seeds: int = 1,
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
    sweep : bool
        Train the head's whole grid at once and keep the best by validation loss;
        hyper-parameters in ``params`` are not varied.
    seeds : int
        For a sweep: train every combination with so many seeds, from ``seed`` on. They decide
        initial weights and dropout; all see the batches that ``seed`` draws.
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
    check_seeds(head, seed, seeds, sweep=sweep)
    model = new_head(head, params or {})
    plan = plan_sweep(head, params or {}, seed=seed, seeds=seeds) if sweep else None
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
    data = (X, label[train], X_val, label[val])
    options: dict[str, Any] = {"seed": seed, "device": resolve_device(device)}
    found = None
    if plan is None:
        model.classes_ = np.array(classes)
        history = _fit_one(model, data, progress, options)
    else:
        found = _fit_all(plan, data, classes, progress, options)
        model, history = plan.heads[found.winner], found.history
    best = history.rows[history.best]
    scores = {
        split: {"n": n, "loss": best[f"{split}_loss"], "accuracy": best[f"{split}_accuracy"]}
        for split, n in (("train", len(train)), ("val", len(val)))
    }
    seconds = round(time.perf_counter() - started, 3)
    used = np.concatenate([train, val])
    info: dict[str, Any] = {"seed": seed, "seconds": seconds, **_versions()}
    folder = out if out is not None else _next_run_folder(f"{name}-{head}")
    swept = None
    if plan is not None and found is not None:
        swept, info["sweep"] = _save_table(folder, name, plan, found, seed)
    trained = TrainedHead(
        head=model,
        space=space,
        weights_spec=weights_spec,
        dataset=_describe(dataset, train, val, val_fraction),
        history=history,
        metrics=scores,
        info=info,
        train_ids=_unique(dataset.image_sha256[used]),
    )
    save_head(folder, trained)
    if swept is None:
        # The table of a sweep whose head was replaced here.
        remove_file(folder / TABLE_NAME)
    return TrainResult(
        folder, head, classes, space.id, scores["train"], scores["val"], best, seconds, swept
    )


_Data = tuple[Any, np.ndarray, Any, np.ndarray]


def _fit_one(model: Head, data: _Data, progress: Progress, options: dict[str, Any]) -> History:
    with progress(f"train {model.kind}", getattr(model, "epochs", 0)) as bar:
        return model.fit(
            *data,
            tick=lambda row: bar.advance(val_loss=f"{row['val_loss']:.4f}"),
            **options,
        )


def _fit_all(
    plan: Plan, data: _Data, classes: list[str], progress: Progress, options: dict[str, Any]
) -> Sweep:
    lowest = np.inf
    with progress(f"sweep {plan.kind}", plan.steps) as bar:

        def told(steps: int, row: dict[str, float]) -> None:
            nonlocal lowest
            lowest = min(lowest, row["val_loss"])
            bar.advance(steps, val_loss=f"{lowest:.4f}")

        return run_sweep(plan, *data, classes=classes, told=told, **options)


def _save_table(
    folder: Path, name: str, plan: Plan, found: Sweep, seed: int
) -> tuple[SweepResult, dict[str, Any]]:
    """Write all combinations; returns what is told of them, and what the head keeps of them."""
    rows = [trial.as_json() for trial in found.trials]
    document = {
        "schema": TABLE_SCHEMA,
        "kind": plan.kind,
        "dataset": name,
        "seed": seed,
        "varied": found.varied,
        "combinations": rows,
    }
    data = (json.dumps(document, indent=2, ensure_ascii=True) + "\n").encode("ascii")
    write_atomically(folder / TABLE_NAME, data)
    note = {
        "trained": len(rows),
        "seed": plan.seeds[found.winner],
        "table_sha256": hashlib.sha256(data).hexdigest(),
    }
    return SweepResult(folder / TABLE_NAME, found.varied, rows, found.at_edge), note


def check_seed(seed: int) -> None:
    """Refuse what cannot seed a generator.

    Raises
    ------
    UsageError
    """
    if not 0 <= seed < _SEEDS:
        raise UsageError(f"expected --seed of 0 to {_SEEDS - 1}, found {seed}")


def check_seeds(head: str, seed: int, seeds: int, *, sweep: bool) -> None:
    """Refuse a number of seeds that is none, or that means nothing here.

    Raises
    ------
    UsageError
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= MAX_SEEDS:
        raise UsageError(f"expected --seeds of 1 to {MAX_SEEDS}, found {seeds!r}")
    if seeds > 1 and not sweep:
        raise UsageError(f"expected --seeds only with --sweep, found --seeds {seeds} without it")
    if seeds > 1 and not head_class(head).sweep_grid:
        raise UsageError(
            f"expected --seeds only for heads that draw numbers, found it for '{head}', which "
            "comes out the same with every seed"
        )
    if seed + seeds > _SEEDS:
        raise UsageError(
            f"expected the last of --seeds to be at most {_SEEDS - 1}, found {seed + seeds - 1} "
            f"({seeds} from --seed {seed} on)"
        )


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
    if "train" not in dataset.split_names:
        raise DataError(_no_validation(dataset))
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
