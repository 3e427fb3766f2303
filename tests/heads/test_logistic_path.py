"""Which C are tried, class weights, and scikit-learn's own estimator as the other solver."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from support.command import Run
from support.library import train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

from featpipe.base.errors import UsageError
from featpipe.heads import logistic_reduced, logistic_solvers
from featpipe.heads.base import History, HistoryRow, class_weights
from featpipe.heads.logistic import LogisticHead
from featpipe.heads.logistic_path import BEYOND, C_GRID, Candidate, PathSearch


class Curve:
    """A solver of which only the loss at each C matters."""

    def __init__(self, best: float, *, together: bool = False) -> None:
        self.best, self.together = best, together
        self.asked: list[list[float]] = []

    def solve(self, Cs: Sequence[float]) -> Iterator[list[Candidate]]:
        self.asked.append(list(Cs))
        zero = np.zeros((2, 1), np.float32)
        yield [Candidate(C, zero, zero[:, 0], 0.0) for C in Cs]

    def finish(self, candidate: Candidate) -> Candidate:
        return candidate

    def score(self, candidates: list[Candidate]) -> list[HistoryRow]:
        losses = [1 + 0.004 * abs(np.log10(c.C / self.best)) * 2 for c in candidates]
        return [HistoryRow(c.C, 0, 1, x, 1) for c, x in zip(candidates, losses, strict=True)]


def searched(curve: Curve) -> tuple[Candidate, History, list[HistoryRow]]:
    seen: list[HistoryRow] = []
    best, history = PathSearch(curve, curve.score, seen.append).along(C_GRID)
    return best, history, seen


def test_the_path_ends_once_the_loss_rose_twice() -> None:
    curve = Curve(C_GRID[4])
    best, history, seen = searched(curve)
    assert best.C == history.kept.at == C_GRID[4]
    # Each is worse by less than a hundredth.
    assert [row.at for row in history.rows] == list(C_GRID[:7])
    assert history.untried == list(C_GRID[7:])
    assert seen == history.rows


def test_all_of_the_path_is_tried_where_it_is_solved_together() -> None:
    curve = Curve(C_GRID[4], together=True)
    best, history, _ = searched(curve)
    assert C_GRID[4] == best.C and history.untried == []
    assert curve.asked == [list(C_GRID)]


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("best", "further"), [(10.0, 3), (10**-7.5, 4), (1.0, 1), (1e-6, 1)])
def test_a_best_c_at_an_edge_makes_the_search_go_on(
    best: float, further: int, together: bool, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("featpipe").propagate = True
    with caplog.at_level("INFO", logger="featpipe"):
        found, history, _ = searched(Curve(best, together=together))
    assert pytest.approx(best) == found.C
    rows = [row.at for row in history.rows]
    assert rows == sorted(rows)
    beyond = [at for at in rows if at not in C_GRID]
    assert len(beyond) == further
    assert "of the grid, " in caplog.text and "was its edge" in caplog.text
    assert not history.warnings


@pytest.mark.parametrize(("at_edge", "further"), [(0.0099, 0), (0.0115, 2)])
def test_a_negligible_loss_is_not_lowered_further(at_edge: float, further: int) -> None:
    def score(candidates: list[Candidate]) -> list[HistoryRow]:
        return [HistoryRow(c.C, 0, 1, at_edge * c.C**-0.1, 1) for c in candidates]

    solver = Curve(1.0, together=True)
    found, history = PathSearch(solver, score, lambda row: None).along(C_GRID)
    assert len(history.rows) == len(C_GRID) + further
    assert max(row.at for row in history.rows) == found.C
    assert not history.warnings


@pytest.mark.parametrize(
    ("best", "edge", "doubt"),
    [
        (1e9, 1e3, "the largest tried, 1000; try a larger one with --C"),
        (1e-20, 1e-9, "the smallest tried, 1e-09; try a smaller one with --C"),
    ],
)
def test_the_search_goes_on_only_so_far_and_says_so(best: float, edge: float, doubt: str) -> None:
    found, history, _ = searched(Curve(best))
    assert pytest.approx(edge) == found.C
    assert len([row for row in history.rows if row.at not in C_GRID]) == BEYOND
    assert history.warnings == [
        f"expected the loss to rise beyond the best C, found it lowest at {doubt}"
    ]


def overlapping(n: int, d: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes of uneven size."""
    rng = np.random.default_rng(seed)
    y = np.minimum(rng.geometric(0.5, n) - 1, classes - 1)
    y[:classes] = np.arange(classes)
    X = rng.normal(size=(n, d))
    X[np.arange(n), y] += 1.5
    return X.astype(np.float16), y


def fitted(head: LogisticHead, classes: int, n: int = 120, d: int = 20) -> History:
    head.classes_ = np.arange(classes).astype(str)
    train, val = overlapping(n, d, classes, 0), overlapping(80, d, classes, 1)
    return head.fit(*train, *val, seed=0, device="cpu", tick=lambda row: None)


@pytest.mark.parametrize("solver", ["featpipe", "sklearn"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "d"), [(120, 20), (40, 90)])
def test_balanced_classes_are_scikit_learns(solver: str, classes: int, n: int, d: int) -> None:
    head = LogisticHead(C=0.05, class_weight="balanced", solver=solver)
    history = fitted(head, classes, n, d)
    X, y = overlapping(n, d, classes, 0)
    X_val, y_val = overlapping(80, d, classes, 1)
    Z, Z_val = head.standardise(X).astype("f8"), head.standardise(X_val).astype("f8")
    model = LogisticRegression(C=0.05, tol=1e-12, max_iter=20_000, class_weight="balanced")
    expected = model.fit(Z, y).predict_proba(Z_val)
    assert np.allclose(head.predict_proba(X_val), expected, atol=1e-4)
    weight = class_weights(y, classes, "balanced")
    loss = log_loss(y_val, expected, sample_weight=weight[y_val], labels=np.arange(classes))
    assert history.kept.val_loss == pytest.approx(loss, rel=1e-4)
    plain = LogisticHead(C=0.05, solver=solver)
    fitted(plain, classes, n, d)
    assert not np.allclose(plain.weight_, head.weight_, atol=1e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_held_out_loss_is_weighted_too(classes: int) -> None:
    losses = []
    for solver in ("featpipe", "sklearn"):
        head = LogisticHead(folds=3, class_weight="balanced", solver=solver)
        history = fitted(head, classes)
        losses.append({row.at: row.cv_loss for row in history.rows})
    common = set(losses[0]) & set(losses[1])
    assert len(common) > 5
    for C in common:
        assert losses[0][C] == pytest.approx(losses[1][C], rel=2e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_both_solvers_keep_the_same_head(classes: int) -> None:
    heads = [LogisticHead(solver=solver) for solver in ("featpipe", "sklearn")]
    histories = [fitted(head, classes) for head in heads]
    assert histories[0].kept.at == histories[1].kept.at
    assert np.allclose(heads[0].weight_, heads[1].weight_, atol=2e-3)
    assert np.allclose(heads[0].bias_, heads[1].bias_, atol=2e-3)
    assert heads[1].weight_.shape == (classes, 20) and heads[1].weight_.dtype == np.float32


def test_scikit_learns_solver_refuses_samples_beyond_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logistic_reduced, "MAX_DENSE_BYTES", 100)
    with pytest.raises(UsageError, match=r"samples in float64 for --solver sklearn, found .*GiB"):
        fitted(LogisticHead(solver="sklearn"), 2)


def test_a_path_solved_one_by_one_says_what_it_left_out(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=30, val=20))
    result = train_head(
        "set", cache=cache, head="logistic", out=tmp_path / "run", device="cpu", params={}
    )
    document = json.loads((tmp_path / "run" / "head.json").read_text())
    history = load_head(result.head).history
    assert document["history"].get("untried", []) == history.untried


def test_every_kind_of_problem_has_its_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for name in ("TogetherSolver", "OneByOneSolver", "SklearnSolver"):
        real = getattr(logistic_solvers, name)
        monkeypatch.setattr(
            logistic_solvers, name, lambda *a, real=real: made.append(real.__name__) or real(*a)
        )
    fitted(LogisticHead(C=1), 2)
    fitted(LogisticHead(C=1), 3)
    fitted(LogisticHead(C=1, solver="sklearn"), 3)
    monkeypatch.setattr(logistic_solvers, "TOGETHER_NUMBERS", 100)
    fitted(LogisticHead(C=1), 2)
    monkeypatch.setattr(logistic_reduced, "MAX_DENSE_BYTES", 100)
    fitted(LogisticHead(C=1), 3)
    assert made == [
        "TogetherSolver", "OneByOneSolver", "SklearnSolver", "OneByOneSolver", "TogetherSolver",
    ]  # fmt: skip


def test_the_bar_has_a_total() -> None:
    assert LogisticHead().progress_steps == len(C_GRID)
    assert LogisticHead(C=0.3).progress_steps == 1


def test_the_command_line_takes_a_solver(inside: Run) -> None:
    done = inside("train-head", "set", "--head", "logistic", "--solver", "liblinear")
    assert done.returncode == 2
    assert "expected --solver to be one of featpipe, sklearn, found 'liblinear'" in done.stderr
