"""Outliers: pictures whose nearest neighbours are far away.

The score is the mean distance to the k nearest neighbours: F. Angiulli, C. Pizzuti: Fast Outlier
Detection in High Dimensional Spaces. PKDD 2002.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FENCE = 1.5
"""Interquartile ranges above the upper quartile beyond which Tukey calls a value outside."""


def outlier_scores(similarity: NDArray[np.float32]) -> NDArray[np.float64]:
    """Half the mean cosine distance to the nearest neighbours, 0 to 1.

    Parameters
    ----------
    similarity : ndarray of float32, shape (n, k)

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    if not similarity.size:
        return np.zeros(len(similarity))
    return (1 - similarity.mean(axis=1, dtype=np.float64)) / 2


def outside(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Rows whose score lies far above the others', the highest first.

    Beyond the inner fence of J. W. Tukey: Exploratory Data Analysis, 1977.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    low, high = np.quantile(scores, [0.25, 0.75])
    rows = np.flatnonzero(scores > high + _FENCE * (high - low))
    return rows[np.argsort(-scores[rows], kind="stable")]
