"""What casts doubt on a trained head."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.heads import new_head
from featpipe.heads.base import History, HistoryRow
from featpipe.heads.doubts import baseline_doubts, epoch_doubts
from featpipe.specs.head_params import CLASS_WEIGHTS

Y_VAL = np.array([0] * 18 + [1, 2])


def row(at: float = 1, *, loss: float = 0.5, accuracy: float = 0.9) -> HistoryRow:
    return HistoryRow(at, 0.1, 1.0, loss, accuracy)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [(0.85, True), (0.9, True), (0.95, False), (1.0, False)],
)
def test_a_head_must_beat_the_larger_class(accuracy: float, expected: bool) -> None:
    head = new_head("linear", {})
    head.classes_ = np.array(["ant", "bee", "fly"])
    found = baseline_doubts(head, row(accuracy=accuracy), Y_VAL)
    assert found == expected * [
        f"expected a validation accuracy above 90.00%, that of always answering 'ant', found "
        f"{accuracy:.2%}; try another tap or head, or more pictures of the smaller classes"
    ]


@pytest.mark.parametrize(("loss", "expected"), [(1.0, False), (1.0987, True), (2.0, True)])
def test_a_balanced_head_must_beat_equal_probabilities(loss: float, expected: bool) -> None:
    head = new_head("logistic", {"class_weight": "balanced"})
    head.classes_ = np.array(["ant", "bee", "fly"])
    found = baseline_doubts(head, row(loss=loss, accuracy=0.5), Y_VAL)
    assert found == expected * [
        f"expected a validation loss below 1.0986, that of equal probabilities, found {loss:.4f}; "
        "try another tap or head, or more pictures of the smaller classes"
    ]


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
def test_a_perfect_head_on_one_class_is_no_warning(class_weight: str) -> None:
    head = new_head("linear", {"class_weight": class_weight})
    head.classes_ = np.array(["ant"])
    assert baseline_doubts(head, row(loss=0.0, accuracy=1.0), np.zeros(5, np.int64)) == []


@pytest.mark.parametrize(
    ("best", "expected"), [(0, "lower --learning-rate"), (1, ""), (2, ""), (3, "raise --epochs")]
)
def test_a_best_epoch_at_an_end_is_a_warning(best: int, expected: str) -> None:
    found = epoch_doubts(History("epoch", [row(at) for at in range(1, 5)], best), 4)
    assert [text.split("; ")[1] for text in found] == ([expected] if expected else [])


def test_a_head_that_makes_no_mistake_may_end_at_its_last_epoch() -> None:
    assert epoch_doubts(History("epoch", [row(1), row(2, accuracy=1.0)], 1), 2) == []


def test_one_epoch_was_too_few_not_too_fast() -> None:
    (found,) = epoch_doubts(History("epoch", [row(1)]), 1)
    assert found.endswith("found it lowest in the last of 1 epochs; raise --epochs")


def test_a_head_that_diverged_has_no_epoch_to_doubt() -> None:
    assert epoch_doubts(History("epoch"), 10) == []
