"""Several seeds: their mean chooses the combination, and is told beside the best."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.heads import overlapping
from support.library import train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

from featpipe.base.errors import UsageError
from featpipe.heads.base import HistoryRow
from featpipe.heads.spread import over_seeds, spread_of
from featpipe.heads.sweep import Sweep, plan_sweep, run_sweep
from featpipe.heads.training.loop import EpochLoop
from featpipe.specs.heads import HeadSpec

FEW = {"epochs": 3, "batch_size": 16}
Losses = dict[tuple[float, int], float]
"""The validation loss of each learning rate and seed."""


def test_mean_and_standard_deviation_are_the_samples() -> None:
    assert spread_of([1.0, 2.0, 4.0]) == {
        "mean": pytest.approx(7 / 3),
        "sd": pytest.approx(np.std([1, 2, 4], ddof=1)),
    }
    assert spread_of([3.0]) == {"mean": 3.0, "sd": None}


def test_a_diverged_seed_is_counted_and_not_averaged() -> None:
    rows = [HistoryRow(1, 0.0, 1.0, loss, 0.5) for loss in (1.0, 2.0)]
    assert over_seeds({"epochs": 3}, [rows[0], None, rows[1]]) == {
        "params": {"epochs": 3},
        "seeds": 3,
        "diverged": 1,
        "val_loss": spread_of([1.0, 2.0]),
        "val_accuracy": spread_of([0.5, 0.5]),
    }
    nothing = over_seeds({}, [None])
    assert nothing["val_loss"] is None and nothing["val_accuracy"] is None


@pytest.fixture
def sweep_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Losses], tuple[Any, Sweep, list[int]]]:
    """Sweep over two learning rates and seeds with given losses; and the sizes of its groups."""
    from featpipe.heads.training import fit

    def go(losses: Losses) -> tuple[Any, Sweep, list[int]]:
        sizes: list[int] = []
        real, first = EpochLoop._judge, fit.LinearGroup.__init__

        def judge(self: Any, k: int, row: HistoryRow) -> Any:
            head, seed = self.trainer._first_heads[k], self.trainer._first_seeds[k]
            loss = losses[head.learning_rate, seed]
            return real(self, k, dataclasses.replace(row, val_loss=loss))

        def watched(self: Any, heads: Any, *args: Any, **options: Any) -> None:
            sizes.append(len(heads))
            first(self, heads, *args, **options)

        monkeypatch.setattr(EpochLoop, "_judge", judge)
        monkeypatch.setattr(fit.LinearGroup, "__init__", watched)
        monkeypatch.setattr(
            "featpipe.heads.linear.LinearHead.sweep_grid", {"learning_rate": (1e-3, 1e-2)}
        )
        plan = plan_sweep("linear", FEW, seed=0, seeds=2)
        found = run_sweep(
            plan,
            *overlapping(60, 0),
            *overlapping(40, 1),
            classes=["a", "b"],
            seed=0,
            device="cpu",
            on_progress=lambda *_: None,
        )
        return plan, found, sizes

    return go


def test_the_best_mean_wins_not_the_luckiest_seed(sweep_of: Callable[..., Any]) -> None:
    losses = {(1e-3, 0): 0.1, (1e-3, 1): 0.9, (1e-2, 0): 0.3, (1e-2, 1): 0.2}
    plan, found, sizes = sweep_of(losses)
    winner = plan.heads[found.winner]
    assert (winner.learning_rate, plan.seeds[found.winner]) == (1e-2, 1)
    assert [(t.params["learning_rate"], t.seed) for t in found.trials] == [
        (1e-2, 1), (1e-2, 0), (1e-3, 0), (1e-3, 1)
    ]  # fmt: skip
    assert [one["val_loss"]["mean"] for one in found.by_seed] == pytest.approx([0.25, 0.5])
    assert found.at_edge == {"learning_rate": "largest"}
    # Its layers had not been kept, so the seeds of the winner were trained once more.
    assert sizes == [4, 2]
    assert winner.predict_proba(overlapping(5, 3)[0]).shape == (5, 2)


def test_nothing_is_trained_twice_where_the_luckiest_seed_is_of_the_best_mean(
    sweep_of: Callable[..., Any],
) -> None:
    losses = {(1e-3, 0): 0.1, (1e-3, 1): 0.4, (1e-2, 0): 0.3, (1e-2, 1): 0.3}
    plan, found, sizes = sweep_of(losses)
    assert (plan.heads[found.winner].learning_rate, plan.seeds[found.winner]) == (1e-3, 0)
    assert sizes == [4]


def test_a_combination_with_a_diverged_seed_ranks_behind(sweep_of: Callable[..., Any]) -> None:
    losses = {(1e-3, 0): 0.1, (1e-3, 1): np.inf, (1e-2, 0): 0.3, (1e-2, 1): 0.2}
    plan, found, _ = sweep_of(losses)
    assert plan.heads[found.winner].learning_rate == 1e-2
    assert [one["diverged"] for one in found.by_seed] == [0, 1]
    assert found.by_seed[1]["val_loss"] == {"mean": pytest.approx(0.1), "sd": None}


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train linear heads on the data set ``set`` into ``tmp_path/run``."""
    stored_set(cache, in_splits(train=20, val=8))

    def go(**options: Any) -> Any:
        options = {"out": tmp_path / "run", "overwrite": True, "device": "cpu", **options}
        return train_head("set", cache=cache, params=FEW, **options)

    return go


def test_seeds_need_no_sweep(train: Callable[..., Any], tmp_path: Path) -> None:
    result = train(seeds=3, seed=5)
    table = json.loads((tmp_path / "run" / "sweep.json").read_text())
    rows = table["combinations"]
    assert sorted(row["seed"] for row in rows) == [5, 6, 7]
    assert len({json.dumps(row["params"]) for row in rows}) == 1
    assert table["varied"] == ["seed"]
    document = json.loads(json.dumps(result.as_json()))
    assert document["seeds"] == table["by_seed"][0]
    assert document["seeds"]["seeds"] == 3 and document["seeds"]["diverged"] == 0
    for name in ("val_loss", "val_accuracy"):
        assert document["seeds"][name] == spread_of([row[name] for row in rows])
    assert document["val"]["loss"] == min(row["val_loss"] for row in rows)
    assert load_head(result.head).info["sweep"]["seed"] == rows[0]["seed"]


def test_the_first_of_the_seeds_is_the_head_without_them(train: Callable[..., Any]) -> None:
    rows = train(seeds=3).sweep.rows
    alone = train()
    (first,) = [row for row in rows if row["seed"] == 0]
    assert first["val_loss"] == pytest.approx(alone.val["loss"], rel=1e-4)
    assert "seeds" not in alone.as_json() and not (alone.head / "sweep.json").exists()


def test_what_draws_no_numbers_takes_no_seeds(cache: Path) -> None:
    for kind in ("logistic", "knn"):
        with pytest.raises(UsageError, match=f"found it for '{kind}', which comes out the same"):
            HeadSpec(head=kind, seeds=2)


def test_mean_and_deviation_are_printed(inside: Run, workspace: Path) -> None:
    common = ("train-head", "colours", "--cache", workspace / "cache", "--epochs", "2")
    done = inside(*common, "--seeds", "3")
    *_, told, _ = done.stdout.splitlines()
    assert told.startswith("  3 seeds: validation accuracy ") and " ± " in told, done.stderr
    assert told.endswith(" (mean ± standard deviation); the best is kept")
    swept = inside(*common, "--sweep", "--seeds", "2", "--weight-decay", "0")
    head, first, *_ = swept.stdout.splitlines()
    assert head.split() == ["learning-rate", "val", "loss", "val"]
    assert first.count(" ± ") == 2 and len(head) == len(first)
    assert json_of(inside(*common, "--seeds", "2", "--json"))["seeds"]["seeds"] == 2
