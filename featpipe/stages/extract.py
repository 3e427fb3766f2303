"""Stage 1: compute what is missing of a source's features, and freeze its list as a data set.

First every record is sorted into known, quarantined and to do, from what the last extraction saw
of the files. Only what is to do is read. Views are a second pass, over the frozen data set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe.base.progress import Progress, no_progress
from featpipe.datasets.coverage import coverage_warnings
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import save_dataset
from featpipe.datasets.shards import list_digest, merge_shards, shard_name
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import Outcome, OutcomeKind, Timings
from featpipe.engine.plan import plan_features
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.shards import Shard
from featpipe.stages.extract_result import ExtractResult, ViewsResult
from featpipe.stages.held_spaces import LostViews, keep_spaces, keep_views, warn_of_lost_views
from featpipe.stages.known_pictures import (
    check_views_of,
    load_before,
    look_up,
    open_data,
    split_sizes,
    warn_of_other_source,
)
from featpipe.stages.views import ViewPass
from featpipe.store.feature_store import FeatureStore
from featpipe.store.lease import shared_lease

if TYPE_CHECKING:
    from featpipe.backbones.base import Inference

log = logging.getLogger("featpipe")


def extract(
    data: str | os.PathLike[str],
    spec: ExtractSpec,
    *,
    cache: Path,
    progress: Progress = no_progress,
) -> ExtractResult:
    """Compute what is missing of a source's features and freeze its list as a data set.

    Parameters
    ----------
    data : str or path
        See :func:`featpipe.sources.open_source`.
    spec : ExtractSpec
        A data set that already has the name is brought up to date.
    cache : Path
    progress : Progress

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`. Rows computed before are kept.
    """
    with contextlib.ExitStack() as held:
        extraction = _Extraction(data, spec, cache, held)
        extraction.compute(progress)
        extraction.save()
        extraction.compute_views(progress)
        return extraction.result()


class _Extraction:
    """One extraction; making it lists the source and looks up what is already known.

    What it holds until its data set is saved goes into ``held``: the lease of the rows it found.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        spec: ExtractSpec,
        cache: Path,
        held: contextlib.ExitStack,
    ) -> None:
        self.spec, self.cache = spec, cache
        self.started = time.perf_counter()
        self.source = open_data(data, spec)
        check_views_of(self.source, spec)
        self.dataset_name = spec.name
        self.list_digest = ""
        if spec.shard is not None:
            self.list_digest = list_digest(self.source.records)
            self.dataset_name = shard_name(spec.name, spec.shard)
            records = self.source.records[spec.shard.slice]
            self.source = dataclasses.replace(self.source, records=records)
        self.plan = plan_features(spec, cache)
        self.stores = [FeatureStore(cache, space) for space in self.plan.spaces]
        self.listed_s = time.perf_counter() - self.started
        labels = "" if any(r.label is not None for r in self.source.records) else ", no labels"
        log.info("%s: %d pictures%s", self.source.spec, len(self.source.records), labels)
        if self.source.ignored:
            log.info(
                "%d files passed over: their names say they are no pictures", self.source.ignored
            )
        held.enter_context(shared_lease(cache))
        self.before = load_before(cache, self.dataset_name)
        warn_of_other_source(self.source, self.before, self.dataset_name)
        self.draft = look_up(self.source, self.before, self.stores, spec)
        self.timings = Timings()
        self.computed = 0
        self.dataset: Dataset | None = None
        self.merged: Dataset | None = None
        self.network: Inference | None = None
        self.views: ViewsResult | None = None

    def compute(self, progress: Progress) -> None:
        """Run the backbone over the pictures whose features are missing."""
        todo = self.draft.todo
        if len(todo):
            self._compute(todo, progress)
        self.draft.check_max_bad(self.spec.max_bad)
        self.draft.check_list_paths()

    def _compute(self, todo: NDArray[np.intp], progress: Progress) -> None:
        records, draft = self.source.records, self.draft
        with (
            progress("extract", len(todo)) as bar,
            Extractor(self.plan, self.stores, self.spec) as extractor,
        ):

            def on_outcome(outcome: Outcome) -> None:
                number = int(todo[outcome.key])
                if outcome.reason is not None:
                    draft.quarantine(number, outcome.reason)
                bar.advance(is_work=outcome.kind is OutcomeKind.COMPUTED, bad=len(draft.reasons))
                if outcome.reason is not None:
                    said = f" ({outcome.detail})" if outcome.detail else ""
                    log.debug("quarantined %r: %s%s", records[number].path, outcome.reason, said)
                    draft.check_max_bad(self.spec.max_bad)

            found = extractor.compute_ids(self._tasks(todo), len(todo), on_outcome)
        draft.enter(todo, found.ids, found.stat)
        self.timings, self.computed = extractor.timings, found.computed
        if self.spec.views:
            self.network = extractor.network

    def _tasks(self, todo: NDArray[np.intp]) -> Iterator[Task]:
        for key, number in enumerate(todo.tolist()):
            yield Task.at(key, self.source.locate(self.source.records[number].path))

    def save(self) -> None:
        """Write the data set; the job that finds all shards done also writes the whole."""
        spec, before = self.spec, self.before
        dataset = self.draft.freeze(self.dataset_name, spec.split)
        if dataset.classes and spec.shard is None and "test" not in dataset.split_names:
            has_val = "val" in dataset.split_names
            log.warning(
                "data set '%s' has no %s; for fair scores evaluate --on another data set",
                spec.name,
                "test split: 'evaluate' scores val, which chooses the head"
                if has_val
                else "test and no val split: there is nothing to evaluate on",
            )
        lost = keep_spaces(dataset, self.plan, before, self.cache)
        dataset.info.list = self.list_digest
        save_dataset(self.cache, dataset)
        self.dataset = dataset
        if spec.shard is not None:
            lost = self._merge(spec.shard)
        warn_of_lost_views(lost, spec)
        # Of a part of the list nothing can be said.
        whole = dataset if spec.shard is None else self.merged
        for warning in coverage_warnings(whole) if whole is not None else []:
            log.warning("%s", warning)

    def _merge(self, shard: Shard) -> list[LostViews]:
        """Write the whole data set once all shards are there; the views that it lost."""
        spec = self.spec
        self.merged = merge_shards(self.cache, spec.name, shard.count, self.list_digest)
        if self.merged is None:
            return []
        lost = keep_views(self.merged, load_before(self.cache, spec.name), self.cache)
        save_dataset(self.cache, self.merged)
        bad = len(self.merged) - int(self.merged.usable.sum())
        log.info(
            "%s: all %d shards are done, merged: %d pictures, %d of them quarantined",
            *(spec.name, shard.count, len(self.merged), bad),
        )
        return lost

    def compute_views(self, progress: Progress) -> None:
        """Run the backbone over the views that are asked for and missing."""
        if not self.spec.views:
            return
        views = ViewPass(self.plan, self.spec, self.cache)
        whole = self.dataset if self.spec.shard is None else self.merged
        if whole is None:
            log.warning(
                "views follow once all shards are done: run the same command again then, for this "
                "shard too"
            )
            self.views = views.result()
            return
        self.views = views.run(whole, self.network, progress)

    def result(self) -> ExtractResult:
        """What was done."""
        seconds = time.perf_counter() - self.started
        assert self.dataset is not None
        whole = self.dataset if self.spec.shard is None else self.merged
        draft, records = self.draft, self.source.records
        unique = draft.unique()
        return ExtractResult(
            dataset=self.spec.name if whole is not None else self.dataset_name,
            spaces=self.plan.spaces,
            images=len(records),
            computed=self.computed,
            reused=unique - self.computed,
            duplicates=len(draft.fine) - unique,
            quarantined=len(draft.reasons),
            seconds=round(seconds, 3),
            images_per_second=round(
                len(records) / (seconds - (self.views.seconds if self.views else 0.0)), 1
            ),
            stage_seconds={"list": round(self.listed_s, 3), **self.timings.as_dict()},
            bottleneck=self.timings.bottleneck if self.computed else "none",
            classes=self.dataset.classes,
            splits=split_sizes(whole),
            bad=[(records[i].path, *reason) for i, reason in sorted(draft.reasons.items())],
            views=self.views,
        )
