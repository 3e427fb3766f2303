"""The library as most tests call it: options by name, and one decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from featpipe import api
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import Outcome, Timings
from featpipe.engine.plan import FeaturePlan, plan_features
from featpipe.specs.extract import EngineOptions, ExtractSpec, FeatureOptions
from featpipe.specs.predict import PredictSpec
from featpipe.stages.dry_run import DryRun
from featpipe.stages.dry_run import plan_extraction as plan_by_spec
from featpipe.stages.evaluate import Evaluation
from featpipe.stages.extract_result import ExtractResult
from featpipe.stages.predict import Prediction
from featpipe.stages.predict import predict as predict_by_spec
from featpipe.stages.train import TrainResult
from featpipe.store.feature_store import FeatureStore


def plan_of(options: dict[str, Any], cache: Path) -> FeaturePlan:
    """What options of features mean."""
    return plan_features(FeatureOptions.from_options(options), cache)


def run_pass(
    tasks: Iterable[Task],
    plan: FeaturePlan,
    stores: Sequence[FeatureStore],
    on_outcome: Callable[[Outcome], None],
    options: EngineOptions,
) -> Timings:
    """One pass, from opening an extractor to closing it."""
    with Extractor(plan, stores, options) as extractor:
        extractor.run(tasks, on_outcome)
    return extractor.timings


def extract(data: Any, **options: Any) -> ExtractResult:
    return api.extract(data, **{"workers": 1, **options})


def plan_extraction(data: Any, *, cache: Path, **options: Any) -> DryRun:
    return plan_by_spec(data, ExtractSpec.from_options(options), cache=cache)


def train_head(name: str, *, params: dict[str, Any] | None = None, **options: Any) -> TrainResult:
    return api.train_head(name, **{**options, **(params or {})})


def evaluate(head: Path, **options: Any) -> Evaluation:
    return api.evaluate(head, **options)


def predict(
    head: Path, paths: Sequence[Any], *, cache: Path, progress: Any = None, **options: Any
) -> Iterator[Prediction]:
    spec = PredictSpec.from_options(options)
    more = {} if progress is None else {"progress": progress}
    return predict_by_spec(head, paths, spec, cache=cache, **more)
