"""The result of a sweep, and the table of it that lies beside the head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.heads.spread import SeedsDocument
from featpipe.heads.sweep import CombinationDocument, Sweep
from featpipe.specs.heads import HeadSpec

if TYPE_CHECKING:
    from featpipe.stages.documents import SweepDocument


@dataclass(frozen=True)
class SweepResult:
    """The combinations a head was chosen from.

    Attributes
    ----------
    table : Path
        File that lists them all.
    varied : list of str
        Hyper-parameters they differ in; ``seed`` among them where there were several.
    rows : list of CombinationDocument
        Lowest validation loss (of folds: ``cv_loss``) first; with several seeds, the combination of
        the lowest mean first.
    at_edge : dict of str to {"smallest", "largest"}
        Hyper-parameters whose best value lies at an edge of what was tried.
    by_seed : list of SeedsDocument
        Each combination over its seeds, in the same order; empty with one seed.
    """

    table: Path
    varied: list[str]
    rows: list[CombinationDocument]
    at_edge: dict[str, str]
    by_seed: list[SeedsDocument]

    def as_json(self) -> SweepDocument:
        """What the command prints of it; the rest is in the table."""
        return {
            "trained": len(self.rows),
            "table": str(self.table),
            "best": self.rows[0],
            "at_edge": self.at_edge,
        }


def sweep_result(path: Path, sweep: Sweep) -> SweepResult:
    """The result of a sweep whose table will lie at ``path``."""
    rows = [trial.as_json() for trial in sweep.trials]
    return SweepResult(path, sweep.varied, rows, sweep.at_edge, sweep.by_seed)


def sweep_table(result: SweepResult, dataset: str, spec: HeadSpec) -> dict[str, Any]:
    """The document that lists every combination."""
    means = {"by_seed": result.by_seed} if result.by_seed else {}
    return {
        "kind": spec.head,
        "dataset": dataset,
        "seed": spec.seed,
        "varied": result.varied,
        **means,
        "combinations": result.rows,
    }
