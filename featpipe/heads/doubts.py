"""Signs that a trained head is worse than it could be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import Head, History, HistoryRow


def epoch_doubts(history: History, epochs: int, *, anneals: bool = False) -> list[str]:
    """Whether the best epoch is the last that was allowed, or the first.

    A head that makes no mistake is not doubted: its loss can fall for ever. Where the learning
    rate falls to 0 over the epochs (``anneals``), the last one is meant to be the best.
    """
    if not history.rows or history.kept.val_accuracy == 1:
        return []
    if history.kept.at == epochs and not anneals:
        return [
            "expected the validation loss to stop falling, found it lowest in the last of "
            f"{epochs} epochs; raise --epochs"
        ]
    if len(history.rows) > 1 and history.best == 0:
        return [
            "expected the validation loss to fall after the first epoch, found it lowest there; "
            "lower --learning-rate"
        ]
    return []


def baseline_doubts(head: Head, best: HistoryRow, y_val: NDArray[np.int64]) -> list[str]:
    """Whether a head does no better on validation than an answer that is always the same.

    Parameters
    ----------
    head : Head
    best : HistoryRow
        Its kept row.
    y_val : ndarray of int64, shape (n,)
        Class indices of the validation rows.
    """
    if best.val_accuracy == 1:
        return []
    advice = "try another tap or head, or more pictures of the smaller classes"
    if head.params["class_weight"] == "balanced":
        # Such a head gives up accuracy on the larger classes. Its loss weighs all classes alike.
        chance = float(np.log(len(head.classes_)))
        if best.val_loss < chance:
            return []
        return [
            f"expected a validation loss below {chance:.4f}, that of equal probabilities, found "
            f"{best.val_loss:.4f}; {advice}"
        ]
    counts = np.bincount(y_val)
    share = float(counts.max() / len(y_val))
    if best.val_accuracy > share:
        return []
    return [
        f"expected a validation accuracy above {share:.2%}, that of always answering "
        f"'{head.classes_[counts.argmax()]}', found {best.val_accuracy:.2%}; {advice}"
    ]
