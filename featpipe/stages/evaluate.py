"""Stage 3: score a head on a split; write metrics and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, NotFoundError
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import require_space
from featpipe.reports.documents import EvaluationDocument, Metrics
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import Mistake
from featpipe.reports.notes import no_test_split, on_own_pictures
from featpipe.reports.page import write_report
from featpipe.reports.predictions import write_predictions
from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead
from featpipe.sources import image_reader
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.store.feature_store import FeatureStore

WORST_MISTAKES = 12


@dataclass(frozen=True)
class Evaluation:
    """How a head did on a split.

    Attributes
    ----------
    head, dataset, split : str
        ``split`` is the one that was evaluated, whether or not somebody asked for it.
    metrics : Metrics
        See :func:`featpipe.reports.metrics.score`.
    duplicates : list of str
        Paths of evaluated pictures that are byte for byte pictures the head was trained on;
        empty where the head's own train or val split is evaluated.
    trained_on : int
        How many of the evaluated pictures the head was trained or validated on.
    notes : list of str
        Sentences on what to keep in mind: that there was no test split, that the pictures chose
        the epoch.
    predictions : Path
        CSV with path, split, truth, prediction and the probability of every class.
    report : Path
        The HTML page; ``metrics.json`` lies beside it.
    seconds : float
    """

    head: str
    dataset: str
    split: str
    metrics: Metrics
    duplicates: list[str]
    trained_on: int
    notes: list[str]
    predictions: Path
    report: Path
    seconds: float

    def as_json(self) -> EvaluationDocument:
        """The result as the command prints it."""
        return {
            "head": self.head,
            "dataset": self.dataset,
            "split": self.split,
            "duplicates": self.duplicates,
            "trained_on": self.trained_on,
            "notes": self.notes,
            "predictions": str(self.predictions),
            "report": str(self.report),
            "seconds": self.seconds,
            **self.metrics,
        }


def evaluate(head: Path, spec: EvaluateSpec, *, cache: Path) -> Evaluation:
    """Score a head on a split; write metrics, predictions and a report into its run folder.

    Parameters
    ----------
    head : Path
        Run folder.
    spec : EvaluateSpec
    cache : Path

    Raises
    ------
    NotFoundError
        No such head, data set or split; or none was asked for and there is neither test nor val.
    SpaceMismatchError
        The data set has no features of the head's space.
    DataError
        Nothing to score, or a class the head does not know.
    """
    started = time.perf_counter()
    run = Run.at(head)
    trained = run.load_head()
    name = spec.on if spec.on is not None else str(trained.dataset["name"])
    dataset = load_dataset(cache, name)
    require_space(dataset, trained.space)
    split = spec.split if spec.split is not None else _split_to_score(dataset)
    is_fallback = spec.split is None and split != "test"
    chosen = _labelled(dataset, split)
    classes: list[str] = trained.head.classes_.tolist()
    y = _labels(dataset, chosen, classes, split)
    rows = FeatureStore(cache, trained.space).rows(dataset.image_sha256[chosen])
    probabilities = trained.head.predict_proba(rows)
    metrics = score(y, probabilities, classes)
    seen = _trained_on(dataset, chosen, trained)
    own = split != "test" and dataset.name == trained.dataset["name"]
    notes = [no_test_split(name)] if is_fallback else []
    if own and seen:
        notes.append(on_own_pictures(trained, split, len(chosen), len(seen)))
    mistakes = _worst_mistakes(dataset, chosen, y, probabilities, classes)
    evaluated = run.evaluation_name(spec.on, name, split, is_fallback=is_fallback)
    predictions = run.predictions_path(evaluated)
    write_predictions(predictions, _pictures(dataset, chosen), y, probabilities, classes)
    result = Evaluation(
        head=str(run.folder),
        dataset=name,
        split=split,
        metrics=metrics,
        duplicates=[] if own else seen,
        trained_on=len(seen),
        notes=notes,
        predictions=predictions,
        report=run.report_path(evaluated),
        seconds=round(time.perf_counter() - started, 3),
    )
    run.save_metrics(evaluated, result.as_json())
    write_report(result.report, trained, result.as_json(), mistakes)
    return result


def _split_to_score(dataset: Dataset) -> str:
    """Test, else val: the first of them that has labelled pictures."""
    there = [split for split in ("test", "val") if split in dataset.split_names]
    if not there:
        found = ", ".join(dataset.split_names) or "none"
        raise NotFoundError(
            f"expected a split 'test' or 'val' in data set '{dataset.name}', found: {found}; "
            "name one of those with --split, or 'all'"
        )
    return next((split for split in there if len(_labelled(dataset, split))), there[0])


def _labelled(dataset: Dataset, split: str) -> NDArray[np.intp]:
    """Row numbers of the usable pictures of a split that have a label."""
    rows = dataset.in_split(split)
    labelled: NDArray[np.intp] = rows[dataset.label[rows] != NO_LABEL]
    return labelled


def _pictures(dataset: Dataset, chosen: NDArray[np.intp]) -> list[tuple[str, str]]:
    """Path and split of the chosen pictures; empty for those without a split."""
    names = (*SPLITS, "")
    return [(dataset.paths[i], names[dataset.split[i]]) for i in chosen]


def _labels(
    dataset: Dataset, chosen: NDArray[np.intp], classes: list[str], split: str
) -> NDArray[np.int64]:
    if not len(chosen):
        raise DataError(
            f"expected labelled pictures in split '{split}' of '{dataset.name}', found none"
        )
    number = {name: i for i, name in enumerate(classes)}
    names = [dataset.classes[i] for i in dataset.label[chosen]]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(
            f"expected only classes the head knows ({', '.join(map(repr, classes[:5]))}"
            f"{', …' if len(classes) > 5 else ''}) in split '{split}' of '{dataset.name}', found "
            f"{', '.join(map(repr, unknown[:5]))}; train on pictures of every class"
        )
    return np.array([number[name] for name in names], np.int64)


def _trained_on(dataset: Dataset, chosen: NDArray[np.intp], trained: TrainedHead) -> list[str]:
    """Paths of the chosen pictures whose very bytes the head was trained or validated on."""
    seen = {row.tobytes() for row in trained.train_ids}
    return [dataset.paths[i] for i in chosen if dataset.image_sha256[i].tobytes() in seen]


def _worst_mistakes(
    dataset: Dataset,
    chosen: NDArray[np.intp],
    y: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: list[str],
) -> list[Mistake]:
    """The wrong predictions that gave the truth the least probability."""
    predicted = probabilities.argmax(axis=1)
    truth = probabilities[np.arange(len(y)), y]
    wrong = np.flatnonzero(predicted != y)
    wrong = wrong[np.argsort(truth[wrong], kind="stable")][:WORST_MISTAKES]
    read = image_reader(dataset.source.kind, dataset.source.root)
    return [
        Mistake(
            path=dataset.paths[chosen[i]],
            truth=classes[y[i]],
            predicted=classes[predicted[i]],
            probability=float(probabilities[i, predicted[i]]),
            image_id=dataset.image_sha256[chosen[i]].tobytes(),
            read=read,
        )
        for i in wrong
    ]
