"""Stage 1: a source's pictures become rows in the stores and a frozen data set.

Decide, then act: first every record is sorted into known, quarantined or to do, from what the
last run saw of the files; only what is to do is read.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import (
    OK,
    QUARANTINED,
    SHARD_MARK,
    Dataset,
    dataset_path,
    load_dataset,
    save_dataset,
)
from featpipe.datasets.shards import Shard, list_digest, merge_shards
from featpipe.datasets.splits import DEFAULT_FRACTIONS, check_shares
from featpipe.decoding.pool import Task
from featpipe.engine.loop import EngineOptions, Outcome, Timings, run
from featpipe.engine.plan import FeaturePlan, FeatureRequest
from featpipe.sources import Source, open_source
from featpipe.stages.draft import TODO, Samples
from featpipe.store.feature_store import FeatureStore

log = logging.getLogger("featpipe")


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did.

    Attributes
    ----------
    dataset : str
    spaces : list of FeatureSpace
    images : int
        Records of the source: computed + reused + duplicates + quarantined.
    computed, reused, duplicates, quarantined : int
        Pictures the backbone ran over; whose rows were there; that equal an earlier record;
        that could not be read.
    seconds, images_per_second : float
        Wall time, and images by it.
    stage_seconds : dict of str to float
    bottleneck : str
        The stage the others waited for; ``none`` where nothing was computed.
    classes : list of str
    splits : dict of str to int
        Usable pictures in each split.
    bad : list of tuple
        ``(path, stage, reason)`` of every quarantined picture.
    """

    dataset: str
    spaces: list[FeatureSpace]
    images: int
    computed: int
    reused: int
    duplicates: int
    quarantined: int
    seconds: float
    images_per_second: float
    stage_seconds: dict[str, float]
    bottleneck: str
    classes: list[str]
    splits: dict[str, int]
    bad: list[tuple[str, str, str]] = field(repr=False)

    def as_json(self) -> dict[str, Any]:
        """The result as the command prints it."""
        spaces = [
            {"id": s.id, "tap": s.tap, "pool": s.pooling, "shape": list(s.shape)}
            for s in self.spaces
        ]
        bad = [{"path": p, "stage": s, "reason": r} for p, s, r in self.bad]
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**rest, "spaces": spaces, "bad": bad}


def extract(
    data: str | os.PathLike[str],
    *,
    name: str,
    cache: Path,
    request: FeatureRequest | None = None,
    options: EngineOptions | None = None,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    root: Path | None = None,
    follow_links: bool = False,
    max_bad: float = 1.0,
    retry_quarantined: bool = False,
    rehash: bool = False,
    shard: Shard | None = None,
    progress: Progress = no_progress,
) -> ExtractResult:
    """Compute what is missing of a source's features and freeze its list as a data set.

    Parameters
    ----------
    data : str or path
        See :func:`featpipe.sources.open_source`.
    name : str
        Name of the data set; an existing one of that name is brought up to date.
    cache : Path
    request : FeatureRequest, optional
        What to compute.
    options : EngineOptions, optional
        How to run.
    fractions : sequence of three floats
        Shares of train, val and test where the source has no splits of its own.
    root : Path, optional
        For a list: the folder its paths are relative to and may not leave.
    follow_links : bool
        For a list: whether links may lead its paths out of that folder.
    max_bad : float
        Largest share of unreadable pictures, 0..1, before the job counts as failed.
    retry_quarantined : bool
        Try unreadable pictures again although their files have not changed.
    rehash : bool
        Read every file, also those that have not changed by size and times; what is known by
        its content is not computed again.
    shard : Shard, optional
        Take only this part of the records, for one of several jobs. The job that finds all
        parts done writes the whole data set.
    progress : Progress

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`. Rows computed before are kept.
    """
    started = time.perf_counter()
    check_name(cache, name)
    check_shares(fractions)
    check_max_bad(max_bad)
    source = open_source(data, root=root, follow_links=follow_links)
    own_name = name
    whole_list = "" if shard is None else list_digest(source.records)
    if shard is not None:
        source = dataclasses.replace(source, records=source.records[shard.slice])
        own_name = shard.dataset_name(name)
    plan = (request or FeatureRequest()).resolve(cache)
    options = options or EngineOptions()
    stores = [FeatureStore(cache, space) for space in plan.spaces]
    listed = time.perf_counter()
    log.info("%s: %d pictures", source.spec, len(source.records))
    if source.ignored:
        log.info("%d files passed over: their names say they are no pictures", source.ignored)

    samples = Samples(source, _decoder(options))
    before = _load_before(cache, own_name)
    # A folder that was moved, or named in another way, is still the same source.
    if before is not None and not before.source.items() & _names_of(source).items():
        log.warning(
            "data set '%s' was made from %s (%d pictures): its list is replaced, features stay",
            *(own_name, before.source.get("spec"), len(before)),
        )
    samples.recall(before, stores, retry_quarantined=retry_quarantined, rehash=rehash)
    timings = Timings()
    todo = np.flatnonzero(samples.state == TODO)
    if len(todo):
        timings = _compute(source, samples, todo, plan, stores, options, max_bad, progress)
    samples.check_max_bad(max_bad)
    samples.check_list_paths()

    dataset = samples.freeze(own_name, fractions)
    if dataset.classes and shard is None and "test" not in dataset.split_names:
        log.warning("data set '%s' has no test split: evaluate its heads --on another one", name)
    dataset.spaces = _spaces_held(dataset, plan.spaces, before, cache)
    named = before.info.get("weights", {}) if before else {}
    dataset.info["weights"] = {**named, **{s.id: plan.weights.spec for s in plan.spaces}}
    if shard is not None:
        dataset.info["list"] = whole_list
    save_dataset(cache, dataset)
    merged = None if shard is None else merge_shards(cache, name, shard.count, whole_list)
    if shard is not None and merged is not None:
        bad = len(merged) - int(merged.usable.sum())
        log.info(
            "%s: all %d shards are done, merged: %d pictures, %d of them quarantined",
            *(name, shard.count, len(merged), bad),
        )
    seconds = time.perf_counter() - started
    return ExtractResult(
        dataset=own_name if shard is not None and merged is None else name,
        spaces=plan.spaces,
        **samples.counts(),
        seconds=round(seconds, 3),
        images_per_second=round(len(source.records) / seconds, 1),
        stage_seconds={"list": round(listed - started, 3), **timings.as_dict()},
        bottleneck=timings.bottleneck if samples.computed else "none",
        classes=dataset.classes,
        splits=_split_sizes(dataset if shard is None else merged),
        bad=[
            (source.records[i].path, stage, reason)
            for i, (stage, reason) in sorted(samples.reasons.items())
        ],
    )


def check_name(cache: Path, name: str) -> None:
    """Refuse what cannot name a data set, or would look like a part of one.

    Raises
    ------
    UsageError
    """
    dataset_path(cache, name)
    if SHARD_MARK in name:
        raise UsageError(f"expected a data set name without '{SHARD_MARK}', found {name!r}")


def check_max_bad(share: float) -> None:
    """Refuse what is no share of a whole.

    Raises
    ------
    UsageError
    """
    if not 0 <= share <= 1:
        raise UsageError(f"expected a largest share of bad pictures of 0 to 1, found {share:g}")


@dataclass(frozen=True)
class DryRun:
    """What an extraction would do, as far as the last run's record of the files tells."""

    dataset: str
    spaces: list[FeatureSpace]
    images: int
    unchanged: int
    to_read: int
    quarantined: int

    def as_json(self) -> dict[str, Any]:
        """The plan as the command prints it."""
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**rest, "spaces": [{"id": s.id, "tap": s.tap} for s in self.spaces]}


def plan_extraction(
    data: str | os.PathLike[str],
    *,
    name: str,
    cache: Path,
    request: FeatureRequest | None = None,
    options: EngineOptions | None = None,
    root: Path | None = None,
    follow_links: bool = False,
) -> DryRun:
    """Decide without acting: no picture is opened, nothing is written.

    ``to_read`` pictures are new or changed; those whose content turns out to be known are
    read but not decoded.
    """
    check_name(cache, name)
    source = open_source(data, root=root, follow_links=follow_links)
    plan = (request or FeatureRequest()).resolve(cache, remember=False)
    samples = Samples(source, _decoder(options or EngineOptions()))
    stores = [FeatureStore(cache, space) for space in plan.spaces]
    samples.recall(_load_before(cache, name), stores, retry_quarantined=False)
    count = {state: int((samples.state == state).sum()) for state in (TODO, OK, QUARANTINED)}
    images = len(source.records)
    return DryRun(name, plan.spaces, images, count[OK], count[TODO], count[QUARANTINED])


def _compute(
    source: Source,
    samples: Samples,
    todo: np.ndarray,
    plan: FeaturePlan,
    stores: list[FeatureStore],
    options: EngineOptions,
    max_bad: float,
    progress: Progress,
) -> Timings:
    def tasks() -> Iterator[Task]:
        for i in todo.tolist():
            path = source.records[i].path
            if source.root is None:
                yield Task(i, None, samples.payload(path))
            else:
                yield Task(i, os.path.join(source.root, path))

    with progress("extract", len(todo)) as bar:

        def on_outcome(outcome: Outcome) -> None:
            samples.take(outcome)
            bar.advance(bad=len(samples.reasons))
            if outcome.kind == "bad":
                path = source.records[outcome.key].path
                log.debug("quarantined %r: %s: %s", path, outcome.stage, outcome.reason)
                samples.check_max_bad(max_bad)

        return run(tasks(), plan, stores, on_outcome, options)


def _names_of(source: Source) -> dict[str, str]:
    described = source.describe()
    return {"spec": described["spec"], "root": described["root"] or described["spec"]}


def _split_sizes(dataset: Dataset | None) -> dict[str, int]:
    """Usable pictures per split; a part of a sharded data set has no splits of its own yet."""
    return {s: len(dataset.in_split(s)) for s in dataset.split_names} if dataset else {}


def _decoder(options: EngineOptions) -> str:
    """What decides whether a picture is readable; a change tries quarantined ones again."""
    return f"pillow {PIL.__version__}, {options.max_pixels} pixels"


def _load_before(cache: Path, name: str) -> Dataset | None:
    try:
        return load_dataset(cache, name)
    except NotFoundError:
        return None


def _spaces_held(
    dataset: Dataset, now: list[FeatureSpace], before: Dataset | None, cache: Path
) -> list[str]:
    """Spaces that hold every usable row: this run's, and earlier ones that still do."""
    held = [space.canonical_json for space in now]
    ids: Any = dataset.image_sha256[dataset.usable]
    for text in before.spaces if before else []:
        store = FeatureStore(cache, FeatureSpace.from_json(text))
        if text not in held and store.folder.is_dir() and store.contains(ids).all():
            held.append(text)
    return held
