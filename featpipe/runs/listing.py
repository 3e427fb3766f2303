"""All runs below a folder, with their scores, read from their descriptions alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.base.errors import DamageError, FeatpipeError, NotFoundError, StorageError
from featpipe.base.numbers import is_finite
from featpipe.runs.run import Run
from featpipe.runs.trained_head import HeadDescription

MAX_DEPTH = 4
"""Folders below the one asked for in which runs are looked for."""


@dataclass(frozen=True)
class TestScores:
    """How a head did on the test split of its own data set.

    Attributes
    ----------
    n : int
        Pictures.
    accuracy : float
    accuracy_ci95 : tuple of float
        95 % interval of the accuracy.
    """

    __test__ = False  # pytest would take it for tests

    n: int
    accuracy: float
    accuracy_ci95: tuple[float, float]


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes
    ----------
    folder : Path
    head : HeadDescription
    test : TestScores or None
        None where this very head has not been evaluated on test.
    trained_at : float
        When the head was written, seconds since 1970.
    """

    folder: Path
    head: HeadDescription
    test: TestScores | None
    trained_at: float


@dataclass(frozen=True)
class RunList:
    """The runs below a folder.

    Attributes
    ----------
    runs : list of RunSummary
        By the names of their folders.
    damaged : list of (Path, str)
        Folders with files of a head that cannot be read, and why.
    """

    runs: list[RunSummary]
    damaged: list[tuple[Path, str]]


def find_runs(folder: Path) -> RunList:
    """Find all runs in a folder and up to ``MAX_DEPTH`` folders below it; links are not followed.

    Raises
    ------
    NotFoundError
        There is no such folder.
    """
    if not folder.is_dir():
        raise NotFoundError(
            f"expected a folder of runs at {folder}, found none; 'featpipe train-head NAME' makes "
            "one, or name another folder"
        )
    found = RunList([], [])
    for run in _runs_below(folder, MAX_DEPTH):
        try:
            found.runs.append(_summary(run))
        except FeatpipeError as error:
            found.damaged.append((run.folder, str(error)))
    return found


def _runs_below(folder: Path, depth: int) -> Iterator[Run]:
    run = Run(folder)
    try:
        if run.has_head:
            yield run
            return
        if depth == 0:
            return
        inner = sorted(entry.name for entry in os.scandir(folder) if _is_folder(entry))
    except OSError:
        # A folder that may not be listed holds no run that could be read.
        return
    for name in inner:
        yield from _runs_below(folder / name, depth - 1)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _summary(run: Run) -> RunSummary:
    head = run.load_description()
    try:
        trained_at = run.head_path.stat().st_mtime
        test = _test_scores(run, head, trained_at)
    except OSError as error:
        raise StorageError(f"expected to read {run.folder}, but: {error.strerror}") from error
    return RunSummary(run.folder, head, test, trained_at)


def _test_scores(run: Run, head: HeadDescription, trained_at: float) -> TestScores | None:
    document = run.load_metrics()
    if document is None or not _is_of(document, run, head, trained_at):
        return None
    try:
        low, high = document["accuracy_ci95"]
        n, accuracy = document["n"], document["accuracy"]
        if not all(map(is_finite, (n, accuracy, low, high))):
            raise ValueError("scores that are no numbers")
        return TestScores(int(n), float(accuracy), (float(low), float(high)))
    except (LookupError, TypeError, ValueError) as error:
        raise DamageError(
            f"expected metrics in {run.metrics_path()}, found: {error!r}; evaluate the head again"
        ) from error


def _is_of(document: dict[str, Any], run: Run, head: HeadDescription, trained_at: float) -> bool:
    """Whether metrics are this head's own on test; a head that was replaced had others."""
    if document.get("split") != "test" or document.get("dataset") != head.dataset["name"]:
        return False
    if "head_sha256" in document:
        return bool(document["head_sha256"] == head.digest)
    # The first edition did not name the head.
    return run.metrics_path().stat().st_mtime >= trained_at
