"""``logistic``: exact L2-regularised logistic regression, by scikit-learn."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from featpipe.heads.base import History, MatrixHead, Tick, number, whole

log = logging.getLogger("featpipe")

C_GRID = tuple(float(c) for c in np.logspace(-6, 0, 13))
"""Values tried, by validation loss, where no C is given."""
_MAX_ROTATED = 5000
"""Samples up to which the rotation's eigenvectors are cheaper than what they save."""
_TOLERANCE = 1e-8
"""On the gradient of the mean loss; a looser one leaves large C short of the optimum."""


@dataclass
class LogisticHead(MatrixHead):
    """Logistic regression with scikit-learn's objective (intercept not penalised).

    With L2 the solution lies in the span of the samples. Where features outnumber samples,
    the samples are therefore first rotated into as many dimensions as there are samples: the
    objective's value is the same for every C, the problem is smaller.

    Attributes
    ----------
    C : float or None
        Inverse strength of the regularisation; None chooses from ``C_GRID`` by validation.
    max_iter : int
    """

    kind = "logistic"
    C: float | None = None
    max_iter: int = 1000

    def __post_init__(self) -> None:
        whole(self, "max_iter")
        if self.C is not None:
            number(self, "C", 0, above=True)

    def fit(
        self,
        X: Any,
        y: np.ndarray,
        X_val: Any,
        y_val: np.ndarray,
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`; the path over C starts each fit from the one before."""
        from sklearn.linear_model import LogisticRegression

        self._learn_scale(X)
        Z, back = self._reduced(X)
        model = LogisticRegression(
            # Newton's method reaches this tolerance in a tenth of L-BFGS's passes.
            solver="newton-cg",
            tol=_TOLERANCE,
            max_iter=self.max_iter,
            warm_start=True,
            random_state=seed,
        )
        history, best_loss, best = History("C"), np.inf, {}
        for step, C in enumerate((self.C,) if self.C is not None else C_GRID):
            with warnings.catch_warnings():
                # Of its line search too; whether it arrived is looked at below.
                warnings.simplefilter("ignore")
                model.set_params(C=C).fit(Z, y)
            if model.n_iter_.max() >= self.max_iter:
                log.warning(
                    "C = %g stopped after --max-iter %d, short of its best", C, self.max_iter
                )
            self.weight_, self.bias_ = _per_class(back(model.coef_), model.intercept_)
            row = {"C": C, **self._scores("train", X, y), **self._scores("val", X_val, y_val)}
            history.rows.append(row)
            tick(row)
            if row["val_loss"] < best_loss:
                best_loss, history.best = row["val_loss"], step
                best = self.layers()
        self.set_layers(best)
        return history

    def _reduced(self, X: Any) -> tuple[np.ndarray, Any]:
        """Standardised samples (n, r) float64, and a map of coefficients (k, r) → (k, d)."""
        Z = self.standardise(np.asarray(X)).astype(np.float64)
        n, d = Z.shape
        if d <= n or n > _MAX_ROTATED:
            return Z, lambda coefficients: coefficients
        # Z Zᵀ = U Λ Uᵀ, so Z = (U √Λ) Vᵀ with V = Zᵀ U / √Λ, and ‖V w‖ = ‖w‖.
        values, vectors = np.linalg.eigh(Z @ Z.T)
        kept = values > values[-1] * n * np.finfo(np.float64).eps
        root, vectors = np.sqrt(values[kept]), vectors[:, kept]
        return vectors * root, lambda coefficients: ((coefficients / root) @ vectors.T) @ Z

    def _scores(self, split: str, X: Any, y: np.ndarray) -> dict[str, float]:
        probabilities = self.predict_proba(X)
        chosen = np.clip(probabilities[np.arange(len(y)), y], 1e-15, 1.0)
        return {
            f"{split}_loss": float(-np.log(chosen).mean()),
            f"{split}_accuracy": float((probabilities.argmax(axis=1) == y).mean()),
        }


def _per_class(coefficients: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row per class, float32; scikit-learn keeps one row where there are two classes."""
    if len(coefficients) == 1:
        # softmax(0, z) is the logistic function of z.
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    return coefficients.astype(np.float32), intercept.astype(np.float32)
