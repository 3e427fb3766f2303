"""Score maps of whole pictures: what a head says at every place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.base.errors import Reason
from featpipe.datasets.dataset import Dataset
from featpipe.decoding.worker_process import Task
from featpipe.engine.plan import at_size, plan_for_spaces
from featpipe.engine.whole_pictures import WholePictures
from featpipe.heads.dense import dense_head
from featpipe.reports.heat_map import LARGEST_SIDE, heat_map, log_odds
from featpipe.reports.mistakes import MAPPED, Mistake
from featpipe.reports.thumbnails import SIDE, image_uri
from featpipe.runs.own_pictures import require_own_pictures
from featpipe.runs.trained_head import TrainedHead
from featpipe.sources import locator
from featpipe.specs.extract import MAX_SIZE, EngineOptions

_ENLARGED = 2
"""Times the size of training: at that size itself, most heads have one place alone."""


@dataclass(frozen=True)
class PictureScores:
    """What a head says at every place of one picture.

    Attributes
    ----------
    key : int
        Its task's.
    image_id : bytes or None
        SHA-256 of its bytes.
    pixels : ndarray of uint8, shape (height, width, 3), or None
        Its pixels; None where it could not be read.
    scores : ndarray of float32, shape (classes, H, W), or None
        Logits divided by the temperature.
    window : tuple of int
        See :func:`featpipe.reports.heat_map.heat_map`.
    reason : Reason or None
        Why it could not be read.
    """

    key: int
    image_id: bytes | None
    pixels: NDArray[np.uint8] | None
    scores: NDArray[np.float32] | None
    window: tuple[int, int]
    reason: Reason | None

    def drawn(self, index: int, *, largest: int = LARGEST_SIDE) -> Image.Image | None:
        """The log-odds of a class at every place, over the picture."""
        if self.pixels is None or self.scores is None:
            return None
        odds = log_odds(self.scores, index)
        return heat_map(self.pixels, odds, self.window, largest=largest)


class ScoreMaps:
    """Computes the score maps of pictures; a context manager.

    Pictures are whole, their shorter side twice the size of training.

    Parameters
    ----------
    trained : TrainedHead
    weights : str
        Name of the backbone's weights.
    cache : Path
    options : EngineOptions

    Raises
    ------
    UsageError
        The head has no score maps.
    SpaceMismatchError, WeightsError
    """

    def __init__(
        self, trained: TrainedHead, weights: str, cache: Path, options: EngineOptions
    ) -> None:
        require_own_pictures(trained, "score maps")
        self._dense = dense_head(trained.head, trained.spaces)
        size = min(_ENLARGED * self._dense.space.preprocessing.size, MAX_SIZE)
        space = at_size(self._dense.space, size, weights)
        plan = plan_for_spaces([space], weights, cache, device=options.device)
        self._pictures = WholePictures(plan, options)

    def __enter__(self) -> ScoreMaps:
        self._pictures.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pictures.__exit__(kind, error, trace)

    def compute(self, tasks: Iterable[Task]) -> Iterator[PictureScores]:
        """One result per task, in no particular order."""
        dense = self._dense
        for picture in self._pictures.compute(tasks):
            scores = None
            if picture.reason is None:
                (maps,) = picture.features
                (scores,) = dense.scores(maps[None]) / dense.temperature
            yield PictureScores(
                *(picture.key, picture.image_id, picture.pixels, scores),
                window=dense.window,
                reason=picture.reason,
            )


def add_score_maps(
    mistakes: list[Mistake],
    dataset: Dataset,
    trained: TrainedHead,
    weights: str | None,
    *,
    cache: Path,
    options: EngineOptions,
) -> int:
    """Give the worst mistakes score maps of their predicted classes, as a report shows them.

    Pictures that are gone or have changed get none.

    Parameters
    ----------
    mistakes : list of Mistake
        The worst first.
    dataset : Dataset
        The one of their pictures.
    trained : TrainedHead
    weights : str or None
        Name of the backbone's weights; None for those of the training.
    cache : Path
    options : EngineOptions

    Returns
    -------
    int
        How many of the worst mistakes get none.

    Raises
    ------
    UsageError, SpaceMismatchError, WeightsError
        As :class:`ScoreMaps`.
    """
    if not mistakes:
        return 0
    locate = locator(dataset.source.kind, dataset.source.root)
    worst = enumerate(mistakes[:MAPPED])
    tasks = [Task.at(key, locate(mistake.path)) for key, mistake in worst]
    classes = trained.head.classes_.tolist()
    with ScoreMaps(trained, weights or trained.weights_name, cache, options) as score_maps:
        for picture in score_maps.compute(tasks):
            mistake = mistakes[picture.key]
            drawn = picture.drawn(classes.index(mistake.predicted), largest=SIDE)
            if drawn is not None and picture.image_id == mistake.image_id:
                mapped = dataclasses.replace(mistake, score_map=image_uri(drawn))
                mistakes[picture.key] = mapped
    return sum(mistake.score_map is None for mistake in mistakes[:MAPPED])
