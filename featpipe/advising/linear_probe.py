"""Linear heads that measure rows: how well the rows tell the classes apart."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets.shots import shot_ranks
from featpipe.heads import new_head

CURVE_SHARES = (0.25, 0.5)
"""Shares of train at which the learning curve is drawn, besides all of it."""
CURVE_DRAWS = 3
"""How often the pictures of a share are chosen: one choice alone may be a lucky one."""


@dataclass(frozen=True)
class Probe:
    """A linear head and its answers to the validation pictures.

    Attributes
    ----------
    C : float
        The one of the lowest validation loss.
    train_accuracy : float
        0 to 1.
    correct : ndarray of bool, shape (n,)
        Whether each validation picture is classified correctly.
    loss : ndarray of float64, shape (n,)
        Cross-entropy of each, nats.
    warnings : list of str
        What casts doubt on the head.
    seconds : float
    """

    C: float
    train_accuracy: float
    correct: NDArray[np.bool_]
    loss: NDArray[np.float64]
    warnings: list[str]
    seconds: float


@dataclass(frozen=True)
class LabelledRows:
    """Rows and classes (n,) to train on and to validate with; rows may be memory-mapped."""

    X: Any
    y: NDArray[np.int64]
    X_val: Any
    y_val: NDArray[np.int64]


def probe(data: LabelledRows, classes: int, part: NDArray[np.intp] | None = None) -> Probe:
    """Fit ``logistic``, which is exact and has no learning rate to choose.

    Parameters
    ----------
    data : LabelledRows
    classes : int
    part : ndarray of int64, optional
        Numbers of the training rows to use; all by default.
    """
    started = time.perf_counter()
    X, y = data.X, data.y
    if part is not None:
        X, y = (X.select(part) if hasattr(X, "select") else X[part]), y[part]
    head = new_head("logistic", {})
    head.classes_ = np.arange(classes).astype(str)
    with _without_notes():
        fit = head.fit(X, y, data.X_val, data.y_val, seed=0, device="cpu", tick=lambda _: None)
    found = head.predict_proba(data.X_val)
    truth = found[np.arange(len(found)), data.y_val]
    return Probe(
        C=fit.kept.at,
        train_accuracy=fit.kept.train_accuracy,
        correct=found.argmax(axis=1) == data.y_val,
        loss=-np.log(np.maximum(truth, np.finfo(np.float64).eps)),
        warnings=fit.warnings,
        seconds=time.perf_counter() - started,
    )


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Nine fits would each say which values of C they tried; warnings still come through."""

    def is_warning(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    logger = logging.getLogger("featpipe")
    logger.addFilter(is_warning)
    try:
        yield
    finally:
        logger.removeFilter(is_warning)


def share_of(
    ids: NDArray[np.uint8], y: NDArray[np.int64], share: float, seed: int
) -> NDArray[np.intp]:
    """Numbers of a share of the training rows, at least one of each class, chosen by content.

    The pictures of a share are among those of every larger one.

    Parameters
    ----------
    ids : ndarray of uint8, shape (n, 32)
    y : ndarray of int64, shape (n,)
    share : float
        Above 0, below 1; of each class's different pictures.
    seed : int
    """
    ranks = shot_ranks(ids, y, seed)
    different = np.bincount(y[ranks < len(y)])
    wanted = np.maximum(1, np.ceil(share * different).astype(np.int64))
    return np.flatnonzero(ranks < wanted[y])


def at_most(
    ids: NDArray[np.uint8], y: NDArray[np.int64], pictures: int, seed: int
) -> NDArray[np.intp]:
    """Numbers of all rows, or of a share that is no larger than ``pictures`` plus a class each."""
    if len(y) <= pictures:
        return np.arange(len(y))
    return share_of(ids, y, pictures / len(y), seed)


def mean_interval(values: NDArray[np.float64]) -> list[float]:
    """95 % interval of a mean by the central limit theorem; the mean alone if there is one value.

    Of differences on the same pictures, it is the paired interval.
    """
    mean = float(values.mean())
    if len(values) < 2:
        return [mean, mean]
    half = 1.96 * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    return [mean - half, mean + half]
