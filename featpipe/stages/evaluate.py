"""Stage 3: score a head on a split; write metrics and a report."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featpipe.base.errors import DataError, SpaceMismatchError, UsageError, WeightsError
from featpipe.base.progress import Progress, no_progress
from featpipe.reports.documents import (
    EvaluationDocument,
    Metrics,
    ScaleScore,
    ScalesDocument,
    TTADocument,
)
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import Mistake
from featpipe.reports.notes import no_test_split, on_own_pictures, on_pictures, without_score_maps
from featpipe.reports.page import write_report
from featpipe.reports.predictions import write_predictions
from featpipe.reports.thresholds import threshold_counts
from featpipe.sources import image_reader
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.stages.scales import score_as
from featpipe.stages.score_maps import add_score_maps
from featpipe.stages.scoring import Scored
from featpipe.stages.view_sheet import sheet_of_views


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
        the epoch, that a class has few pictures.
    predictions : Path
        CSV with path, split, truth, prediction and the probability of every class.
    report : Path
        The HTML page; ``metrics.json`` lies beside it.
    seconds : float
    tta : TTADocument, optional
        The views that probabilities are averaged over; None: they are those of the pictures.
    scales : list of ScaleScore
        Scores of each size of the pictures, where they are averaged over several.
    frame : {"own", "whole"}
        What pictures of those sizes show.
    """

    head: str
    dataset: str
    split: str
    metrics: Metrics = field(repr=False)
    duplicates: list[str] = field(repr=False)
    trained_on: int
    notes: list[str]
    predictions: Path
    report: Path
    seconds: float
    tta: TTADocument | None = None
    scales: list[ScaleScore] = field(default_factory=list)
    frame: str = "own"

    def as_json(self) -> EvaluationDocument:
        """The result as the command prints it."""
        averaged: ScalesDocument = {}
        if self.scales:
            averaged = {"scales": self.scales, "frame": self.frame}
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
            "tta": self.tta,
            **self.metrics,
            **averaged,
        }


def evaluate(
    head: Path, spec: EvaluateSpec, *, cache: Path, progress: Progress = no_progress
) -> Evaluation:
    """Score a head on a split; write metrics, predictions and a report into its run folder.

    Parameters
    ----------
    head : Path
        Run folder.
    spec : EvaluateSpec
    cache : Path
    progress : Progress

    Raises
    ------
    NotFoundError
        No such head, data set or split; or none was asked for and there is neither test nor val;
        or no views to average over.
    SpaceMismatchError
        The data set has no features of the head's space.
    UsageError
        There are views of several augmentations, and nothing says which are meant; or the head
        cannot take pictures of the ``scales``.
    DataError
        Nothing to score, or a class the head does not know; or pictures that ``scales`` needs are
        missing.
    """
    started = time.perf_counter()
    scored = score_as(head, spec, cache=cache, progress=progress)
    return evaluate_scored(scored, spec, cache=cache, started=started)


def evaluate_scored(
    scored: Scored, spec: EvaluateSpec, *, cache: Path, started: float
) -> Evaluation:
    """As :func:`evaluate`, of a head that has been scored as ``spec`` says.

    Parameters
    ----------
    scored : Scored
    spec : EvaluateSpec
    cache : Path
    started : float
        When scoring began, by ``time.perf_counter``.
    """
    run, trained, dataset, split = scored.run, scored.trained, scored.dataset, scored.split
    metrics = score(scored.y, scored.probabilities, scored.classes)
    mistakes = _mistakes(scored)
    seen = scored.trained_on()
    own = split != "test" and dataset.name == trained.dataset["name"]
    notes = [no_test_split(dataset.name)] if scored.is_fallback else []
    if own and seen:
        notes.append(on_own_pictures(trained, split, len(scored.y), len(seen)))
    is_new = not seen or (own and split == "val")
    notes += on_pictures(metrics, scored.ids, bounds_error=is_new)
    if spec.maps:
        try:
            lacking = add_score_maps(
                mistakes, scored.dataset, trained, spec.weights, cache=cache, options=spec
            )
            if lacking:
                notes.append(without_score_maps(lacking))
        except (UsageError, WeightsError, SpaceMismatchError, DataError) as error:
            # The scores stand without them.
            notes.append(f"no score maps: {error}")
    evaluated = run.evaluation_name(
        *(spec.on, dataset.name, split),
        is_fallback=scored.is_fallback,
        averages_views=spec.tta,
        sizes=[row["size"] for row in scored.scales],
        frame=spec.frame,
    )
    predictions = run.predictions_path(evaluated)
    write_predictions(
        predictions, scored.pictures(), scored.y, scored.probabilities, scored.classes
    )
    result = Evaluation(
        head=str(run.folder),
        dataset=dataset.name,
        split=split,
        metrics=metrics,
        duplicates=[] if own else seen,
        trained_on=len(seen),
        notes=notes,
        predictions=predictions,
        report=run.report_path(evaluated),
        seconds=round(time.perf_counter() - started, 3),
        tta=_tta(scored),
        scales=scored.scales,
        frame=spec.frame,
    )
    run.save_metrics(evaluated, result.as_json(), head=trained.digest)
    thresholds = threshold_counts(scored.y, scored.probabilities)
    write_report(
        result.report,
        trained,
        result.as_json(),
        mistakes,
        thresholds,
        sheet_of_views(scored),
    )
    return result


def _tta(scored: Scored) -> TTADocument | None:
    if scored.views is None:
        return None
    one = scored.views.augmentation
    return {"policy": one.policy, "seed": one.seed, "views": scored.views.number}


def _mistakes(scored: Scored) -> list[Mistake]:
    """All wrong predictions; those that gave the truth the least probability come first."""
    dataset, y, classes = scored.dataset, scored.y, scored.classes
    probabilities, chosen = scored.probabilities, scored.chosen
    predicted = probabilities.argmax(axis=1)
    truth = probabilities[np.arange(len(y)), y]
    wrong = np.flatnonzero(predicted != y)
    wrong = wrong[np.argsort(truth[wrong], kind="stable")]
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
