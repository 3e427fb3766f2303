"""Stage 3: score a head on a split; write metrics and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError
from featpipe.datasets.dataset import NO_LABEL, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import require_space
from featpipe.reports.documents import EvaluationDocument, Metrics
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import Mistake
from featpipe.reports.page import write_report
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
    metrics : Metrics
        See :func:`featpipe.reports.metrics.score`.
    duplicates : list of str
        Paths of evaluated pictures that are byte for byte pictures the head was trained on;
        empty where the head's own train or val split is evaluated.
    trained_on : int
        How many of the evaluated pictures the head was trained or validated on.
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
            "report": str(self.report),
            "seconds": self.seconds,
            **self.metrics,
        }


def evaluate(head: Path, spec: EvaluateSpec, *, cache: Path) -> Evaluation:
    """Score a head on a split and write metrics and a report into its run folder.

    Parameters
    ----------
    head : Path
        Run folder.
    spec : EvaluateSpec
    cache : Path

    Raises
    ------
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
    chosen = dataset.in_split(spec.split)
    chosen = chosen[dataset.label[chosen] != NO_LABEL]
    classes: list[str] = trained.head.classes_.tolist()
    y = _labels(dataset, chosen, classes, spec.split)
    rows = FeatureStore(cache, trained.space).rows(dataset.image_sha256[chosen])
    probabilities = trained.head.predict_proba(rows)
    metrics = score(y, probabilities, classes)
    seen = _trained_on(dataset, chosen, trained)
    own = spec.split != "test" and dataset.name == trained.dataset["name"]
    mistakes = _worst_mistakes(dataset, chosen, y, probabilities, classes)
    evaluated = run.evaluation_name(spec.on, name, spec.split)
    result = Evaluation(
        head=str(run.folder),
        dataset=name,
        split=spec.split,
        metrics=metrics,
        duplicates=[] if own else seen,
        trained_on=len(seen),
        report=run.report_path(evaluated),
        seconds=round(time.perf_counter() - started, 3),
    )
    run.save_metrics(evaluated, result.as_json())
    write_report(result.report, trained, result.as_json(), mistakes)
    return result


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
