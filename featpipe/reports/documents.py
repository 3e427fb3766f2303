"""The JSON documents of an evaluation: their keys, spelled once."""

from __future__ import annotations

from typing import Any, TypedDict

ClassScores = TypedDict(
    "ClassScores",
    {"class": str, "precision": float, "recall": float, "f1": float, "support": int},
)
"""How one class was recognised; ``support`` is its number of pictures."""


class CalibrationBin(TypedDict):
    """Pictures whose predicted class got about the same probability."""

    count: int
    confidence: float
    accuracy: float


class Calibration(TypedDict):
    """Expected calibration error, and its bins that hold a picture."""

    ece: float
    bins: list[CalibrationBin]


class Metrics(TypedDict):
    """All metrics of one evaluation; see :func:`featpipe.reports.metrics.score`."""

    n: int
    accuracy: float
    accuracy_ci95: list[float]
    balanced_accuracy: float
    macro_f1: float
    baseline_accuracy: float
    log_loss: float
    ece: float
    roc_auc: float | None
    per_class: list[ClassScores]
    confusion: list[list[int]]
    calibration: Calibration


class TTADocument(TypedDict):
    """Views that probabilities are averaged over, beside each picture itself."""

    policy: str
    seed: int
    views: int


class ScaleScore(TypedDict):
    """How accurate a head is on pictures of one size, pixels."""

    size: int
    accuracy: float


class ScalesDocument(TypedDict, total=False):
    """With ``--scales``: the score of each size, and what pictures of those sizes show."""

    scales: list[ScaleScore]
    frame: str


class EvaluationDocument(Metrics, ScalesDocument):
    """What ``evaluate`` prints, and ``metrics.json`` holds.

    ``notes`` are sentences on what to keep in mind when reading the scores; ``predictions`` is the
    path of a table with the probabilities of every picture; ``tta`` is null where they are not
    averaged over views; where there are ``scales``, all other scores are those of the average over
    sizes.
    """

    head: str
    dataset: str
    split: str
    duplicates: list[str]
    trained_on: int
    notes: list[str]
    predictions: str
    report: str
    seconds: float
    tta: TTADocument | None


class ComparedHead(TypedDict):
    """How one of several heads did; ``seconds`` of training, ``bytes`` of its files.

    ``seconds_per_epoch`` is null where the head does not say it.
    """

    head: str
    kind: str
    params: dict[str, Any]
    info: dict[str, Any]
    space: str
    spaces: list[str]
    features: str
    accuracy: float
    accuracy_ci95: list[float]
    log_loss: float
    ece: float
    seconds: float | None
    seconds_per_epoch: float | None
    bytes: int
    trained_on: int


class ComparedPair(TypedDict):
    """Two heads on the same pictures; see :mod:`featpipe.reports.paired`."""

    a: str
    b: str
    only_a_right: int
    only_b_right: int
    p_value: float
    p_value_holm: float


class ComparisonDocument(TypedDict):
    """What ``compare`` prints, and ``comparison.json`` holds; the most accurate head first."""

    dataset: str
    split: str
    n: int
    baseline_accuracy: float
    heads: list[ComparedHead]
    pairs: list[ComparedPair]
    notes: list[str]
    report: str
    seconds: float


class LabelErrorDocument(TypedDict):
    """A picture whose label is probably wrong.

    ``probability`` is that of the suggested label, ``label_probability`` that of its own, by heads
    that have not seen it.
    """

    path: str
    label: str
    suggested: str
    probability: float
    label_probability: float
    split: str | None


class NearDuplicateDocument(TypedDict):
    """Two pictures of different bytes that look the same; labels and splits of a, then of b."""

    a: str
    b: str
    similarity: float
    splits: list[str | None]
    labels: list[str | None]


class ExactDuplicateDocument(TypedDict):
    """Pictures of the same bytes, with the split and label of each."""

    paths: list[str]
    splits: list[str | None]
    labels: list[str | None]


class OutlierDocument(TypedDict):
    """A picture unlike the others; ``score`` is half its mean cosine distance to neighbours."""

    path: str
    score: float
    label: str | None
    split: str | None


TinyClassDocument = TypedDict(
    "TinyClassDocument", {"class": str, "pictures": int, "splits": dict[str, int]}
)
"""A class of few pictures, or of none in a split; ``splits`` counts its pictures by split."""


class LabelCheckDocument(TypedDict):
    """How labels were checked.

    ``checked`` pictures were classified by heads that had not seen them, ``accuracy`` of them as
    labelled; confident learning estimates ``estimated_errors`` wrong labels; ``skipped`` says why
    none were checked.
    """

    checked: int
    folds: int
    accuracy: float | None
    estimated_errors: int | None
    skipped: str | None


class AuditDocument(TypedDict):
    """What ``audit`` prints, and ``audit.json`` holds."""

    dataset: str
    space: str
    pictures: int
    label_errors: list[LabelErrorDocument]
    label_check: LabelCheckDocument
    near_duplicates: list[NearDuplicateDocument]
    near_duplicates_found: int
    near_duplicates_across_splits: int
    exact_duplicates: list[ExactDuplicateDocument]
    outliers: list[OutlierDocument]
    tiny_classes: list[TinyClassDocument]
    report: str
    fixes: str
    seconds: float
