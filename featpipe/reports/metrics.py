"""Scores of class probabilities against the truth: scikit-learn's, and calibration."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

CALIBRATION_BINS = 15
BOOTSTRAP_SAMPLES = 10_000


def score(y: np.ndarray, probabilities: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """All metrics of one evaluation, ready for JSON.

    Parameters
    ----------
    y : ndarray of int64, shape (n,)
        True class index.
    probabilities : ndarray of float64, shape (n, classes)
    classes : list of str

    Returns
    -------
    dict
        ``n, accuracy, accuracy_ci95, log_loss, ece, roc_auc, per_class, confusion,
        calibration``. ``roc_auc`` is None where a class has no picture or all are of one; with
        more than two classes it is the unweighted one-against-rest mean. Rows of
        ``confusion`` are the truth, columns the prediction.
    """
    from sklearn import metrics

    labels = np.arange(len(classes))
    predicted = probabilities.argmax(axis=1)
    correct = predicted == y
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        y, predicted, labels=labels, zero_division=0.0
    )
    calibration = reliability(correct, probabilities.max(axis=1))
    return {
        "n": len(y),
        "accuracy": float(correct.mean()),
        "accuracy_ci95": bootstrap_interval(correct),
        "log_loss": float(metrics.log_loss(y, probabilities, labels=labels)),
        "ece": calibration["ece"],
        "roc_auc": _roc_auc(y, probabilities),
        "per_class": [
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion": metrics.confusion_matrix(y, predicted, labels=labels).tolist(),
        "calibration": calibration,
    }


def bootstrap_interval(correct: np.ndarray) -> list[float]:
    """95 % percentile bootstrap interval of the accuracy (Efron 1979).

    Resampling n hits and misses with replacement gives a binomial number of hits: that is
    drawn directly, with a fixed seed.
    """
    n = len(correct)
    hits = np.random.default_rng(0).binomial(n, correct.mean(), BOOTSTRAP_SAMPLES)
    low, high = np.percentile(hits / n, [2.5, 97.5])
    return [float(low), float(high)]


def reliability(correct: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Expected calibration error over equally wide bins (Guo et al. 2017), and the bins.

    Parameters
    ----------
    correct : ndarray of bool, shape (n,)
    confidence : ndarray of float, shape (n,)
        Probability of the predicted class, 0..1.
    """
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for i in range(CALIBRATION_BINS):
        here = place == i
        if here.any():
            bins.append(
                {
                    "count": int(here.sum()),
                    "confidence": float(confidence[here].mean()),
                    "accuracy": float(correct[here].mean()),
                }
            )
    gaps = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    return {"ece": float(gaps / len(correct)), "bins": bins}


def _roc_auc(y: np.ndarray, probabilities: np.ndarray) -> float | None:
    from sklearn.metrics import roc_auc_score

    k = probabilities.shape[1]
    if len(np.unique(y)) < k or k < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if k == 2:
            return float(roc_auc_score(y, probabilities[:, 1]))
        return float(roc_auc_score(y, probabilities, multi_class="ovr", average="macro"))
