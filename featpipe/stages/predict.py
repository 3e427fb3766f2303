"""Stage 4: classify new pictures, preprocessed exactly as in training."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.base.disk import write_atomically
from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.locations import File, Location
from featpipe.base.progress import Progress, no_progress
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import ComputedIds, Outcome, OutcomeKind
from featpipe.engine.plan import FeaturePlan, plan_for_spaces
from featpipe.reports.heat_map import as_png
from featpipe.runs.map_files import map_file_name
from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead
from featpipe.sources import list_pictures, open_source
from featpipe.sources.idx import is_idx_folder
from featpipe.sources.records import Locate
from featpipe.specs.extract import EngineOptions
from featpipe.specs.predict import PredictSpec
from featpipe.stages.score_maps import ScoreMaps
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows
from featpipe.store.lease import shared_lease

if TYPE_CHECKING:
    from featpipe.stages.documents import PredictionDocument

log = logging.getLogger("featpipe")

_CHUNK = 4096
"""Pictures per pass; the predictions of a pass come once its rows are committed."""
_CHUNK_WITH_MAPS = 32
"""Where each picture also takes the time of a score map."""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a head for one file.

    Attributes
    ----------
    path : str
    classes : list of str
        All the head knows.
    label : str or None
        Most probable class; None where the file is unreadable.
    probability : float or None
        Of that class.
    probabilities : dict of str to float, or None
        Of every class.
    error : str or None
        Stage and reason, where the file is unreadable.
    map : Path or None
        The file of its score map, where one was asked for and could be made.
    """

    path: str
    classes: list[str]
    label: str | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    error: str | None = None
    map: Path | None = None

    def as_json(self, *, all_classes: bool = False, with_map: bool = False) -> PredictionDocument:
        """The prediction as the command prints it."""
        line: PredictionDocument = {
            "path": self.path,
            "label": self.label,
            "probability": self.probability,
            "error": self.error,
        }
        if with_map:
            line["map"] = None if self.map is None else str(self.map)
        if all_classes:
            line["probabilities"] = self.probabilities
        return line


def predict(
    head: Path,
    paths: Sequence[str | os.PathLike[str]],
    spec: PredictSpec,
    *,
    cache: Path,
    progress: Progress = no_progress,
) -> Iterator[Prediction]:
    """Classify files, all pictures below folders, and those of idx files, in the order given.

    Features go through the cache like those of any extraction: a picture seen before is
    neither decoded nor computed.

    Parameters
    ----------
    head : Path
        Run folder.
    paths : sequence of path
    spec : PredictSpec
    cache : Path
    progress : Progress

    Raises
    ------
    NotFoundError
        There is no such head, or nothing at one of the paths.
    UsageError
        Score maps are asked for and the head has none.
    SpaceMismatchError, WeightsError, StorageError
        An unreadable picture raises nothing, nor does one that vanishes meanwhile: its prediction
        carries the error.
    """
    for path in paths:
        # A link that leads nowhere is there, and its line will say so.
        if not os.path.lexists(path):
            raise NotFoundError(
                f"expected a picture or a folder at {os.fspath(path)}, found nothing there; check "
                "the path"
            )
    trained = Run.at(head).load_head()
    weights = spec.weights or trained.weights_name
    plan = plan_for_spaces(trained.spaces, weights, cache, device=spec.device)
    maps = None
    if spec.maps is not None:
        if os.path.lexists(spec.maps) and not spec.maps.is_dir():
            found = "a file" if spec.maps.is_file() else "what is no folder"
            raise UsageError(
                f"expected a folder as --maps, found {found} at {spec.maps}; name another"
            )
        maps = _MapWriter(spec.maps, ScoreMaps(trained, weights, cache, spec))
    pictures = [picture for path in paths for picture in _pictures_of(os.fspath(path))]
    return _predictions(pictures, trained, plan, cache, spec, progress, maps)


_Pictures = list[tuple[str, Locate]]
"""The path that a prediction names, and how it leads to a picture."""


def _pictures_of(path: str) -> _Pictures:
    if is_idx_folder(path):
        source = open_source(path)

        def locate(named: str) -> Location:
            return source.locate(os.path.relpath(named, path))

        return [(os.path.join(path, record.path), locate) for record in source.records]
    if os.path.isdir(path):
        inside = list_pictures(Path(path))[0]
        return [(os.path.join(path, inner), _locate_file) for inner in inside]
    return [(path, _locate_file)]


def _locate_file(path: str) -> Location:
    return File(os.path.abspath(path))


def _predictions(
    pictures: _Pictures,
    trained: TrainedHead,
    plan: FeaturePlan,
    cache: Path,
    options: EngineOptions,
    progress: Progress,
    maps: _MapWriter | None,
) -> Iterator[Prediction]:
    if not pictures:
        return
    files = [path for path, _ in pictures]
    size = _CHUNK if maps is None else _CHUNK_WITH_MAPS
    stores = [FeatureStore(cache, space) for space in plan.spaces]
    with (
        shared_lease(cache),
        progress("predict", len(files)) as bar,
        Extractor(plan, stores, options) as extractor,
        contextlib.nullcontext() if maps is None else maps.score_maps,
    ):

        def on_outcome(outcome: Outcome) -> None:
            bar.advance(is_work=outcome.kind is OutcomeKind.COMPUTED)
            if outcome.detail:
                log.debug("%r: %s (%s)", files[start + outcome.key], outcome.reason, outcome.detail)

        for start in range(0, len(files), size):
            chunk = files[start : start + size]
            located = enumerate(pictures[start : start + size])
            tasks = [Task.at(i, locate(path)) for i, (path, locate) in located]
            found = extractor.compute_ids(iter(tasks), len(chunk), on_outcome)
            answers = _answers(chunk, found, trained, cache)
            yield from answers if maps is None else maps.written(list(answers), tasks, found)


@dataclass(frozen=True)
class _MapWriter:
    """Writes the score maps of predictions into a folder."""

    folder: Path
    score_maps: ScoreMaps

    def written(
        self, answers: list[Prediction], tasks: list[Task], found: ComputedIds
    ) -> Iterator[Prediction]:
        """Predictions in their order, with the paths of their maps, which are written."""
        readable = [task for task, answer in zip(tasks, answers, strict=True) if answer.label]
        for picture in self.score_maps.compute(readable):
            answer = answers[picture.key]
            drawn = picture.drawn(answer.classes.index(str(answer.label)))
            if drawn is None or picture.image_id != found.ids[picture.key].tobytes():
                why = picture.reason or "it has changed meanwhile"
                log.warning("no score map of %r: %s", answer.path, why)
                continue
            path = self.folder / map_file_name(answer.path)
            write_atomically(path, as_png(drawn))
            answers[picture.key] = dataclasses.replace(answer, map=path)
        yield from answers


def _answers(
    files: list[str], found: ComputedIds, trained: TrainedHead, cache: Path
) -> Iterator[Prediction]:
    """Predictions of one chunk, in its order."""
    good = [i for i in range(len(files)) if i not in found.errors]
    rows = open_rows(cache, trained.spaces, found.ids[good])
    probabilities = iter(trained.head.predict_proba(rows))
    classes: list[str] = trained.head.classes_.tolist()
    for i, file in enumerate(files):
        if i in found.errors:
            yield Prediction(file, classes, error=str(found.errors[i]))
            continue
        row = next(probabilities)
        best = int(row.argmax())
        every = dict(zip(classes, row.tolist(), strict=True))
        yield Prediction(file, classes, classes[best], float(row[best]), every)
