"""The JSON document of ``advise``: facts, then advice. Rules read the facts from here alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

Content = Literal["similar", "different", "undecided", "unknown"]
"""How like the network's own training pictures these are; unknown where there is one tap only."""
Amount = Literal["little", "enough", "undecided", "unknown"]
"""Whether more training pictures still help; unknown where the learning curve cannot be drawn."""
Try = Literal["extract", "linear", "taps", "suffix", "views", "mlp", "pictures", "scratch"]
"""What an advice is about."""

ClassFact = TypedDict(
    "ClassFact",
    {"class": str, "pictures": int, "train": int, "val": int, "test": int, "quarantined": int},
)
"""Pictures of a class; ``pictures`` are the usable ones, ``val`` those a head is validated with."""


class PictureFacts(TypedDict):
    """Numbers of pictures; ``val_from`` says where the validation pictures come from."""

    usable: int
    train: int
    val: int
    test: int
    unlabelled: int
    quarantined: int
    val_from: str


class ClassSizes(TypedDict):
    """Training pictures per class; ``imbalance_ratio`` is largest by smallest."""

    smallest: int
    median: float
    largest: int
    imbalance_ratio: float


class TapFact(TypedDict):
    """A linear head (``logistic``, C by validation) on the rows of one cached feature space.

    ``rows`` says what it was trained on: ``stored``, ``mean over places`` or ``flattened``.
    ``depth`` counts the taps of one network from the shallowest, 0, on.
    """

    space: str
    backbone: str
    size: int
    tap: str
    pool: str
    rows: str
    numbers: int
    depth: int
    C: float
    train_accuracy: float
    val_accuracy: float
    val_accuracy_ci95: list[float]
    val_log_loss: float
    seconds: float


class TapComparison(TypedDict):
    """The deepest tap of the best network against an earlier one, on the same pictures.

    Differences are deepest minus earlier; a loss below 0 favours the deepest. ``p_value`` is that
    of McNemar's exact test.
    """

    deepest: str
    earlier: str
    accuracy_difference: float
    only_deepest_right: int
    only_earlier_right: int
    p_value: float
    log_loss_difference: float
    log_loss_difference_ci95: list[float]


class GapFact(TypedDict):
    """Training against validation accuracy of the best linear head."""

    tap: str
    rows: str
    train_accuracy: float
    val_accuracy: float
    gap: float
    mistakes: int


class CurvePoint(TypedDict):
    """The best linear head on a share of train: means over draws of the pictures."""

    share: float
    pictures: int
    val_accuracy: float
    val_log_loss: float
    draws: list[float]


class DoublingGain(TypedDict):
    """What the second half of train brought: 100 % minus 50 %, on the same pictures."""

    accuracy: float
    accuracy_ci95: list[float]
    log_loss: float
    log_loss_ci95: list[float]


class FactsDocument(TypedDict):
    """What was counted and measured.

    ``suffix_passes`` says what training a suffix costs, in passes of the network over the training
    pictures; None where no suffix is advised, or where that is not known.
    """

    pictures: PictureFacts
    classes: list[ClassFact]
    class_sizes: ClassSizes
    baseline_accuracy: float
    measured_on: dict[str, int]
    smallest_provable_difference: float
    taps: list[TapFact]
    tap_comparisons: list[TapComparison]
    content: Content
    gap: GapFact | None
    learning_curve: list[CurvePoint]
    doubling_gain: DoublingGain | None
    data: Amount
    cached_views: int
    suffix_passes: float | None
    notes: list[str]


AdviceDocument = TypedDict("AdviceDocument", {"try": Try, "why": str, "commands": list[str]})
"""What to try next, why, and how."""

AgainstDocument = TypedDict("AgainstDocument", {"try": Try, "why": str})
"""What not to try now, and why."""


class AdviseDocument(TypedDict):
    """What ``advise`` prints."""

    dataset: str
    facts: FactsDocument
    advice: list[AdviceDocument]
    not_advised: list[AgainstDocument]
    seconds: float


CHANCE = 0.05
"""p value below which a difference counts as more than chance."""


def deciding(comparisons: Sequence[TapComparison]) -> TapComparison:
    """The comparison with the best earlier tap, which decides what the content is."""
    return max(comparisons, key=lambda one: sum(one["log_loss_difference_ci95"]))


def half_proved(one: TapComparison) -> str:
    """What differs beyond chance where only one of accuracy and log-loss does; else empty."""
    low, high = one["log_loss_difference_ci95"]
    by_accuracy, by_loss = one["p_value"] < CHANCE, not low <= 0 <= high
    if by_accuracy == by_loss:
        return ""
    differs, other = ("accuracy", "log-loss") if by_accuracy else ("log-loss", "accuracy")
    return f"{differs} differs beyond chance, {other} does not"


def advice(what: Try, why: str, commands: list[str]) -> AdviceDocument:
    """An advice; ``try`` is no name in Python."""
    return {"try": what, "why": why, "commands": commands}


def against(what: Try, why: str) -> AgainstDocument:
    """Why something is not advised."""
    found: Any = {"try": what, "why": why}
    return found  # type: ignore[no-any-return]
