"""Probable label errors by confident learning.

C. Northcutt, L. Jiang, I. Chuang: Confident Learning: Estimating Uncertainty in Dataset Labels.
Journal of Artificial Intelligence Research 70 (2021); written anew from the paper. Class
probabilities of each picture come from a head that has not seen it. The threshold of class j is
the mean probability of j among the pictures labelled j. A picture that reaches thresholds is
counted as one of the most probable class among them; so counts of (label, class), the confident
joint, say how many pictures labelled i are of class j. As many are taken, those with the largest
margin between the two probabilities: "prune by noise rate".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import HistoryRow
from featpipe.heads.logistic import LogisticHead, stratified_folds


@dataclass(frozen=True)
class LabelErrors:
    """Pictures with probably wrong labels, the surest first.

    Attributes
    ----------
    rows : ndarray of int64, shape (m,)
    suggested : ndarray of int64, shape (m,)
        The class that each probably is.
    """

    rows: NDArray[np.int64]
    suggested: NDArray[np.int64]


def out_of_fold(
    X: NDArray[np.float32],
    y: NDArray[np.int64],
    group: NDArray[np.int64],
    *,
    folds: int,
    seed: int,
    tick: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Class probabilities of each row, by logistic regression on the folds that lack it.

    Rows of one group, such as near duplicates, share a fold: a copy under the same wrong label
    would vouch for it. The first fold chooses C, for all.

    Parameters
    ----------
    X : ndarray of float32, shape (n, d)
    y : ndarray of int64, shape (n,)
        Classes 0 to k - 1.
    group : ndarray of int64, shape (n,)
    folds : int
    seed : int
    tick : callable
        Called after each fold.

    Returns
    -------
    ndarray of float64, shape (n, k)
        NaN where the other folds have no row of the row's class.
    """
    fold = _grouped_folds(y, group, folds, seed)
    probabilities = np.full((len(y), int(y.max()) + 1), np.nan)
    chosen: float | None = None
    for number in range(folds):
        rest = np.flatnonzero(fold != number)
        classes, labels = np.unique(y[rest], return_inverse=True)
        held = np.flatnonzero((fold == number) & np.isin(y, classes))
        if len(held) and len(classes) > 1:
            head = LogisticHead(C=chosen)
            head.classes_ = classes.astype(str)
            truth = np.searchsorted(classes, y[held])
            history = head.fit(
                *(X[rest], labels, X[held], truth), seed=seed, device="cpu", tick=_ignore
            )
            chosen = history.kept.at
            probabilities[held] = 0
            probabilities[np.ix_(held, classes)] = head.predict_proba(X[held])
        tick()
    return probabilities


def why_not(y: NDArray[np.int64], group: NDArray[np.int64], folds: int) -> str:
    """Why labels cannot be judged by :func:`out_of_fold`; empty where they can."""
    if len(np.unique(y)) < 2:
        return "that takes labelled pictures of two classes"
    sizes = np.bincount(y[np.unique(group, return_index=True)[1]])
    enough = int(sizes[sizes > 1].sum())
    if enough < folds:
        return f"{folds} folds take as many different pictures in classes of several, not {enough}"
    return ""


def _ignore(row: HistoryRow) -> None:
    """Nobody watches the fits."""


def _grouped_folds(
    y: NDArray[np.int64], group: NDArray[np.int64], folds: int, seed: int
) -> NDArray[np.int64]:
    """:func:`stratified_folds` of the first row of each group, for all rows of it."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    return stratified_folds(y[first], folds, seed)[number]


def find_label_errors(probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> LabelErrors:
    """Prune by noise rate.

    Parameters
    ----------
    probabilities : ndarray of float64, shape (n, k)
        Out of fold; rows of NaN are not judged.
    y : ndarray of int64, shape (n,)
        Classes as labelled.
    """
    judged = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    p, given = probabilities[judged], y[judged]
    joint = confident_joint(p, given)
    own = p[np.arange(len(p)), given]
    margins = np.full(len(p), -np.inf)
    suggested = given.copy()
    for i, j in np.argwhere(joint >= 1).tolist():
        if i == j:
            continue
        members = np.flatnonzero(given == i)
        margin = p[members, j] - own[members]
        taken = np.argsort(-margin, kind="stable")[: joint[i, j]]
        taken = taken[margin[taken] > margins[members[taken]]]
        margins[members[taken]], suggested[members[taken]] = margin[taken], j
    # A picture that is still more probably what its label says is not called an error.
    found = np.flatnonzero(margins > 0)
    found = found[np.argsort(-margins[found], kind="stable")]
    return LabelErrors(judged[found], suggested[found])


def confident_joint(probabilities: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Estimated number of pictures labelled i (row) that are of class j (column), (k, k)."""
    n, k = probabilities.shape
    own = probabilities[np.arange(n), y]
    counts = np.bincount(y, minlength=k)
    threshold = np.bincount(y, own, minlength=k) / np.maximum(counts, 1)
    threshold[counts == 0] = np.inf
    reached = probabilities >= threshold
    likeliest = np.where(reached, probabilities, -1.0).argmax(axis=1)
    confident = reached.any(axis=1)
    joint = np.zeros((k, k))
    np.add.at(joint, (y[confident], likeliest[confident]), 1)
    # Not every picture reaches a threshold: each row is scaled to the number that carry its label.
    total = joint.sum(axis=1)
    scaled = joint * (counts / np.maximum(total, 1))[:, None]
    return np.round(scaled).astype(np.int64)
