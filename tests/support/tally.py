"""Counting for the promises of docs/reliability.md: cases tried, failures, and one table.

A test of a promise tries many cases. One that fails is noted and the rest are tried all the
same; at the end the test fails with all that were noted. ``make reliability`` runs the long
form (``--full``) and prints the table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

_SHOWN = 5
_KEY = pytest.StashKey["list[Tally]"]()


@dataclass
class Tally:
    """Cases and failures of one promise's test."""

    promise: str
    tried: str
    cases: int = 0
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def case(self, what: object) -> Iterator[None]:
        """One case; what goes wrong in it is noted under ``what``."""
        self.cases += 1
        try:
            yield
        except Exception as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")


NewTally = Callable[[str, str], Tally]
Scale = Callable[[int, int], int]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="the long form of the reliability tests (many minutes)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_KEY] = []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found: dict[tuple[int, str, str], tuple[int, int]] = {}
    for tally in config.stash[_KEY]:
        # Tests with parameters count into one row.
        key = (int(tally.promise.split()[0]), tally.promise, tally.tried)
        cases, failures = found.get(key, (0, 0))
        found[key] = (cases + tally.cases, failures + len(tally.failures))
    if not found or not config.getoption("full"):
        return
    rows = [(key[1], key[2], f"{n:,}", str(bad)) for key, (n, bad) in sorted(found.items())]
    rows.insert(0, ("promise", "tried", "cases", "failures"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    terminalreporter.section("reliability")
    for promise, tried, cases, failures in rows:
        terminalreporter.write_line(
            f"{promise:<{widths[0]}}  {tried:<{widths[1]}}  "
            f"{cases:>{widths[2]}}  {failures:>{widths[3]}}"
        )


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> Scale:
    """``scale(short, full)``: how many cases to try in this run."""
    full = bool(request.config.getoption("full"))
    return lambda short, long: long if full else short


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[NewTally]:
    """``tally(promise, tried)``: a new row of the table; the test fails if a case of it did."""
    mine: list[Tally] = []

    def new(promise: str, tried: str) -> Tally:
        mine.append(Tally(promise, tried))
        request.config.stash[_KEY].append(mine[-1])
        return mine[-1]

    yield new
    for one in mine:
        assert one.cases, f"{one.promise}: {one.tried}: not one case was tried"
        shown = "\n".join(one.failures[:_SHOWN])
        assert not one.failures, (
            f"{one.promise}: {one.tried}: {len(one.failures)} of {one.cases} cases failed:\n{shown}"
        )
