"""``logistic``: exact L2-regularised logistic regression along a path of C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.heads.base import (
    History,
    HistoryRow,
    MatrixHead,
    Tick,
    blocks_of,
    class_weights,
    softmax,
)
from featpipe.heads.logistic_path import (
    C_GRID,
    Candidate,
    PathProblem,
    PathSearch,
    listed,
)
from featpipe.heads.logistic_problem import losses_and_residuals
from featpipe.heads.logistic_reduced import MAX_DENSE_BYTES, held
from featpipe.heads.logistic_solvers import path_solver
from featpipe.specs.head_params import LogisticParams

MAX_C = 1e6
"""Largest C that is solved. A head that was trained with a larger one before still loads."""
_NEGLIGIBLE_GAP = 2e-6
"""Gap to the optimum, relative to the objective, above which the head is doubted."""


class LogisticHead(LogisticParams, MatrixHead):
    """Logistic regression with scikit-learn's objective, C · Σ weight · loss + ½ ‖W‖².

    The intercept is not penalised. The weight is that of the sample's class (``class_weight``), by
    which the losses in the history, and so the choice of C, are weighted too.
    ``featpipe.heads.logistic_path`` says which values of C are tried, and
    ``featpipe.heads.logistic_solvers`` how each is solved.

    The final head is trained on the whole training split, whether folds or the validation split
    choose C. Parameters: see ``LogisticParams``.
    """

    kind = "logistic"
    solves_path = True

    @property
    def progress_steps(self) -> int:
        """See :meth:`Head.progress_steps`; fewer if the loss rises, more beyond the grid's edge."""
        return len(C_GRID) if self.C is None else 1

    def fit(
        self,
        X: Any,
        y: NDArray[np.int64],
        X_val: Any,
        y_val: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`; the history has a row for each C, smallest first.

        Raises
        ------
        UsageError
            There are more folds than pictures to hold out, or the samples are too many for
            scikit-learn, or C is above ``MAX_C``.
        """
        if self.C is not None and self.C > MAX_C:
            raise UsageError(
                f"expected --C of at most {MAX_C:g}, found {self.C:g}: that is no regularisation, "
                "and the optimum lies beyond all numbers"
            )
        # Row 0 holds nothing out: its solutions are the candidates for the final head.
        held_out = np.zeros((1, len(y)), bool)
        if self.folds is not None:
            fold = stratified_folds(y, self.folds, seed)
            held_out = np.concatenate([held_out, fold == np.arange(self.folds)[:, None]])
        self._learn_scale(X)
        k = len(self.classes_)
        of_class = class_weights(y, k, self.class_weight)
        problem = PathProblem(self.standardise, X, y, k, of_class[y], held_out, self.max_iter)

        # Each C is scored on them; standardising takes longer than that.
        fit = 4 * (len(X) + len(X_val)) * len(self.mean_) <= MAX_DENSE_BYTES
        Z_val = held(self.standardise, X_val) if fit else None

        def score(candidates: list[Candidate]) -> list[HistoryRow]:
            train = _known_scores(candidates, y, of_class)
            if not train:
                train = _scores(self._blocks(X), y, of_class, candidates)
            blocks = self._blocks(X_val) if Z_val is None else blocks_of(Z_val)
            val = _scores(blocks, y_val, of_class, candidates)
            return [
                HistoryRow(candidate.C, *on_train, *on_val, candidate.cv_loss)
                for candidate, on_train, on_val in zip(candidates, train, val, strict=True)
            ]

        solver = path_solver(problem, self.solver)
        search = PathSearch(solver, score, tick)
        best, history = search.along(C_GRID) if self.C is None else search.only(self.C)
        finished = solver.finish(best)
        if finished is not best:
            search.gaps[best.C] = max(finished.gap, 0.0)
            (history.rows[history.best],) = score([finished])
        best = finished
        history.warnings += stopped_short(search.gaps, self.max_iter)
        self.weight_, self.bias_ = best.weight, best.bias
        return history

    def _blocks(self, X: Any) -> Iterator[NDArray[np.float32]]:
        return map(self.standardise, blocks_of(X))


def _scores(
    blocks: Iterable[NDArray[np.float32]],
    y: NDArray[np.int64],
    of_class: NDArray[np.float64],
    candidates: list[Candidate],
) -> list[tuple[float, float]]:
    """Weighted loss, and accuracy, of several heads in one pass over standardised rows."""
    p, k = len(candidates), len(of_class)
    weight = np.concatenate([candidate.weight for candidate in candidates])
    bias = np.concatenate([candidate.bias for candidate in candidates])
    loss, correct, start = np.zeros(p), np.zeros(p), 0
    for block in blocks:
        truth = y[start : start + len(block)]
        start += len(block)
        logits = block @ weight.T + bias
        probabilities = softmax(logits.reshape(-1, k)).reshape(-1, p, k)
        chosen = np.take_along_axis(probabilities, truth[:, None, None], axis=2)[..., 0]
        loss -= of_class[truth] @ np.log(np.clip(chosen, 1e-15, 1.0))
        correct += (probabilities.argmax(axis=2) == truth[:, None]).sum(axis=0)
    loss /= of_class[y].sum()
    return list(zip(loss.tolist(), (correct / len(y)).tolist(), strict=True))


def _known_scores(
    candidates: list[Candidate], y: NDArray[np.int64], of_class: NDArray[np.float64]
) -> list[tuple[float, float]]:
    """Weighted loss, and accuracy, on the training samples; none unless all logits are known."""
    scores, weight = [], of_class[y]
    for candidate in candidates:
        if candidate.logits is None:
            return []
        loss, _, _ = losses_and_residuals(candidate.logits, y)
        two = len(candidate.logits) == 1
        found = candidate.logits[0] > 0 if two else candidate.logits.argmax(axis=0)
        scores.append((float(loss @ weight / weight.sum()), float((found == y).mean())))
    return scores


def stopped_short(gaps: dict[float, float], max_iter: int) -> list[str]:
    """Whether some values of C were not solved; ``gaps`` are relative to the objective, by C."""
    short = {C: gap for C, gap in sorted(gaps.items()) if not gap <= _NEGLIGIBLE_GAP}
    if not short:
        return []
    worst = max(short.values())
    away = f", up to {worst:.1g} of its objective away" if np.isfinite(worst) else ""
    return [
        f"expected the optimum for every C, found that of {listed(short)} not reached in "
        f"{max_iter} steps{away}; raise --max-iter"
    ]


def stratified_folds(y: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold (n,) that holds each sample out, -1 for none.

    The samples are shuffled within each class, and all classes in a row are assigned to folds
    0, 1, …, 0, 1, …. So fold sizes differ by at most one, in total and within each class. A
    class's only sample is never held out, because the class could not be learned without it.

    Raises
    ------
    UsageError
        A fold would be empty.
    """
    rng = np.random.default_rng(seed)
    counts = np.bincount(y)
    order = [rng.permutation(np.flatnonzero(y == label)) for label in np.flatnonzero(counts > 1)]
    assigned = np.concatenate([np.empty(0, np.int64), *order])
    if len(assigned) < folds:
        raise UsageError(
            f"expected --folds up to {len(assigned)}, the pictures in classes of several, "
            f"found {folds}"
        )
    fold = np.full(len(y), -1)
    fold[assigned] = np.arange(len(assigned)) % folds
    return fold
