"""Calibration of a trained head on its validation pictures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import Head, softmax
from featpipe.heads.temperature import best_temperature, logits_of
from featpipe.reports.metrics import reliability

if TYPE_CHECKING:
    from featpipe.stages.documents import CalibrationDocument, ProbabilityScores

log = logging.getLogger("featpipe")


def calibrate(head: Head, X_val: Any, y_val: NDArray[np.int64]) -> CalibrationDocument:
    """Set a head's temperature to the one of the lowest validation loss (Guo et al. 2017).

    Returns
    -------
    CalibrationDocument
        The temperature, and validation scores without and with it.
    """
    logits = logits_of(head, X_val)
    temperature = best_temperature(logits, y_val)
    if temperature is None:
        log.warning(
            "expected a temperature of the lowest loss on %d validation pictures, found none: all "
            "of them are classified correctly, or the head is no better than chance; the "
            "probabilities stay as they are",
            len(y_val),
        )
        temperature = 1.0
    head.temperature_ = temperature
    return {
        "temperature": temperature,
        "before": _scores(softmax(logits), y_val),
        "after": _scores(softmax(logits / temperature), y_val),
    }


def _scores(probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> ProbabilityScores:
    truth = probabilities[np.arange(len(y)), y]
    correct = probabilities.argmax(axis=1) == y
    return {
        # Clipped as scikit-learn does, so that it is the log-loss of an evaluation.
        "log_loss": float(-np.log(np.maximum(truth, np.finfo(np.float64).eps)).mean()),
        "ece": reliability(correct, probabilities.max(axis=1))["ece"],
    }
