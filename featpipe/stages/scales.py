"""A head scored on pictures of several sizes: as convolutions, where larger pictures need it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, Reason, UsageError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import Outcome, OutcomeKind
from featpipe.engine.plan import at_size, plan_for_spaces
from featpipe.engine.whole_pictures import WholePictures
from featpipe.heads.base import softmax
from featpipe.heads.dense import NO_OTHER_SIZES, DenseHead, dense_head, smallest_size
from featpipe.reports.documents import ScaleScore
from featpipe.runs.own_pictures import require_own_pictures
from featpipe.sources import locator
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.stages.scoring import Scored, ToScore, pictures_to_score, score_head
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows
from featpipe.store.lease import shared_lease

_LEAST_PROBABILITY = 1e-9
"""Smaller ones count as this, so that no size can rule out a class alone."""


def score_as(
    head: Path,
    spec: EvaluateSpec,
    *,
    cache: Path,
    progress: Progress = no_progress,
    most_views: int | None = None,
) -> Scored:
    """Score a head as options say: on the features it was trained on, or at several sizes.

    Parameters
    ----------
    head : Path
        Run folder.
    spec : EvaluateSpec
    cache : Path
    progress : Progress
    most_views : int, optional
        With ``tta``: only so many views are averaged over, the first ones.

    Raises
    ------
    FeatpipeError
        As :func:`featpipe.stages.scoring.score_head`; and at several sizes: ``UsageError`` where
        the head cannot take them, ``DataError`` where pictures are missing, unreadable or others
        than those of the data set, and the errors of an extraction.
    """
    if spec.scales is None:
        return score_head(
            head,
            on=spec.on,
            split=spec.split,
            cache=cache,
            averaged_views=spec.averaged_views,
            most_views=most_views,
        )
    todo = pictures_to_score(head, on=spec.on, split=spec.split, cache=cache)
    require_own_pictures(todo.trained, "--scales")
    return _AtSizes(todo, spec, cache, progress).scored(spec.scales)


class _AtSizes:
    """A head and pictures that it is scored on at several sizes."""

    def __init__(self, todo: ToScore, spec: EvaluateSpec, cache: Path, progress: Progress) -> None:
        self.todo, self.spec, self.cache, self.progress = todo, spec, cache, progress
        self.weights = spec.weights or todo.trained.weights_name
        self.locate = locator(todo.dataset.source.kind, todo.dataset.source.root)

    def scored(self, sizes: tuple[int, ...]) -> Scored:
        """Probabilities of the mean of the logits over sizes, and the accuracy at each."""
        todo, head = self.todo, self.todo.trained.head
        at_sizes = {size: self._spaces(size) for size in sizes}
        dense = self._dense(at_sizes)
        logs = np.zeros((len(todo.y), len(head.classes_)))
        scales: list[ScaleScore] = []
        with shared_lease(self.cache):
            for size, spaces in at_sizes.items():
                if self.spec.frame == "whole":
                    probabilities = self._of_whole_pictures(spaces, dense)
                else:
                    self._compute_missing(spaces)
                    rows = open_rows(self.cache, spaces, todo.ids)
                    probabilities = (dense or head).predict_proba(rows)
                logs += np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
                accuracy = float((probabilities.argmax(axis=1) == todo.y).mean())
                scales.append({"size": size, "accuracy": accuracy})
        # The mean of logits, and not of probabilities: a size that is unsure changes little.
        mean = softmax(logs / len(sizes))
        return Scored(**vars(todo), probabilities=mean, scales=scales)

    def _spaces(self, size: int) -> list[FeatureSpace]:
        spaces = self.todo.trained.spaces
        if self.spec.frame == "whole":
            # A network that takes squares of one size alone takes no other shape either.
            at_size(spaces[0], 2 * size, self.weights)
        return [at_size(space, size, self.weights) for space in spaces]

    def _dense(self, at_sizes: dict[int, list[FeatureSpace]]) -> DenseHead | None:
        """The head as convolutions; None where rows of all sizes have the shape it was trained on.

        Averages over maps of any size are such rows: they go into any head as they are.
        """
        trained = self.todo.trained
        shapes = [space.shape for space in trained.spaces]
        if all([space.shape for space in spaces] == shapes for spaces in at_sizes.values()):
            own_maps = any(len(shape) == 3 for shape in shapes)
            if self.spec.frame == "own" or not own_maps:
                return None
        dense = dense_head(trained.head, trained.spaces, otherwise=NO_OTHER_SIZES)
        smallest = smallest_size(dense.space)
        for size in at_sizes:
            if size < smallest:
                maps = " x ".join(map(str, dense.space.shape))
                raise UsageError(
                    f"expected --scales of at least {smallest} for a head on maps of {maps}, "
                    f"found {size}; smaller pictures give smaller maps"
                )
        return dense

    def _compute_missing(self, spaces: list[FeatureSpace]) -> None:
        """Compute the rows of the pictures that have none; those of one content once."""
        todo, stores = self.todo, [FeatureStore(self.cache, space) for space in spaces]
        has_row = np.ones(len(todo.chosen), bool)
        for store in stores:
            has_row &= store.contains(todo.ids)
        lacking = np.flatnonzero(~has_row)
        _, first = np.unique(todo.ids[lacking], axis=0, return_index=True)
        missing = lacking[np.sort(first)]
        if not len(missing):
            return
        size = spaces[0].preprocessing.size
        plan = plan_for_spaces(spaces, self.weights, self.cache, device=self.spec.device)
        with (
            self.progress(f"{size} px", len(missing)) as bar,
            Extractor(plan, stores, self.spec) as extractor,
        ):

            def on_outcome(outcome: Outcome) -> None:
                bar.advance(is_work=outcome.kind is OutcomeKind.COMPUTED)

            found = extractor.compute_ids(self._tasks(missing), len(missing), on_outcome)
        are_others = (found.ids != todo.ids[missing]).any(axis=1)
        self._check_found(
            {int(number): found.errors.get(k) for k, number in enumerate(missing) if are_others[k]},
            size,
        )

    def _of_whole_pictures(
        self, spaces: list[FeatureSpace], dense: DenseHead | None
    ) -> NDArray[np.float64]:
        todo, size = self.todo, spaces[0].preprocessing.size
        head = todo.trained.head
        probabilities = np.zeros((len(todo.y), len(head.classes_)))
        wrong: dict[int, Reason | None] = {}
        plan = plan_for_spaces(spaces, self.weights, self.cache, device=self.spec.device)
        every = np.arange(len(todo.chosen))
        with (
            self.progress(f"{size} px", len(every)) as bar,
            WholePictures(plan, self.spec) as pictures,
        ):
            for picture in pictures.compute(self._tasks(every)):
                bar.advance(is_work=True)
                if picture.reason or picture.image_id != todo.ids[picture.key].tobytes():
                    wrong[picture.key] = picture.reason
                elif dense is not None:
                    probabilities[picture.key] = dense.predict_proba(picture.features[0][None])
                else:
                    row = np.concatenate([part.reshape(-1) for part in picture.features])
                    probabilities[picture.key] = head.predict_proba(row[None])
        self._check_found(wrong, size)
        return probabilities

    def _tasks(self, numbers: NDArray[np.intp]) -> Iterator[Task]:
        for key, number in enumerate(self.todo.chosen[numbers].tolist()):
            yield Task.at(key, self.locate(self.todo.dataset.paths[number]))

    def _check_found(self, wrong: dict[int, Reason | None], size: int) -> None:
        """Refuse pictures that are not those of the data set: none is left out unsaid."""
        if not wrong:
            return
        dataset, first = self.todo.dataset, min(wrong)
        path = dataset.paths[self.todo.chosen[first]]
        raise DataError(
            f"expected the pictures of '{dataset.name}' as they were extracted, to compute them "
            f"at {size} px, found {len(wrong)} that are missing, unreadable or changed, the first "
            f"{path!r} ({wrong[first] or 'its bytes are others'}); restore them, or run the same "
            f"'featpipe extract' again"
        )
