"""The counting itself: a failing case is noted, and makes its test fail."""

from __future__ import annotations

import pytest
from support.tally import Tally


def test_a_failing_case_is_noted_and_the_rest_is_tried() -> None:
    tally = Tally("0 Counting", "cases")
    for number in range(3):
        with tally.case(number):
            assert number != 1, "one is wrong"
    assert tally.cases == 3
    assert len(tally.failures) == 1
    assert tally.failures[0].startswith("1: AssertionError: one is wrong")


def test_an_interruption_is_no_failure_of_a_case() -> None:
    tally = Tally("0 Counting", "cases")
    with pytest.raises(KeyboardInterrupt), tally.case(0):
        raise KeyboardInterrupt
