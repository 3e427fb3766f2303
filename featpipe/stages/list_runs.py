"""Every run below a folder, sorted."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.base.joined_spaces import joined_poolings, joined_taps
from featpipe.runs.listing import RunList, RunSummary, find_runs
from featpipe.specs.compare import RunsSpec

if TYPE_CHECKING:
    from featpipe.stages.documents import RunDocument, RunsDocument

_ORDERS: dict[str, Callable[[RunSummary], Any]] = {
    "val": lambda run: (run.head.dataset["name"], *_by_validation(run)),
    "test": lambda run: (1.0 if run.test is None else -run.test.accuracy, *_by_validation(run)),
    "age": lambda run: -run.trained_at,
    "name": lambda run: str(run.folder),
}


def _by_validation(run: RunSummary) -> tuple[float, float]:
    val = run.head.metrics["val"]
    return -val["accuracy"], val["loss"]


@dataclass(frozen=True)
class ListedRuns:
    """The runs below a folder.

    Attributes
    ----------
    folder : Path
    found : RunList
        Its runs in the order asked for.
    """

    folder: Path
    found: RunList

    def as_json(self) -> RunsDocument:
        """The list as the command prints it."""
        return {
            "folder": str(self.folder),
            "runs": [_row(run) for run in self.found.runs],
            "damaged": [{"run": str(p), "reason": why} for p, why in self.found.damaged],
        }


def list_runs(folder: Path, spec: RunsSpec) -> ListedRuns:
    """Find every run in a folder and below it.

    Raises
    ------
    NotFoundError
        There is no such folder.
    """
    found = find_runs(folder)
    return ListedRuns(folder, RunList(sorted(found.runs, key=_ORDERS[spec.sort]), found.damaged))


def _row(run: RunSummary) -> RunDocument:
    spaces, val, test = run.head.spaces, run.head.metrics["val"], run.test
    trained = datetime.datetime.fromtimestamp(run.trained_at, datetime.UTC)
    return {
        "run": str(run.folder),
        "dataset": run.head.dataset["name"],
        "kind": run.head.kind,
        "params": run.head.params,
        "info": run.head.info,
        "backbone": spaces[0].backbone,
        "tap": joined_taps(spaces),
        "pool": joined_poolings(spaces),
        "size": spaces[0].preprocessing.size,
        "space": spaces[0].id,
        "spaces": [space.id for space in spaces],
        "val_accuracy": val["accuracy"],
        "val_loss": val["loss"],
        "test_accuracy": None if test is None else test.accuracy,
        "test_accuracy_ci95": None if test is None else list(test.accuracy_ci95),
        "test_n": None if test is None else test.n,
        "trained": trained.isoformat(timespec="seconds"),
    }
