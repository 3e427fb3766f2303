"""The JSON documents of the commands: their keys, spelled once."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from featpipe.base.views import ViewsDocument
from featpipe.exports.documents import CheckDocument
from featpipe.heads.base import StartDocument
from featpipe.heads.spread import SeedsDocument, Spread
from featpipe.heads.sweep import CombinationDocument
from featpipe.reports.documents import ComparisonDocument, EvaluationDocument
from featpipe.runs.trained_head import SplitScores


class SpaceDocument(TypedDict):
    """A feature space, as ``extract`` names it."""

    id: str
    tap: str
    pool: str
    shape: list[int]
    view: int


class PlannedSpaceDocument(TypedDict):
    """A feature space, as ``extract --dry-run`` names it."""

    id: str
    tap: str
    view: int


class PlannedViewsDocument(ViewsDocument):
    """Views, as ``extract --dry-run`` names them; ``to_compute`` is null where it is unknown."""

    of: list[str]
    to_compute: int | None


class BadPictureDocument(TypedDict):
    """A quarantined picture."""

    path: str
    stage: str
    reason: str


class ComputedViewsDocument(ViewsDocument):
    """Views, as ``extract`` names them; ``complete`` says whether the data set lists them."""

    of: list[str]
    pictures: int
    computed: int
    reused: int
    complete: bool
    seconds: float
    stage_seconds: dict[str, float]


class ExtractDocument(TypedDict):
    """``extract``; ``views`` where they are asked for."""

    dataset: str
    spaces: list[SpaceDocument]
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
    bad: list[BadPictureDocument]
    views: NotRequired[ComputedViewsDocument]


class DryRunDocument(TypedDict):
    """``extract --dry-run``; ``views`` where they are asked for."""

    dataset: str
    spaces: list[PlannedSpaceDocument]
    images: int
    unchanged: int
    to_read: int
    quarantined: int
    classes: dict[str, int]
    split_by: str
    splits: dict[str, int]
    views: NotRequired[PlannedViewsDocument]


class SweepDocument(TypedDict):
    """What ``train-head --sweep`` prints of the sweep; the rest is in its table."""

    trained: int
    table: str
    best: CombinationDocument
    at_edge: dict[str, str]


class ShotDocument(TypedDict):
    """Heads of ``n`` pictures per class; ``tries`` are the kept rows of their histories.

    ``fewer`` says of each class that has fewer than ``n`` pictures how many it has.
    """

    n: int
    pictures: int
    fewer: dict[str, int]
    val_accuracy: Spread
    val_loss: Spread
    tries: list[dict[str, float]]


class NShotDocument(TypedDict):
    """What ``train-head --n-shot`` prints of it."""

    table: str
    shots: list[ShotDocument]


class ProbabilityScores(TypedDict):
    """How good probabilities are: mean log-loss in nats, calibration error of 0 to 1."""

    log_loss: float
    ece: float


class CalibrationDocument(TypedDict):
    """What ``train-head --calibrate`` prints of it: validation scores without and with it."""

    temperature: float
    before: ProbabilityScores
    after: ProbabilityScores


class TrainDocument(TypedDict):
    """``train-head``; ``best`` is the kept row of the history, under ``epoch``, ``C`` or ``k``.

    ``views`` are those that its epochs drew from, null without; ``warnings`` say what casts doubt
    on the head.
    """

    head: str
    kind: str
    classes: list[str]
    space: str
    spaces: list[str]
    train: SplitScores
    val: SplitScores
    best: dict[str, float]
    seconds: float
    views: ViewsDocument | None
    warnings: list[str]
    epoch_seconds: NotRequired[float]
    sweep: NotRequired[SweepDocument]
    seeds: NotRequired[SeedsDocument]
    n_shot: NotRequired[NShotDocument]
    calibration: NotRequired[CalibrationDocument]
    start: NotRequired[StartDocument]


class PredictionDocument(TypedDict):
    """A line of ``predict --json``; ``map``, with ``--maps``, is the path of its score map."""

    path: str
    label: str | None
    probability: float | None
    error: str | None
    map: NotRequired[str | None]
    probabilities: NotRequired[dict[str, float] | None]


class HeadDocument(TypedDict):
    """One head of a recipe."""

    train: TrainDocument
    evaluation: EvaluationDocument


class RunDocument(TypedDict):
    """One run; the scores on test are null where this head has not been evaluated on it."""

    run: str
    dataset: str
    kind: str
    params: dict[str, Any]
    info: dict[str, Any]
    backbone: str
    tap: str
    pool: str
    size: int
    space: str
    spaces: list[str]
    val_accuracy: float
    val_loss: float
    test_accuracy: float | None
    test_accuracy_ci95: list[float] | None
    test_n: int | None
    trained: str


class DamagedRunDocument(TypedDict):
    """A run folder whose head cannot be read."""

    run: str
    reason: str


class RunsDocument(TypedDict):
    """``runs``."""

    folder: str
    runs: list[RunDocument]
    damaged: list[DamagedRunDocument]


class RecipeDocument(TypedDict):
    """``run``; ``extract`` is the first of ``extracts``."""

    recipe: str
    extract: ExtractDocument
    extracts: list[ExtractDocument]
    heads: list[HeadDocument]
    comparison: ComparisonDocument | None


class RemovalDocument(TypedDict):
    """``cache remove``."""

    kind: str
    name: str
    paths: list[str]
    bytes: int
    datasets: list[str]


class StoreGarbageDocument(TypedDict):
    """Garbage of one feature store."""

    name: str
    rows: int
    kept: int
    young: int
    deleted: int
    replaced: int
    bytes: int


class GarbageDocument(TypedDict):
    """``cache gc``."""

    dry_run: bool
    rows: int
    bytes: int
    stores: list[StoreGarbageDocument]


class RelabelDocument(TypedDict):
    """``relabel``."""

    dataset: str
    made_from: str
    pictures: int
    relabelled: int
    removed: int
    new_classes: list[str]
    lost_classes: list[str]
    conflicting: int
    data: str | None
    root: str
    extract_options: list[str]
    seconds: float


class ModelExportDocument(TypedDict):
    """``export`` of a head; ``libraries`` are versions by name."""

    format: str
    file: str
    bytes: int
    sha256: str
    card: str
    head: str
    kind: str
    classes: list[str]
    size: int
    dense: bool
    check: CheckDocument
    libraries: dict[str, str]
    seconds: float


class TableExportDocument(TypedDict):
    """``export`` of a data set; ``shape`` is that of all features, rows first."""

    format: str
    file: str
    bytes: int
    dataset: str
    space: str
    tap: str
    pool: str
    shape: list[int]
    dtype: str
    classes: list[str]
    splits: dict[str, int]
    features_sha256: str
    seconds: float
