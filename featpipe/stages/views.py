"""The second pass of an extraction: views of the pictures of a frozen data set.

The data set is itself the list: its splits and ids are known. A picture whose content is not what
the list says is left out, and the pass fails at its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, Reason
from featpipe.base.ids import sortable
from featpipe.base.progress import Progress
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.decoding.augmentation import augmentation
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import Outcome, OutcomeKind, Timings
from featpipe.engine.plan import FeaturePlan
from featpipe.sources import locator
from featpipe.specs.extract import ALL_PICTURES, ExtractSpec
from featpipe.stages.extract_result import ViewsResult
from featpipe.stages.held_spaces import enter_views, holds_rows
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.backbones.base import Inference

log = logging.getLogger("featpipe")


class ViewPass:
    """Computes the views that a spec asks for, and enters them into the data set.

    Parameters
    ----------
    plan : FeaturePlan
        Of the pictures themselves.
    spec : ExtractSpec
    cache : Path
    """

    def __init__(self, plan: FeaturePlan, spec: ExtractSpec, cache: Path) -> None:
        self.spec, self.cache = spec, cache
        self.augmentation = augmentation(spec.policy, spec.augment_seed)
        self.numbers = range(1, spec.views + 1)
        self.plan = plan.of_views(self.augmentation, self.numbers)
        self.stores = [FeatureStore(cache, space) for space in self.plan.spaces]
        self.splits = (ALL_PICTURES,) if ALL_PICTURES in spec.views_of else spec.views_of
        self.started = time.perf_counter()
        self.timings = Timings()
        self.pictures = self.computed = self.reused = 0
        self.is_complete = False

    def run(self, dataset: Dataset, network: Inference | None, progress: Progress) -> ViewsResult:
        """Compute the views that are missing.

        Parameters
        ----------
        dataset : Dataset
            Of a sharded extraction the whole one: its splits count. Only the views of this job's
            shard are computed.
        network : callable or None
            That of the first pass, if it needed one.
        progress : Progress

        Raises
        ------
        NotFoundError
            The data set has no such split.
        DataError
            Pictures are not what the data set lists any more; rows of the others are kept.
        """
        rows = self._own_rows(dataset)
        missing = self._missing(dataset.image_sha256[rows])
        self.pictures = len(rows)
        self.reused = int((~missing).sum())
        todo = np.flatnonzero(missing.any(axis=1))
        if len(todo):
            log.info(
                "%s: %d views (%s) of %d pictures to compute",
                *(dataset.name, missing.sum(), self.augmentation, len(todo)),
            )
            self._compute(dataset, rows[todo], missing[todo], network, progress)
        self._enter(dataset)
        return self.result()

    def missing_of(self, dataset: Dataset) -> int:
        """How many views of a data set's pictures are missing."""
        return int(self._missing(dataset.image_sha256[self._own_rows(dataset)]).sum())

    def _own_rows(self, dataset: Dataset) -> NDArray[np.intp]:
        """Row numbers of this job's pictures that shall have views, each content once."""
        rows = np.concatenate([dataset.in_split(name) for name in self.splits])
        if (shard := self.spec.shard) is not None:
            rows = rows[rows % shard.count == shard.number - 1]
        _, first = np.unique(sortable(dataset.image_sha256[rows]), return_index=True)
        own: NDArray[np.intp] = rows[np.sort(first)]
        return own

    def _missing(self, ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which views (n, views) of image ids (n, 32) lack a row in some store."""
        missing = np.zeros((len(ids), len(self.numbers)), bool)
        for space, store in zip(self.plan.spaces, self.stores, strict=True):
            missing[:, space.view - 1] |= ~store.contains(ids)
        return missing

    def _compute(
        self,
        dataset: Dataset,
        rows: NDArray[np.intp],
        missing: NDArray[np.bool_],
        network: Inference | None,
        progress: Progress,
    ) -> None:
        asked: list[tuple[int, tuple[int, ...]]] = []
        changed: dict[int, Reason] = {}

        def on_outcome(outcome: Outcome) -> None:
            row, views = asked[outcome.key]
            is_work = outcome.kind is OutcomeKind.COMPUTED
            self.computed += len(views) if is_work else 0
            if outcome.reason is not None:
                changed[row] = outcome.reason
                said = f" ({outcome.detail})" if outcome.detail else ""
                log.debug("no views of %r: %s%s", dataset.paths[row], outcome.reason, said)
            bar.advance(len(views), is_work=is_work)

        with (
            progress("extract views", int(missing.sum())) as bar,
            Extractor(self.plan, self.stores, self.spec, network=network) as extractor,
        ):
            at_once = extractor.views_at_once
            extractor.run(self._tasks(dataset, rows, missing, at_once, asked), on_outcome)
        self.timings = extractor.timings
        self._check_unchanged(dataset, changed)

    def _tasks(
        self,
        dataset: Dataset,
        rows: NDArray[np.intp],
        missing: NDArray[np.bool_],
        at_once: int,
        asked: list[tuple[int, tuple[int, ...]]],
    ) -> Iterator[Task]:
        """Tasks, and in ``asked`` for each of them the row and the views that it is for."""
        locate = locator(dataset.source.kind, dataset.source.root)
        for row, lacks in zip(rows.tolist(), missing, strict=True):
            views = [int(number) + 1 for number in np.flatnonzero(lacks)]
            image_id = dataset.image_sha256[row].tobytes()
            for start in range(0, len(views), at_once):
                some = tuple(views[start : start + at_once])
                asked.append((row, some))
                location = locate(dataset.paths[row])
                yield Task.at(len(asked) - 1, location, views=some, image_id=image_id)

    def _check_unchanged(self, dataset: Dataset, changed: dict[int, Reason]) -> None:
        if not changed:
            return
        row, reason = next(iter(changed.items()))
        raise DataError(
            f"expected the pictures of data set '{dataset.name}' to be as they were listed, found "
            f"{len(changed)} that changed or cannot be read, among them {dataset.paths[row]!r} "
            f"({reason}); the views of all others are kept: run the same command again, which "
            "lists the pictures anew"
        )

    def _enter(self, dataset: Dataset) -> None:
        """List the views in the data set, once they hold the rows of all its pictures."""
        whole = dataset
        if self.spec.shard is not None:
            # Another job may have entered views meanwhile.
            whole = load_dataset(self.cache, dataset.name)
            if whole.digest() != dataset.digest():
                log.warning(
                    "data set '%s' was replaced by another list while its views were computed: "
                    "run the same command again",
                    dataset.name,
                )
                return
        weights = self.plan.weights.spec
        if enter_views(whole, self.plan.spaces, self.splits, weights):
            if not all(holds_rows(whole, space, self.cache) for space in self.plan.spaces):
                log.info("%s: views of other shards are still missing", dataset.name)
                return
            save_dataset(self.cache, whole)
        self.is_complete = True

    def result(self) -> ViewsResult:
        """What was done."""
        return ViewsResult(
            augmentation=self.augmentation,
            number=len(self.numbers),
            of=self.splits,
            pictures=self.pictures,
            computed=self.computed,
            reused=self.reused,
            is_complete=self.is_complete,
            seconds=round(time.perf_counter() - self.started, 3),
            stage_seconds=self.timings.as_dict(),
            spaces=self.plan.spaces,
        )
