"""The values of C of a logistic regression: which are tried, in which order, and when that ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import History, HistoryRow, Tick
from featpipe.heads.logistic_reduced import Standardise

log = logging.getLogger("featpipe")

C_GRID = tuple(float(c) for c in np.logspace(-6, 0, 13))
"""Values of C that are tried if none is given; the lowest loss wins."""
BEYOND = 6
"""Further values of C that are tried at most where the best lies at the edge."""
NEGLIGIBLE = 0.01
"""A loss, in nats, that is low enough at the edge: that of separable classes falls for ever."""
RISEN = 1.01
"""A loss above the lowest times this has risen for good; so has the second in a row above it."""
_STEP = float(np.sqrt(10))


@dataclass(frozen=True)
class PathProblem:
    """What all values of C have in common.

    Attributes
    ----------
    standardise : callable
    X : array-like, shape (n, …)
    y : ndarray of int64, shape (n,)
    classes : int
    weight : ndarray of float64, shape (n,)
        Weight of each sample.
    held_out : ndarray of bool, shape (1 + folds, n)
        Samples that each problem leaves out: the first none, the others a fold.
    max_iter : int
    """

    standardise: Standardise
    X: Any
    y: NDArray[np.int64]
    classes: int
    weight: NDArray[np.float64]
    held_out: NDArray[np.bool_]
    max_iter: int

    @property
    def has_folds(self) -> bool:
        """Whether there are folds."""
        return len(self.held_out) > 1


@dataclass
class Candidate:
    """A head that one value of C gives.

    Attributes
    ----------
    C : float
    weight : ndarray of float32, shape (classes, d)
    bias : ndarray of float32, shape (classes,)
    gap : float
        Bound on the distance from the optimum, relative to the objective, over all folds.
    cv_loss : float or None
        Loss of held-out samples; None without folds.
    logits : ndarray or None
        Those of the training samples where the solver knows them, (classes, n), or (1, n) for two.
    state : object
        What the solver needs to go on from here.
    """

    C: float
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    gap: float
    cv_loss: float | None = None
    logits: np.ndarray | None = None
    state: Any = None


def per_class(
    weight: NDArray[np.float64], intercepts: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One row per class, float32: (k, d) and (k,); the solvers have one row for two classes."""
    if len(weight) == 1:
        # softmax(0, z) is the logistic function of z.
        weight = np.concatenate([np.zeros_like(weight), weight])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    return weight.astype(np.float32), intercepts.astype(np.float32)


class PathSolver(Protocol):
    """Solves one problem for each value of C, and as many more as there are folds.

    Attributes
    ----------
    together : bool
        Whether many values of C take less time together than one after the other.
    """

    together: bool

    def solve(self, Cs: Sequence[float]) -> Iterator[list[Candidate]]:
        """The heads of some values of C, in their order, as they are done."""

    def finish(self, candidate: Candidate) -> Candidate:
        """The same head with all the digits that are worth it, once it is known to be kept."""


Score = Callable[[list[Candidate]], list[HistoryRow]]


class PathSearch:
    """The search for the best C.

    Smaller values come first. Where they are solved one by one, the search ends once the loss has
    risen: above :data:`RISEN` times the lowest, or twice in a row above the lowest. Where the best
    value lies at an edge of the grid, further ones are tried, each √10 times (or a √10th of) the
    one before, while they are better and the loss is above :data:`NEGLIGIBLE`, at most
    :data:`BEYOND`.

    Parameters
    ----------
    solver : PathSolver
    score : callable
        Candidates → rows of the history.
    tick : callable
        See :meth:`Head.fit`.
    """

    def __init__(self, solver: PathSolver, score: Score, tick: Tick) -> None:
        self.solver, self.score, self.tick = solver, score, tick
        self.rows: list[HistoryRow] = []
        self.gaps: dict[float, float] = {}
        self.warnings: list[str] = []
        self.best: Candidate | None = None
        self.lowest: HistoryRow | None = None

    def only(self, C: float) -> tuple[Candidate, History]:
        """Try one value."""
        self._try([C])
        return self._result([])

    def along(self, grid: Sequence[float]) -> tuple[Candidate, History]:
        """Try an ascending grid, and what lies beyond its edge if the best does."""
        untried: list[float] = []
        if self.solver.together:
            self._try(grid)
        else:
            for i, C in enumerate(grid):
                self._try([C])
                if self._risen():
                    untried = list(grid[i + 1 :])
                    break
        assert self.lowest is not None
        at = self.lowest.at
        if at in (grid[0], grid[-1]) and self.lowest.selection_loss > NEGLIGIBLE:
            self._beyond(at, _STEP if at == grid[-1] else 1 / _STEP)
        if untried:
            log.info("the loss rose with C, so %s was not tried", listed(untried))
        return self._result(untried)

    def _try(self, Cs: Sequence[float]) -> None:
        for candidates in self.solver.solve(Cs):
            for candidate, row in zip(candidates, self.score(candidates), strict=True):
                self.rows.append(row)
                self.gaps[candidate.C] = candidate.gap
                if self.lowest is None or row.selection_loss < self.lowest.selection_loss:
                    self.best, self.lowest = candidate, row
                self.tick(row)

    def _risen(self) -> bool:
        assert self.lowest is not None
        lowest = self.lowest.selection_loss
        last = [row.selection_loss for row in self.rows[-2:]]
        return last[-1] > RISEN * lowest or (len(last) == 2 and min(last) > lowest)

    def _beyond(self, edge: float, factor: float) -> None:
        assert self.lowest is not None
        further = [float(edge * factor**i) for i in range(1, BEYOND + 1)]
        for i, C in enumerate(further):
            # One by one: each starts near the one before.
            self._try([C])
            if self.lowest.at != C or self.lowest.selection_loss <= NEGLIGIBLE:
                further = further[: i + 1]
                break
        log.info(
            "the best C of the grid, %g, was its edge, so %s was tried too", edge, listed(further)
        )
        if self.lowest.at == further[-1] and self.lowest.selection_loss > NEGLIGIBLE:
            tried_most, further_on = (
                ("largest", "larger") if factor > 1 else ("smallest", "smaller")
            )
            self.warnings.append(
                f"expected the loss to rise beyond the best C, found it lowest at the {tried_most} "
                f"tried, {self.lowest.at:g}; try a {further_on} one with --C"
            )

    def _result(self, untried: list[float]) -> tuple[Candidate, History]:
        assert self.best is not None and self.lowest is not None
        rows = sorted(self.rows, key=lambda row: row.at)
        best = next(i for i, row in enumerate(rows) if row is self.lowest)
        return self.best, History("C", rows, best, self.warnings, untried)


def listed(values: Iterable[float]) -> str:
    """Values of C in a sentence."""
    return ", ".join(f"{value:g}" for value in values)
