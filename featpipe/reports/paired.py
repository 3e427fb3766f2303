"""Paired tests: two heads' answers to the very same pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mcnemar(only_a_right: int, only_b_right: int) -> float:
    """Two-sided p-value of McNemar's exact test (McNemar 1947).

    Pictures that both heads get right, or both get wrong, say nothing about which is better. If
    the heads were equally good, each of the others would be as likely to be got right by one as by
    the other: their number is binomial with probability 1/2.

    Parameters
    ----------
    only_a_right, only_b_right : int
        Pictures that only one of the two heads got right.
    """
    from scipy.stats import binomtest

    n = only_a_right + only_b_right
    return 1.0 if n == 0 else float(binomtest(only_a_right, n, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the order given.

    With many pairs, some differ by chance. Rejecting where a corrected value is below 5 % errs in
    at most 5 % of all comparisons of equally good heads.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return corrected.tolist()
