"""The JSON documents of the commands: their keys, spelled once."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from featpipe.heads.sweep import CombinationDocument
from featpipe.reports.documents import EvaluationDocument
from featpipe.runs.trained_head import SplitScores


class SpaceDocument(TypedDict):
    """A feature space, as ``extract`` names it."""

    id: str
    tap: str
    pool: str
    shape: list[int]


class PlannedSpaceDocument(TypedDict):
    """A feature space, as ``extract --dry-run`` names it."""

    id: str
    tap: str


class BadPictureDocument(TypedDict):
    """A quarantined picture."""

    path: str
    stage: str
    reason: str


class ExtractDocument(TypedDict):
    """``extract``."""

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


class DryRunDocument(TypedDict):
    """``extract --dry-run``."""

    dataset: str
    spaces: list[PlannedSpaceDocument]
    images: int
    unchanged: int
    to_read: int
    quarantined: int


class SweepDocument(TypedDict):
    """What ``train-head --sweep`` prints of the sweep; the rest is in its table."""

    trained: int
    table: str
    best: CombinationDocument
    at_edge: dict[str, str]


class TrainDocument(TypedDict):
    """``train-head``; ``best`` is the kept row of the history, under ``epoch`` or ``C``."""

    head: str
    kind: str
    classes: list[str]
    space: str
    train: SplitScores
    val: SplitScores
    best: dict[str, float]
    seconds: float
    sweep: NotRequired[SweepDocument]


class PredictionDocument(TypedDict):
    """A line of ``predict --json``."""

    path: str
    label: str | None
    probability: float | None
    error: str | None
    probabilities: NotRequired[dict[str, float] | None]


class HeadDocument(TypedDict):
    """One head of a recipe."""

    train: TrainDocument
    evaluation: EvaluationDocument


class RecipeDocument(TypedDict):
    """``run``."""

    recipe: str
    extract: ExtractDocument
    heads: list[HeadDocument]


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
    seconds: float
