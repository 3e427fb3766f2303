"""Paired tests agree with their definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featpipe.reports.paired import holm, mcnemar

counts = st.integers(0, 40)


@settings(deadline=None)  # the first call imports SciPy
@given(counts, counts)
def test_mcnemar_is_the_two_sided_binomial_probability(a: int, b: int) -> None:
    n = a + b
    chance = [math.comb(n, k) / 2**n for k in range(n + 1)]
    as_unlikely = sum(p for p in chance if p <= chance[a] * (1 + 1e-9))
    assert mcnemar(a, b) == pytest.approx(as_unlikely, abs=1e-12)


@settings(deadline=None)  # the first call imports SciPy
@given(counts, counts)
def test_mcnemar_does_not_care_which_head_is_named_first(a: int, b: int) -> None:
    assert mcnemar(a, b) == pytest.approx(mcnemar(b, a))


def test_heads_that_never_differ_have_p_1() -> None:
    assert mcnemar(0, 0) == 1.0


def test_holm_multiplies_the_smallest_by_the_number_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_lies_between_the_value_and_bonferroni(values: list[float]) -> None:
    for value, corrected in zip(values, holm(values), strict=True):
        assert value - 1e-12 <= corrected <= min(1.0, value * len(values)) + 1e-12
