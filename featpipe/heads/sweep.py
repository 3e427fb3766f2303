"""Sweeps: every combination of a grid is trained at once, the lowest validation loss wins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.base.errors import DataError
from featpipe.heads import head_class, new_head
from featpipe.heads.base import Head, History, HistoryRow

OnProgress = Callable[[int, HistoryRow], None]
"""Called with how many steps of :attr:`SweepPlan.steps` are done, and the best row of them."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep is going to train.

    Attributes
    ----------
    kind : str
    grid : dict
        Values of each hyper-parameter that is varied.
    heads : list of Head
        Untrained, in the grid's order.
    seeds : list of int
        Each head's own.
    """

    kind: str
    grid: dict[str, list[Any]]
    heads: list[Head]
    seeds: list[int]

    @property
    def steps(self) -> int:
        """Steps of its progress: one per head and epoch; 0 where that is not known."""
        return sum(head.progress_steps for head in self.heads)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes
    ----------
    winner : int
        Number of the head with the lowest validation loss, the first of equals.
    history : History
        The winner's.
    trials : list of Trial
        Lowest validation loss (of folds: held-out loss) first, diverged ones last.
    varied : list of str
        Hyper-parameters they differ in; ``seed`` among them where there were several.
    """

    winner: int
    history: History
    trials: list[Trial]
    varied: list[str]

    @property
    def at_edge(self) -> dict[str, str]:
        """Hyper-parameters whose best value is the ``smallest`` or the ``largest`` tried.

        A better one may lie beyond; not below 0, though.
        """
        edges: dict[str, str] = {}
        for name in (name for name in self.varied if name != "seed"):
            best = self.trials[0].params[name]
            tried = [trial.params[name] for trial in self.trials]
            if best == max(tried):
                edges[name] = "largest"
            elif best == min(tried) and best > 0:
                edges[name] = "smallest"
        return edges


@dataclass(frozen=True)
class Trial:
    """One combination.

    Attributes
    ----------
    params : dict
        All hyper-parameters.
    seed : int
    row : HistoryRow or None
        The kept row of its history; None where training diverged.
    axis : {"epoch", "C"}
        What the row's ``at`` is.
    """

    params: dict[str, Any]
    seed: int
    row: HistoryRow | None
    axis: str = "epoch"

    @property
    def loss(self) -> float:
        """What combinations are ranked by; infinite where training diverged."""
        return np.inf if self.row is None else self.row.choosing_loss

    def as_json(self) -> dict[str, Any]:
        """The combination as the table holds it; what a diverged one lacks is null."""
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        row = {} if self.row is None else self.row.as_json(self.axis)
        epoch = row.get("epoch")
        return {
            "params": self.params,
            "seed": self.seed,
            "best_epoch": None if epoch is None else int(epoch),
            **{name: row.get(name) for name in names},
            **({"cv_loss": row["cv_loss"]} if "cv_loss" in row else {}),
            "diverged": self.row is None,
        }


def plan_sweep(kind: str, given: dict[str, Any], *, seed: int, seeds: int = 1) -> SweepPlan:
    """The head's own grid, but for what is given: that is not varied.

    Raises
    ------
    UsageError
        The kind has no such hyper-parameter, or it has an impossible value.
    """
    axes = {k: list(v) for k, v in head_class(kind).sweep_grid.items() if k not in given}
    heads, drawn = [], []
    for values in itertools.product(*axes.values()):
        for number in range(seeds):
            heads.append(new_head(kind, {**given, **dict(zip(axes, values, strict=True))}))
            drawn.append(seed + number)
    return SweepPlan(kind, axes, heads, drawn)


def run_sweep(
    plan: SweepPlan,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
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
        Of the heads, the winner alone is trained when this returns.

    Raises
    ------
    DataError
        Every one diverged.
    """
    for head in plan.heads:
        head.classes_ = np.array(classes)
    if head_class(plan.kind).solves_path:
        return _path(plan, X, y, X_val, y_val, seed=seed, device=device, on_progress=on_progress)
    from featpipe.heads.training.train import train_all

    ends = train_all(
        plan.heads,
        plan.seeds,
        X,
        y,
        X_val,
        y_val,
        seed=seed,
        device=device,
        on_epoch=on_progress,
        only_best=True,
    )
    trials = [
        Trial(head.params, own, None if end.diverged else end.history.kept)
        for head, own, end in zip(plan.heads, plan.seeds, ends, strict=True)
    ]
    ranks = _ranked(trials)
    winner = ranks[0]
    if ends[winner].diverged:
        raise DataError(ends[winner].diverged)
    plan.heads[winner].set_layers(ends[winner].layers)
    varied = [*plan.grid, *(["seed"] if len(set(plan.seeds)) > 1 else [])]
    return Sweep(winner, ends[winner].history, [trials[i] for i in ranks], varied)


def _path(
    plan: SweepPlan,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    on_progress: OnProgress,
    **options: Any,
) -> Sweep:
    """The sweep of a head that tries its values by itself: its path over C."""
    (head,) = plan.heads
    history = head.fit(X, y, X_val, y_val, tick=lambda row: on_progress(1, row), **options)
    trials = [
        Trial({**head.params, history.axis: row.at}, plan.seeds[0], row, history.axis)
        for row in history.rows
    ]
    varied = [history.axis] if len(trials) > 1 else []
    return Sweep(0, history, [trials[i] for i in _ranked(trials)], varied)


def _ranked(trials: list[Trial]) -> list[int]:
    return sorted(range(len(trials)), key=lambda i: trials[i].loss)
