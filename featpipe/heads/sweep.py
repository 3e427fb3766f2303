"""Sweeps: all combinations of a grid are trained, and the lowest validation loss wins.

Light heads are trained together, networks one after another.

With several seeds, the combination of the lowest mean loss wins, and of it the best seed is kept.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError
from featpipe.heads import head_class, new_head
from featpipe.heads.base import Head, History, HistoryRow
from featpipe.heads.spread import SeedsDocument, over_seeds

if TYPE_CHECKING:
    from featpipe.heads.training.loop import TrainedState

OnProgress = Callable[[int, HistoryRow], None]
"""Callback that receives the number of newly finished steps and the best row among them."""


class CombinationDocument(TypedDict):
    """One combination of a sweep; losses and accuracies are null where training diverged."""

    params: dict[str, float | int | str | None]
    seed: int
    best_epoch: int | None
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    cv_loss: NotRequired[float]
    diverged: bool


@dataclass(frozen=True)
class SweepPlan:
    """The heads that a sweep will train.

    Attributes
    ----------
    kind : str
        Kind of all its heads.
    grid : dict
        Values of each varied hyper-parameter.
    heads : list of Head
        Untrained, in the grid's order.
    seeds : list of int
        Seed of each head; those of one combination follow each other.
    """

    kind: str
    grid: dict[str, list[Any]]
    heads: list[Head]
    seeds: list[int]

    @property
    def combinations(self) -> list[list[int]]:
        """Indices of the heads of each combination, one for each seed."""
        each = len(set(self.seeds))
        return [list(range(i, i + each)) for i in range(0, len(self.heads), each)]

    @property
    def steps(self) -> int:
        """Total number of progress steps: one per head and epoch; 0 if unknown."""
        return sum(head.progress_steps for head in self.heads)


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes
    ----------
    winner : int
        Index of the best head of the best combination; of equals, the first.
    history : History
        History of the winner.
    trials : list of Trial
        Combination by combination, that of the lowest mean :attr:`Trial.loss` first and those
        with diverged seeds last; in a combination, the lowest loss first.
    varied : list of str
        Hyper-parameters in which trials differ, and ``seed`` if there were several seeds.
    by_seed : list of SeedsDocument
        The combinations in the same order; empty with one seed.
    """

    winner: int
    history: History
    trials: list[Trial]
    varied: list[str]
    by_seed: list[SeedsDocument] = field(default_factory=list)

    @property
    def rank(self) -> tuple[int, float]:
        """What its best combination is compared by with that of another sweep: lower is better."""
        if self.by_seed:
            return _seeds_rank(self.by_seed[0])
        return (int(self.trials[0].row is None), self.trials[0].loss)

    @property
    def at_edge(self) -> dict[str, str]:
        """Hyper-parameters whose best value is the ``smallest`` or the ``largest`` tried.

        A better value may lie outside the grid. A best value of 0, and a k of 1, has none below it.
        """
        edges: dict[str, str] = {}
        for name in (name for name in self.varied if name != "seed"):
            best = self.trials[0].params[name]
            if isinstance(best, str):
                continue
            tried = [trial.params[name] for trial in self.trials]
            if best == max(tried):
                edges[name] = "largest"
            elif best == min(tried) and best > (1 if name == "k" else 0):
                edges[name] = "smallest"
        return edges


@dataclass(frozen=True)
class Trial:
    """One combination of hyper-parameters and seed.

    Attributes
    ----------
    params : dict
        All hyper-parameters.
    seed : int
        Seed of this head.
    row : HistoryRow or None
        The kept row of its history; None if training diverged.
    axis : {"epoch", "C", "k"}
        Meaning of the row's ``at``.
    """

    params: dict[str, Any]
    seed: int
    row: HistoryRow | None
    axis: str = "epoch"

    @property
    def loss(self) -> float:
        """The loss that ranks trials; infinite if training diverged."""
        return np.inf if self.row is None else self.row.selection_loss

    def as_json(self) -> CombinationDocument:
        """The combination as the table holds it; what a diverged one lacks is null."""
        row = self.row
        document: CombinationDocument = {
            "params": self.params,
            "seed": self.seed,
            "best_epoch": int(row.at) if row is not None and self.axis == "epoch" else None,
            "train_loss": None if row is None else row.train_loss,
            "train_accuracy": None if row is None else row.train_accuracy,
            "val_loss": None if row is None else row.val_loss,
            "val_accuracy": None if row is None else row.val_accuracy,
            "diverged": row is None,
        }
        if row is not None and row.cv_loss is not None:
            document["cv_loss"] = row.cv_loss
        return document


def plan_sweep(kind: str, given: dict[str, Any], *, seed: int, seeds: int = 1) -> SweepPlan:
    """All combinations of the kind's default grid; ``given`` hyper-parameters are fixed.

    Parameters
    ----------
    kind : str
    given : dict
        Value of each fixed hyper-parameter.
    seed : int
        Seed of the first head of each combination.
    seeds : int
        Heads per combination, with seeds ``seed``, ``seed`` + 1, …

    Raises
    ------
    UsageError
        The kind has no such hyper-parameter, or a value is out of range.
    """
    axes = {name: list(values) for name, values in head_class(kind).sweep_axes(given).items()}
    heads, head_seeds = [], []
    for values in itertools.product(*axes.values()):
        for number in range(seeds):
            heads.append(new_head(kind, {**given, **dict(zip(axes, values, strict=True))}))
            head_seeds.append(seed + number)
    return SweepPlan(kind, axes, heads, head_seeds)


def run_sweep(
    plan: SweepPlan,
    X: Any,
    y: NDArray[np.int64],
    X_val: Any,
    y_val: NDArray[np.int64],
    *,
    classes: list[str],
    seed: int,
    device: str,
    on_progress: OnProgress,
) -> Sweep:
    """Train all heads of a plan.

    Returns
    -------
    Sweep
        Only the winning head of ``plan`` has learned tensors afterwards.

    Raises
    ------
    DataError
        The training of every head diverged.
    """
    for head in plan.heads:
        head.classes_ = np.array(classes)
    if head_class(plan.kind).solves_path:
        return _path(plan, X, y, X_val, y_val, seed=seed, device=device, on_progress=on_progress)
    from featpipe.heads.training.fit import lowest, train_all

    data = (X, y, X_val, y_val)
    options: dict[str, Any] = {"seed": seed, "device": device}
    one_by_one = not head_class(plan.kind).trains_together
    leaders = functools.partial(_leaders, plan) if one_by_one else lowest
    outcomes = train_all(
        plan.heads, plan.seeds, *data, on_epoch=on_progress, leaders=leaders, **options
    )
    best = _ranked(plan, outcomes)[0]
    winner = min(best, key=lambda i: (outcomes[i].lowest, i))
    if outcomes[winner].diverged:
        raise DataError(outcomes[winner].diverged)
    if not outcomes[winner].layers:
        # The layers that were kept are those of a lucky seed of a combination that is worse on
        # average. Keeping every head's layers could fill the memory, so these are trained again.
        heads, seeds = [plan.heads[i] for i in best], [plan.seeds[i] for i in best]
        again = train_all(heads, seeds, *data, on_epoch=lambda *_: None, leaders=lowest, **options)
        for i, outcome in zip(best, again, strict=True):
            outcomes[i] = outcome
        winner = min(best, key=lambda i: (outcomes[i].lowest, i))
    plan.heads[winner].set_layers(outcomes[winner].layers)
    return _summary(plan, outcomes, winner)


def merged_sweeps(sweeps: Sequence[tuple[dict[str, str], Sweep]]) -> Sweep:
    """One table of several sweeps of one grid, each on other features.

    Parameters
    ----------
    sweeps : sequence of (dict, Sweep)
        What tells the features apart, added to the hyper-parameters of each trial; the sweep.
    """
    trials: list[list[Trial]] = []
    by_seed: list[SeedsDocument] = []
    for fields, sweep in sweeps:
        each = len({trial.seed for trial in sweep.trials}) if sweep.by_seed else 1
        named = [replace(trial, params={**fields, **trial.params}) for trial in sweep.trials]
        trials += [named[i : i + each] for i in range(0, len(named), each)]
        by_seed += [{**row, "params": {**fields, **row["params"]}} for row in sweep.by_seed]
    ranks = [_seeds_rank(row) for row in by_seed] or [
        (int(one[0].row is None), one[0].loss) for one in trials
    ]
    order = sorted(range(len(trials)), key=ranks.__getitem__)
    _, best = min(sweeps, key=lambda part: part[1].rank)
    return Sweep(
        best.winner,
        best.history,
        [trial for i in order for trial in trials[i]],
        [*sweeps[0][0], *dict.fromkeys(name for _, sweep in sweeps for name in sweep.varied)],
        [by_seed[i] for i in order] if by_seed else [],
    )


def _seeds_rank(row: SeedsDocument) -> tuple[int, float]:
    return row["diverged"], np.inf if row["val_loss"] is None else row["val_loss"]["mean"]


def _ranked(plan: SweepPlan, outcomes: Sequence[TrainedState]) -> list[list[int]]:
    """Combinations by how many of their seeds diverged, then by the mean loss of the others."""
    return sorted(plan.combinations, key=lambda one: _rank([outcomes[i] for i in one]))


def _rank(outcomes: Sequence[TrainedState]) -> tuple[int, float]:
    losses = [outcome.lowest for outcome in outcomes if not outcome.diverged]
    return len(outcomes) - len(losses), float(np.mean(losses)) if losses else np.inf


def _leaders(plan: SweepPlan, ends: Mapping[int, TrainedState]) -> set[int]:
    """The best heads of the best finished combination and of the one in training.

    Heads that are trained one after another finish combination by combination, so these are all
    whose layers can still be wanted.
    """
    begun = [one for one in ([i for i in c if i in ends] for c in plan.combinations) if one]
    *finished, last = begun
    first = min(finished, key=lambda one: _rank([ends[i] for i in one]), default=last)
    return {min(one, key=lambda i: (ends[i].lowest, i)) for one in (first, last)}


def _summary(plan: SweepPlan, outcomes: Sequence[TrainedState], winner: int) -> Sweep:
    trials = [
        Trial(head.params, head_seed, None if outcome.diverged else outcome.history.kept)
        for head, head_seed, outcome in zip(plan.heads, plan.seeds, outcomes, strict=True)
    ]
    ranked = [sorted(one, key=lambda i: trials[i].loss) for one in _ranked(plan, outcomes)]
    has_seeds = len(set(plan.seeds)) > 1
    return Sweep(
        winner,
        outcomes[winner].history,
        [trials[i] for i in itertools.chain(*ranked)],
        [*plan.grid, *(["seed"] if has_seeds else [])],
        [over_seeds(trials[one[0]].params, [trials[i].row for i in one]) for one in ranked]
        if has_seeds
        else [],
    )


def _path(
    plan: SweepPlan,
    X: Any,
    y: NDArray[np.int64],
    X_val: Any,
    y_val: NDArray[np.int64],
    *,
    on_progress: OnProgress,
    **options: Any,
) -> Sweep:
    """The sweep of a head whose single fit tries all values of C or k."""
    (head,) = plan.heads
    history = head.fit(X, y, X_val, y_val, tick=lambda row: on_progress(1, row), **options)
    trials = [
        Trial({**head.params, history.axis: row.at}, plan.seeds[0], row, history.axis)
        for row in history.rows
    ]
    varied = [history.axis] if len(trials) > 1 else []
    return Sweep(0, history, sorted(trials, key=lambda trial: trial.loss), varied)
