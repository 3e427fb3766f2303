"""Stage 2: train a head on the cached rows of a data set. No picture is opened."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, UsageError
from featpipe.base.hardware import resolve_device
from featpipe.base.ids import sortable
from featpipe.base.joined_spaces import joined_poolings, joined_taps
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.datasets.coverage import training_warnings
from featpipe.datasets.dataset import SPLIT_GIVEN, SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_spaces, unpooled_where_open
from featpipe.datasets.training_split import (
    classes_in,
    renumbered_labels,
    too_few_to_validate,
    training_rows,
)
from featpipe.datasets.view_coverage import require_covered
from featpipe.engine.precision import choose_compute
from featpipe.heads import new_head
from featpipe.heads.base import Head, History, HistoryRow
from featpipe.heads.doubts import baseline_doubts
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.sweep import Sweep, SweepPlan, merged_sweeps, plan_sweep, run_sweep
from featpipe.runs.run import Run
from featpipe.runs.trained_head import SplitScores, TrainedHead, TrainingData
from featpipe.specs.heads import HeadSpec
from featpipe.stages.calibration import calibrate
from featpipe.stages.n_shot import NShotResult, Try, train_n_shot
from featpipe.stages.starting_tensors import StartingTensors
from featpipe.stages.sweep_result import sweep_result, sweep_table
from featpipe.stages.train_result import TrainResult
from featpipe.stages.training_views import TrainingViews
from featpipe.store.joined_rows import open_rows
from featpipe.store.row_array import RowArray

if TYPE_CHECKING:
    from featpipe.stages.documents import CalibrationDocument, ShotDocument

log = logging.getLogger("featpipe")


def train_head(
    name: str,
    spec: HeadSpec,
    *,
    cache: Path,
    progress: Progress = no_progress,
    most_views: int | None = None,
) -> TrainResult:
    """Train a head on a data set's train split, selecting on validation only.

    Parameters
    ----------
    name : str
        Data set.
    spec : HeadSpec
    cache : Path
    progress : Progress
    most_views : int, optional
        Only so many views are drawn from: the first ones.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    training = _Training(name, spec, cache, most_views)
    training.fit(progress)
    return training.save()


class _Training:
    """One training; making it reads the list of pictures and finds their rows."""

    def __init__(self, name: str, spec: HeadSpec, cache: Path, most_views: int | None) -> None:
        self.spec, self.cache = spec, cache
        self.started = time.perf_counter()
        self.run = None if spec.out is None else Run(spec.out)
        if self.run is not None and self.run.has_head and not spec.overwrite:
            raise UsageError(
                f"expected a run folder without a head, found one in {spec.out}; "
                "name another --out, or replace it with --overwrite"
            )
        self.dataset = load_dataset(cache, name)
        queries = list(spec.queries)
        if spec.takes_maps:
            queries = unpooled_where_open(self.dataset, queries)
        self.choices = choose_spaces(self.dataset, queries, ranging=spec.ranging)
        self.spaces, self.weights_name = self.choices[0]
        train, val = training_rows(self.dataset, spec.val)
        self.classes = classes_in(self.dataset, train)
        label = renumbered_labels(self.dataset, self.classes)
        # Validation pictures of classes that train lacks could only ever be wrong.
        val = val[label[val] >= 0]
        if not len(val):
            raise DataError(too_few_to_validate(self.dataset))
        is_chosen = any(spec.params.get(name) is not None for name in ("folds", "C", "k"))
        for warning in training_warnings(self.dataset, train, val, val_chooses=not is_chosen):
            log.warning("%s", warning)
        self.train, self.val = train, val
        self.labels = label[train], label[val]
        self.views = TrainingViews(cache, self.dataset, train, spec, most_views)
        self.data = self._rows_of(self.spaces, self.weights_name)
        self.model = new_head(spec.head, spec.params)
        self._starting = StartingTensors(self.spaces, self.weights_name, cache)
        self.history = History("epoch")
        self.sweep: Sweep | None = None
        self.winning_seed = spec.seed
        self.kept_try: Try | None = None
        self.shots: list[ShotDocument] = []
        self.calibration: CalibrationDocument | None = None

    def _rows_of(self, spaces: Joined, weights_name: str) -> _Data:
        train, val = self.train, self.val
        require_covered(self.dataset, spaces, weights_name, np.concatenate([train, val]))
        ids = self.dataset.image_sha256[np.concatenate([train, val])]
        rows = open_rows(self.cache, spaces, ids)
        X: RowArray = rows.select(np.arange(len(train)))
        X_val = rows.select(np.arange(len(train), len(rows)))
        X = self.views.beside(X, spaces, weights_name)
        return X, self.labels[0], X_val, self.labels[1]

    def fit(self, progress: Progress) -> None:
        """Train the head, or several of which the best becomes the head; then calibrate it."""
        device = resolve_device(self.spec.device)
        self._starting.give(self.model)
        self._choose_compute(device)
        options: dict[str, Any] = {"seed": self.spec.seed, "device": device}
        if self.spec.n_shot is not None:
            self._fit_few(progress)
        elif self.spec.sweep or self.spec.seeds > 1:
            self._fit_sweeps(progress, options)
        else:
            self.model.classes_ = np.array(self.classes)
            self.history = _fit_one(self.model, self.data, progress, options)
        if self.spec.calibrate:
            self.calibration = calibrate(self.model, *self.data[2:])

    def _choose_compute(self, device: str) -> None:
        """Decide ``--compute auto`` before training, so that the head says what it was made in."""
        if not isinstance(self.model, ModuleHead) or self.model.compute != "auto":
            return
        self.model.classes_ = np.array(self.classes)
        layer = self.model.main_layer(self.data[0].shape[1:])
        self.model.compute = choose_compute("auto", device, self.cache, layer=layer)
        log.info("training computes in %s", self.model.compute)
        params = {**self.spec.params, "compute": self.model.compute}
        self.spec = dataclasses.replace(self.spec, params=params)

    def _fit_sweeps(self, progress: Progress, options: dict[str, Any]) -> None:
        """Train the same sweep on each choice of features; only the best head's tensors stay."""
        spec = self.spec
        fixed = spec.params if spec.sweep else self.model.params
        done: list[tuple[Joined, Sweep]] = []
        for spaces, weights_name in self.choices:
            grid = plan_sweep(spec.head, fixed, seed=spec.seed, seeds=spec.seeds)
            starting = StartingTensors(spaces, weights_name, self.cache)
            for head in grid.heads:
                starting.give(head)
            data = self._rows_of(spaces, weights_name)
            sweep = _fit_all(grid, data, self.classes, progress, options)
            if not done or sweep.rank < min(earlier.rank for _, earlier in done):
                self.spaces, self.weights_name, self.data = spaces, weights_name, data
                self.model, self.history = grid.heads[sweep.winner], sweep.history
                self.winning_seed = grid.seeds[sweep.winner]
            done.append((spaces, sweep))
        self.sweep = done[0][1] if len(done) == 1 else merged_sweeps(_named_by_fields(done))

    def _fit_few(self, progress: Progress) -> None:
        ids = self.dataset.image_sha256[self.train]
        kept, self.shots = train_n_shot(
            self.spec, self.data, ids, self.classes, progress, prepare=self._starting.give
        )
        self.kept_try, self.model, self.history = kept, kept.head, kept.history
        self.train = self.train[kept.rows]

    def save(self) -> TrainResult:
        """Write the head, and the table of the sweep, into the run folder."""
        spec, best = self.spec, self.history.kept
        scores: dict[str, SplitScores] = {
            "train": {
                "n": len(self.train),
                "loss": best.train_loss,
                "accuracy": best.train_accuracy,
            },
            "val": {"n": len(self.val), "loss": best.val_loss, "accuracy": best.val_accuracy},
        }
        seconds = round(time.perf_counter() - self.started, 3)
        info: dict[str, Any] = {"seed": spec.seed, "seconds": seconds, **_versions()}
        epoch_seconds = _median_seconds(self.history)
        if epoch_seconds is not None:
            info["epoch_seconds"] = epoch_seconds
        run = self.run or Run.next_free(f"{self.dataset.name}-{spec.slug}")
        if self.model.start is not None:
            info["start"] = self.model.start
        warnings = self._warnings()
        if warnings:
            info["warnings"] = warnings
        drawn = self.views.of(self.spaces, self.weights_name)
        views = None if drawn is None else drawn.as_json()
        if views is not None:
            info["views"] = views
        table = None
        if self.sweep is not None:
            table = sweep_result(run.sweep_path, self.sweep)
            digest = run.save_sweep(sweep_table(table, self.dataset.name, spec))
            info["sweep"] = {
                "trained": len(table.rows),
                "seed": self.winning_seed,
                "table_sha256": digest,
            }
        n_shot = self._save_shots(run, info)
        if self.calibration is not None:
            info["calibration"] = self.calibration
        used = np.concatenate([self.train, self.val])
        trained = TrainedHead(
            head=self.model,
            spaces=self.spaces,
            weights_name=self.weights_name,
            dataset=_describe(self.dataset, self.train, self.val, spec.val),
            history=self.history,
            metrics=scores,
            info=info,
            train_ids=_unique(self.dataset.image_sha256[used]),
        )
        run.save_head(trained)
        if table is None:
            run.remove_sweep()
        if n_shot is None:
            run.remove_n_shot()
        return TrainResult(
            head=run.folder,
            kind=spec.head,
            classes=self.classes,
            space=self.spaces[0].id,
            spaces=[space.id for space in self.spaces],
            train=scores["train"],
            val=scores["val"],
            best=best,
            axis=self.history.axis,
            seconds=seconds,
            epoch_seconds=epoch_seconds,
            sweep=table,
            n_shot=n_shot,
            calibration=self.calibration,
            start=self.model.start,
            views=views,
            warnings=warnings,
        )

    def _save_shots(self, run: Run, info: dict[str, Any]) -> NShotResult | None:
        if self.kept_try is None:
            return None
        kept = {"n": self.shots[-1]["n"], "seed": self.kept_try.seed}
        table = {"kind": self.spec.head, "dataset": self.dataset.name, "kept": kept}
        digest = run.save_n_shot({**table, "shots": self.shots})
        info["n_shot"] = {**kept, "table_sha256": digest}
        return NShotResult(run.n_shot_path, self.shots)

    def _warnings(self) -> list[str]:
        """What casts doubt on the head; logs it."""
        y_val, best = self.data[3], self.history.kept
        found = [*self.history.warnings, *baseline_doubts(self.model, best, y_val)]
        for text in found:
            log.warning("'%s' head: %s", self.model.kind, text)
        return found


Joined = tuple[FeatureSpace, ...]
"""Feature spaces whose rows lie side by side."""
_Data = tuple[RowArray, NDArray[np.int64], RowArray, NDArray[np.int64]]
"""Rows and labels of train, then of validation."""


def _fit_one(model: Head, data: _Data, progress: Progress, options: dict[str, Any]) -> History:
    with progress(f"train {model.kind}", model.progress_steps) as bar:
        return model.fit(
            *data,
            tick=lambda row: bar.advance(val_loss=f"{row.val_loss:.4f}"),
            **options,
        )


def _fit_all(
    grid: SweepPlan, data: _Data, classes: list[str], progress: Progress, options: dict[str, Any]
) -> Sweep:
    lowest = np.inf
    with progress(f"sweep {grid.kind}", grid.steps) as bar:

        def on_progress(steps: int, row: HistoryRow) -> None:
            nonlocal lowest
            lowest = min(lowest, row.val_loss)
            bar.advance(steps, val_loss=f"{lowest:.4f}")

        return run_sweep(grid, *data, classes=classes, on_progress=on_progress, **options)


def _named_by_fields(
    done: list[tuple[Joined, Sweep]],
) -> list[tuple[dict[str, str], Sweep]]:
    """Each sweep with the taps and the poolings of its feature spaces, where those differ."""
    named = [{"tap": joined_taps(one), "pool": joined_poolings(one)} for one, _ in done]
    varied = [key for key in ("tap", "pool") if len({fields[key] for fields in named}) > 1]
    return [
        ({key: fields[key] for key in varied}, sweep)
        for fields, (_, sweep) in zip(named, done, strict=True)
    ]


def _median_seconds(history: History) -> float | None:
    """Median time of an epoch's training; None where there were no epochs."""
    if not history.epoch_seconds:
        return None
    return round(float(np.median(history.epoch_seconds)), 6)


def _describe(
    dataset: Dataset, train: NDArray[np.intp], val: NDArray[np.intp], val_fraction: float
) -> TrainingData:
    return {
        "name": dataset.name,
        "sha256": dataset.digest(),
        "train_sha256": _ids_digest(dataset.image_sha256[train]),
        "val_sha256": _ids_digest(dataset.image_sha256[val]),
        "val": _where_val_is_from(dataset, val_fraction),
    }


def _where_val_is_from(dataset: Dataset, val_fraction: float) -> str:
    if "val" not in dataset.split_names:
        return f"{val_fraction:g} of train, by content"
    shares = dataset.info.split
    if isinstance(shares, str):
        return SPLIT_GIVEN
    return f"{100 * shares[SPLITS.index('val')]:g} % of all, by content"


def _unique(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ids[np.unique(sortable(ids), return_index=True)[1]]


def _ids_digest(ids: NDArray[np.uint8]) -> str:
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in ids))).hexdigest()


def _versions() -> dict[str, str]:
    names = ("featpipe", "numpy", "scikit-learn", "torch")
    return {name: importlib.metadata.version(name) for name in names}
