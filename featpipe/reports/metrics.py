"""Metrics of class probabilities against true classes: scikit-learn's, and calibration."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from featpipe.reports.documents import Calibration, CalibrationBin, Metrics

CALIBRATION_BINS = 15
BOOTSTRAP_SAMPLES = 10_000


def score(y: NDArray[np.int64], probabilities: NDArray[np.float64], classes: list[str]) -> Metrics:
    """All metrics of one evaluation, ready for JSON.

    Parameters
    ----------
    y : ndarray of int64, shape (n,)
        True class indices.
    probabilities : ndarray of float64, shape (n, classes)
        Rows sum to 1.
    classes : list of str
        Class names by index.

    Returns
    -------
    Metrics
        ``n, accuracy, accuracy_ci95, balanced_accuracy, macro_f1, baseline_accuracy, log_loss,
        ece, roc_auc, per_class, confusion, calibration``. ``balanced_accuracy`` is the mean
        recall and ``macro_f1`` the mean F1, of the classes that have pictures.
        ``baseline_accuracy`` is the share of the largest class: the accuracy of always answering
        it. ``roc_auc`` is None if a class has no picture or there is only one class;
        with more than two classes it is the unweighted one-against-rest mean. Rows of
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
        "balanced_accuracy": float(recall[support > 0].mean()),
        "macro_f1": float(f1[support > 0].mean()),
        "baseline_accuracy": float(support.max() / len(y)),
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


def bootstrap_interval(correct: NDArray[np.bool_]) -> list[float]:
    """95 % percentile bootstrap interval of the accuracy (Efron 1979).

    Resampling n predictions with replacement gives a binomial number of correct ones, which is
    drawn directly, with a fixed seed.
    """
    n = len(correct)
    hits = np.random.default_rng(0).binomial(n, correct.mean(), BOOTSTRAP_SAMPLES)
    low, high = np.percentile(hits / n, [2.5, 97.5])
    return [float(low), float(high)]


def reliability(correct: NDArray[np.bool_], confidence: NDArray[np.float64]) -> Calibration:
    """Expected calibration error over bins of equal width (Guo et al. 2017), and the bins.

    Parameters
    ----------
    correct : ndarray of bool, shape (n,)
        Whether each prediction is correct.
    confidence : ndarray of float64, shape (n,)
        Probability of the predicted class, 0 to 1.
    """
    bin_index = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins: list[CalibrationBin] = []
    for i in range(CALIBRATION_BINS):
        in_bin = bin_index == i
        if in_bin.any():
            bins.append(
                {
                    "count": int(in_bin.sum()),
                    "confidence": float(confidence[in_bin].mean()),
                    "accuracy": float(correct[in_bin].mean()),
                }
            )
    gaps = sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in bins)
    return {"ece": float(gaps / len(correct)), "bins": bins}


def _roc_auc(y: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float | None:
    from sklearn.metrics import roc_auc_score

    k = probabilities.shape[1]
    if len(np.unique(y)) < k or k < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if k == 2:
            return float(roc_auc_score(y, probabilities[:, 1]))
        return float(roc_auc_score(y, probabilities, multi_class="ovr", average="macro"))
