"""scikit-learn's own logistic regression as a solver of the path of C."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.base.hardware import cpu_count
from featpipe.heads import logistic_reduced
from featpipe.heads.logistic_path import Candidate, PathProblem, per_class
from featpipe.heads.logistic_problem import DenseMatrix, losses
from featpipe.heads.logistic_reduced import reduced

SKLEARN_TOLERANCE = 1e-6
"""With this ``tol``, scikit-learn ends within about 1e-6 of the optimum; with its default, 1e-2."""


class SklearnSolver:
    """scikit-learn's own estimator on the rotated samples, each C and fold in a thread of its own.

    Raises
    ------
    UsageError
        The samples do not fit into memory.
    """

    together = True

    def __init__(self, problem: PathProblem) -> None:
        self._problem = problem
        matrix, self._back = reduced(problem.standardise, problem.X)
        if not isinstance(matrix, DenseMatrix):
            most = logistic_reduced.MAX_DENSE_BYTES / 2**30
            raise UsageError(
                f"expected at most {most:g} GiB of samples in float64 for --solver sklearn, found "
                f"{8 * np.prod(matrix.shape) / 2**30:.1f} GiB; use --solver featpipe"
            )
        self._Z = matrix.Z

    def solve(self, Cs: Sequence[float]) -> Iterator[list[Candidate]]:
        """See :class:`PathSolver`."""
        from joblib import Parallel, delayed
        from threadpoolctl import threadpool_limits

        folds = self._problem.held_out
        tasks = (delayed(self._fit)(C, rows) for C in Cs for rows in folds)
        # Threads share the samples; each product has a core of its own.
        with threadpool_limits(1):
            done = Parallel(cpu_count(), prefer="threads", return_as="generator")(tasks)
            for C in Cs:
                yield [self._candidate(C, [next(done) for _ in folds])]

    def _fit(self, C: float, held_out: NDArray[np.bool_]) -> Any:
        from sklearn.linear_model import LogisticRegression

        problem, kept = self._problem, ~held_out
        model = LogisticRegression(C=C, tol=SKLEARN_TOLERANCE, max_iter=problem.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the head warns itself
            return model.fit(self._Z[kept], problem.y[kept], sample_weight=problem.weight[kept])

    def _candidate(self, C: float, models: list[Any]) -> Candidate:
        problem = self._problem
        stopped = max(int(model.n_iter_.max()) for model in models) >= problem.max_iter
        total = 0.0
        for rows, model in zip(problem.held_out[1:], models[1:], strict=True):
            logits = model.coef_ @ self._Z[rows].T + model.intercept_[:, None]
            total += float(losses(logits[None], problem.y[rows])[0] @ problem.weight[rows])
        cv_loss = None
        if problem.has_folds:
            cv_loss = total / float((problem.held_out @ problem.weight).sum())
        weight = self._back(models[0].coef_)
        gap = np.inf if stopped else 0.0
        return Candidate(C, *per_class(weight, models[0].intercept_), gap, cv_loss)

    def finish(self, candidate: Candidate) -> Candidate:
        """See :class:`PathSolver`; all are finished."""
        return candidate
