"""What training a head gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.base.views import ViewsDocument
from featpipe.heads.base import HistoryRow, StartDocument
from featpipe.runs.trained_head import SplitScores
from featpipe.stages.n_shot import NShotResult
from featpipe.stages.sweep_result import SweepResult

if TYPE_CHECKING:
    from featpipe.stages.documents import CalibrationDocument, TrainDocument


@dataclass(frozen=True)
class TrainResult:
    """A trained head.

    Attributes
    ----------
    head : Path
        Its run folder.
    kind : str
    classes : list of str
    space : str
        Id of its feature space; of several, the first.
    spaces : list of str
        Ids of all its feature spaces, whose rows lie side by side.
    train, val : SplitScores
        Of the kept state.
    best : HistoryRow
        The kept row of the history.
    axis : {"epoch", "C", "k"}
        What the row's ``at`` is.
    seconds : float
    epoch_seconds : float, optional
        Median time of an epoch's training, without validation; of all heads that were trained
        together. None where there were no epochs.
    sweep : SweepResult, optional
        What it was chosen from.
    n_shot : NShotResult, optional
        Scores of heads of a few pictures per class, of which it is one.
    calibration : CalibrationDocument, optional
        Its temperature, and validation scores without and with it.
    start : StartDocument, optional
        Which layers of a suffix started from the backbone's weights, and which were drawn.
    views : ViewsDocument, optional
        The views that its epochs drew from; None where it was trained without.
    warnings : list of str
        What casts doubt on it; also logged, and kept in its run folder.
    """

    head: Path
    kind: str
    classes: list[str]
    space: str
    spaces: list[str]
    train: SplitScores
    val: SplitScores
    best: HistoryRow
    axis: str
    seconds: float
    epoch_seconds: float | None = None
    sweep: SweepResult | None = None
    n_shot: NShotResult | None = None
    calibration: CalibrationDocument | None = None
    start: StartDocument | None = None
    views: ViewsDocument | None = None
    warnings: list[str] = field(default_factory=list)

    def as_json(self) -> TrainDocument:
        """The result as the command prints it."""
        document: TrainDocument = {
            "head": str(self.head),
            "kind": self.kind,
            "classes": self.classes,
            "space": self.space,
            "spaces": self.spaces,
            "train": self.train,
            "val": self.val,
            "best": self.best.as_json(self.axis),
            "seconds": self.seconds,
            "views": self.views,
            "warnings": self.warnings,
        }
        if self.epoch_seconds is not None:
            document["epoch_seconds"] = self.epoch_seconds
        if self.sweep is not None:
            document["sweep"] = self.sweep.as_json()
            if self.sweep.by_seed:
                document["seeds"] = self.sweep.by_seed[0]
        if self.n_shot is not None:
            document["n_shot"] = self.n_shot.as_json()
        if self.calibration is not None:
            document["calibration"] = self.calibration
        if self.start is not None:
            document["start"] = self.start
        return document
