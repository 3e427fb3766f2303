"""Sweeps: every combination of a grid is trained at once, the lowest validation loss wins."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.base.errors import DataError
from featpipe.heads import head_class, new_head
from featpipe.heads.base import Head, History

Told = Callable[[int, dict[str, float]], None]
"""Called with how many steps of :attr:`Plan.steps` are behind, and the best row of them."""


@dataclass(frozen=True)
class Plan:
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
        """Steps of its progress: one per head and epoch, or 0 where nobody knows."""
        return sum(getattr(head, "epochs", 0) for head in self.heads)


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
    row : dict
        The kept row of its history: losses, accuracies and the epoch (or C); empty where
        training diverged.
    """

    params: dict[str, Any]
    seed: int
    row: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """The combination as the table holds it; what a diverged one lacks is null."""
        names = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        epoch = self.row.get("epoch")
        return {
            "params": self.params,
            "seed": self.seed,
            "best_epoch": None if epoch is None else int(epoch),
            **{name: self.row.get(name) for name in names},
            **({"cv_loss": self.row["cv_loss"]} if "cv_loss" in self.row else {}),
            "diverged": not self.row,
        }


def plan_sweep(kind: str, given: dict[str, Any], *, seed: int, seeds: int = 1) -> Plan:
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
    return Plan(kind, axes, heads, drawn)


def run_sweep(
    plan: Plan,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    classes: list[str],
    seed: int,
    device: str,
    told: Told,
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
    if not head_class(plan.kind).sweep_grid:
        return _path(plan, X, y, X_val, y_val, seed=seed, device=device, told=told)
    from featpipe.heads.training.loop import train_all

    outcomes = train_all(
        plan.heads,
        plan.seeds,
        X,
        y,
        X_val,
        y_val,
        seed=seed,
        device=device,
        told=told,
        only_best=True,
    )
    trials = [
        Trial(head.params, own, {} if o.diverged else o.history.rows[o.history.best])
        for head, own, o in zip(plan.heads, plan.seeds, outcomes, strict=True)
    ]
    ranks = _ranked(trials)
    winner = ranks[0]
    if outcomes[winner].diverged:
        raise DataError(outcomes[winner].diverged)
    plan.heads[winner].set_layers(outcomes[winner].layers)
    varied = [*plan.grid, *(["seed"] if len(set(plan.seeds)) > 1 else [])]
    return Sweep(winner, outcomes[winner].history, [trials[i] for i in ranks], varied)


def _path(
    plan: Plan, X: Any, y: np.ndarray, X_val: Any, y_val: np.ndarray, *, told: Told, **options: Any
) -> Sweep:
    """The sweep of a head that tries its values by itself: its path over C."""
    (head,) = plan.heads
    history = head.fit(X, y, X_val, y_val, tick=lambda row: told(1, row), **options)
    trials = [
        Trial({**head.params, history.axis: row[history.axis]}, plan.seeds[0], row)
        for row in history.rows
    ]
    varied = [history.axis] if len(trials) > 1 else []
    return Sweep(0, history, [trials[i] for i in _ranked(trials)], varied)


def _ranked(trials: list[Trial]) -> list[int]:
    def loss(i: int) -> float:
        # Where folds chose, by what they said.
        row = trials[i].row
        return row.get("cv_loss", row.get("val_loss", np.inf))

    return sorted(range(len(trials)), key=loss)
