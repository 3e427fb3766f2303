"""A sweep's heads end as each would alone; the best by validation loss wins; nothing is lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.heads import overlapping, toy
from support.library import train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

import featpipe
from featpipe.base.errors import DataError, UsageError
from featpipe.heads import head_class, new_head
from featpipe.heads.base import Head, History, HistoryRow
from featpipe.heads.sweep import Sweep, Trial, plan_sweep, run_sweep
from featpipe.heads.training import fit as gradient
from featpipe.heads.training.loop import EpochLoop
from featpipe.specs.heads import HeadSpec
from featpipe.specs.recipe import load_recipe
from featpipe.stages.train import TrainResult

SMALL: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 6, "batch_size": 16},
    "mlp": {"epochs": 6, "batch_size": 16, "hidden": 8},
}


def swept(kind: str, given: dict[str, Any], train: Any, val: Any, **options: Any) -> Any:
    """A plan and what its sweep found."""
    plan = plan_sweep(kind, given, seed=0, seeds=options.pop("seeds", 1))
    on_progress = options.pop("on_progress", lambda *_: None)
    classes = [str(i) for i in range(int(train[1].max()) + 1)]
    found = run_sweep(
        plan, *train, *val, classes=classes, seed=0, device="cpu", on_progress=on_progress
    )
    return plan, found


@pytest.fixture
def sweep(cache: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Sweep on the data set ``set`` into ``tmp_path/run``."""

    def go(head: str = "linear", **options: Any) -> TrainResult:
        params = {**SMALL.get(head, {}), **options.pop("params", {})}
        options = {"sweep": True, "out": tmp_path / "run", "device": "cpu", **options}
        return train_head("set", cache=cache, head=head, params=params, **options)

    return go


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_the_default_grid_has_32_combinations_and_more(kind: str) -> None:
    plan = plan_sweep(kind, {}, seed=0)
    assert len(plan.heads) >= 32
    settings = {json.dumps(head.params, sort_keys=True) for head in plan.heads}
    assert len(settings) == len(plan.heads)
    wanted = {"learning_rate", "weight_decay"} | ({"dropout", "hidden"} if kind == "mlp" else set())
    assert set(plan.grid) == wanted
    # What a user gets without a sweep is among what a sweep tries.
    assert new_head(kind, {}).params in [head.params for head in plan.heads]


def test_what_is_given_is_not_varied_and_seeds_multiply() -> None:
    whole = plan_sweep("linear", {}, seed=5)
    plan = plan_sweep("linear", {"learning_rate": 0.07, "epochs": 3}, seed=5, seeds=3)
    assert {head.params["learning_rate"] for head in plan.heads} == {0.07}
    assert {head.params["epochs"] for head in plan.heads} == {3}
    assert list(plan.grid) == ["weight_decay"]
    assert len(plan.heads) == 3 * len(whole.grid["weight_decay"])
    assert plan.seeds[:4] == [5, 6, 7, 5]


def test_the_lowest_validation_loss_wins_and_is_the_head() -> None:
    train, val = overlapping(60, 0), overlapping(80, 1)
    plan, found = swept("linear", SMALL["linear"], train, val)
    losses = [trial.row.val_loss for trial in found.trials]
    assert len(losses) == len(plan.heads) and losses == sorted(losses)
    assert losses[0] < losses[-1], "all the same: nothing was chosen"
    winner: Head = plan.heads[found.winner]
    assert (winner.params, plan.seeds[found.winner]) == (
        found.trials[0].params,
        found.trials[0].seed,
    )
    chosen = winner.predict_proba(val[0])[np.arange(80), val[1]]
    assert -np.log(chosen).mean() == pytest.approx(losses[0], rel=1e-4)
    assert found.history.rows[found.history.best] == found.trials[0].row


def test_of_equals_the_earlier_of_the_grid_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every validation loss the same, in two stacks: widths are trained one after the other.
    def judge(self: EpochLoop, k: int, row: HistoryRow) -> Any:
        return real(self, k, dataclasses.replace(row, val_loss=0.5, val_accuracy=0.5))

    real = EpochLoop._judge
    monkeypatch.setattr(EpochLoop, "_judge", judge)
    given = {"epochs": 1, "batch_size": 64}
    plan, found = swept("mlp", given, toy(40), toy(20, seed=1))
    assert found.winner == 0
    assert [trial.params for trial in found.trials] == [head.params for head in plan.heads]


def test_a_diverged_head_is_marked_and_leaves() -> None:
    train, val = overlapping(60, 0), overlapping(40, 1)
    train[0][:, 0] *= 1e3
    heads = [new_head("linear", {"epochs": 5, "learning_rate": rate}) for rate in (1e-3, 1e38)]
    for head in heads:
        head.classes_ = np.array(["a", "b"])
    steps: list[int] = []
    fine, gone = gradient.train_all(
        heads, [0, 0], *train, *val, seed=0, device="cpu", on_epoch=lambda n, _: steps.append(n)
    )
    # The first epoch ends the other's five; from then on there is one head.
    assert sum(steps) == 10 and steps[-1] == 1
    assert not fine.diverged and len(fine.history.rows) == 5
    assert "training diverged; lower --learning-rate" in gone.diverged
    assert gone.layers == {} and len(gone.history.rows) < 5
    assert all(np.isfinite(layer).all() for layer in fine.layers.values())


def test_diverged_combinations_come_last_and_only_all_of_them_are_an_error(
    cache: Path, sweep: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    grid = {"learning_rate": (1e38, 1e-2), "weight_decay": (0.0,)}
    monkeypatch.setattr("featpipe.heads.linear.LinearHead.sweep_grid", grid)
    result = sweep()
    assert result.sweep is not None
    first, last = result.sweep.rows
    assert not first["diverged"] and first["params"]["learning_rate"] == 1e-2
    assert last["diverged"] and last["val_loss"] is None and last["best_epoch"] is None
    json.dumps(result.as_json(), allow_nan=False)
    with pytest.raises(DataError, match="training diverged; lower --learning-rate"):
        sweep(params={"learning_rate": 1e38}, overwrite=True)


def test_a_stack_too_large_for_memory_is_trained_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = overlapping(60, 0), overlapping(40, 1)
    whole_plan, whole = swept("linear", SMALL["linear"], train, val)
    sizes: list[int] = []
    real = gradient.LinearGroup.__init__

    def watched(self: Any, heads: Any, *args: Any, **options: Any) -> None:
        sizes.append(len(heads))
        real(self, heads, *args, **options)

    monkeypatch.setattr(gradient.LinearGroup, "__init__", watched)
    # Memory for five heads of eight features and a bias, in six copies of four bytes.
    monkeypatch.setattr(gradient, "free_memory", lambda device: 4 * 5 * 9 * 6 * 4)
    plan, found = swept("linear", SMALL["linear"], train, val)
    assert sizes == [5] * 6 + [2]
    assert found.winner == whole.winner
    for trial, expected in zip(found.trials, whole.trials, strict=True):
        assert trial.params == expected.params
        assert trial.row is not None and expected.row is not None
        numbers = expected.row.as_json("epoch")
        assert trial.row.as_json("epoch") == pytest.approx(numbers, rel=1e-4, abs=1e-6)
    for name, layer in plan.heads[found.winner].layers().items():
        expected = whole_plan.heads[whole.winner].layers()[name]
        assert np.allclose(layer, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("patience", [1, 50])
def test_progress_reaches_its_end(patience: int) -> None:
    steps: list[int] = []
    given = {**SMALL["mlp"], "patience": patience, "learning_rate": 0.05}
    plan, _ = swept(
        "mlp",
        given,
        overlapping(24, 0),
        overlapping(40, 1),
        on_progress=lambda n, row: steps.append(n),
    )
    assert sum(steps) == plan.steps and min(steps) > 0


@pytest.mark.parametrize("kind", ["linear", "mlp", "logistic"])
def test_the_table_is_beside_the_winner(
    kind: str, cache: Path, tmp_path: Path, sweep: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    result = sweep(kind, seed=2, **({} if kind == "logistic" else {"seeds": 2}))
    data = (tmp_path / "run" / "sweep.json").read_bytes()
    table = json.loads(data)
    assert (table["schema"], table["kind"], table["dataset"], table["seed"]) == (1, kind, "set", 2)
    rows = table["combinations"]
    each = 1 if kind == "logistic" else 2
    pairs = [[row["val_loss"] for row in rows[i : i + each]] for i in range(0, len(rows), each)]
    assert pairs == sorted(map(sorted, pairs), key=np.mean)
    assert len(table.get("by_seed", [])) == (0 if kind == "logistic" else len(pairs))
    names = {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert all(set(row) == names | {"params", "seed", "best_epoch", "diverged"} for row in rows)
    assert {row["seed"] for row in rows} == ({2} if kind == "logistic" else {2, 3})
    assert table["varied"] == (
        ["C"]
        if kind == "logistic"
        else [name for name in head_class(kind).sweep_grid if name not in SMALL[kind]] + ["seed"]
    )
    told = json.loads(json.dumps(result.as_json()))["sweep"]
    assert set(told.pop("at_edge")) <= set(table["varied"]) - {"seed"}
    assert told == {
        "trained": len(rows),
        "table": str(tmp_path / "run" / "sweep.json"),
        "best": rows[0],
    }
    loaded = load_head(result.head)
    if kind != "logistic":
        assert loaded.head.params == rows[0]["params"]
    assert loaded.info["sweep"] == {
        "trained": len(rows),
        "seed": rows[0]["seed"],
        "table_sha256": hashlib.sha256(data).hexdigest(),
    }


def test_a_sweep_repeats_itself(
    cache: Path, tmp_path: Path, sweep: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    files = [(sweep("mlp", out=tmp_path / name, seeds=2).head, name) for name in ("a", "b")]
    for name in ("sweep.json", "head.safetensors"):
        first, again = [(folder / name).read_bytes() for folder, _ in files]
        assert first == again


def test_the_winner_alone_is_the_same_head(
    cache: Path, tmp_path: Path, sweep: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    winner = load_head(sweep().head)
    alone = train_head(
        "set", cache=cache, params=winner.head.params, out=tmp_path / "alone", device="cpu"
    )
    for name, tensor in load_head(alone.head).head.tensors().items():
        assert np.allclose(tensor, winner.head.tensors()[name], rtol=1e-3, atol=1e-5)


def test_the_table_is_written_before_the_head_is_complete(
    cache: Path, tmp_path: Path, sweep: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_set(cache, in_splits(train=20, val=8))

    def refuse(run: Any, trained: Any) -> None:
        assert (run.folder / "sweep.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr("featpipe.runs.run.Run.save_head", refuse)
    with pytest.raises(KeyboardInterrupt):
        sweep()


def test_a_plain_head_takes_an_old_table_away(
    cache: Path, sweep: Callable[..., TrainResult]
) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    folder = sweep().head
    assert (folder / "sweep.json").exists()
    result = sweep(sweep=False, overwrite=True)
    assert not (folder / "sweep.json").exists() and "sweep" not in result.as_json()


def row_of(val_loss: float) -> HistoryRow:
    return HistoryRow(1, 0.0, 1.0, val_loss, 1.0)


@pytest.mark.parametrize(
    ("losses", "edges"),
    [
        ([3, 1, 2], {}),
        ([1, 2, 3], {"dropout": "smallest"}),
        ([3, 2, 1], {"dropout": "largest"}),
    ],
)
def test_a_winner_at_the_edge_of_the_grid_is_told(losses: list[float], edges: Any) -> None:
    trials = [
        Trial({"dropout": dropout, "weight_decay": 0.0, "hidden": 4}, 0, row_of(loss))
        for dropout, loss in zip((0.1, 0.2, 0.3), losses, strict=True)
    ]
    trials.append(Trial({"dropout": 0.2, "weight_decay": 1.0, "hidden": 4}, 1, row_of(9)))
    trials.sort(key=lambda trial: trial.loss)
    found = Sweep(0, History("epoch"), trials, ["dropout", "weight_decay", "seed"])
    # No weight decay is less than none, and seeds have no order.
    assert found.at_edge == edges


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "expected --seeds of 1 to 1000, found 0"),
        ({"seeds": 1001}, "expected --seeds of 1 to 1000, found 1001"),
        ({"seeds": True}, "expected a whole number for --seeds, found True"),
        ({"seeds": 2, "head": "logistic"}, "comes out the same with every seed"),
        (
            {"seeds": 2, "seed": 2**32 - 1},
            "the last of --seeds to be at most 4294967295, found 4294967296",
        ),
    ],
)
def test_seeds_that_mean_nothing_are_refused(
    options: dict[str, Any], message: str, sweep: Callable[..., TrainResult]
) -> None:
    with pytest.raises(UsageError, match=message):
        sweep(**options)


def test_the_command_line_shows_the_ten_best(inside: Run, workspace: Path, tmp_path: Path) -> None:
    command = (
        "train-head", "colours", "--cache", workspace / "cache", "--sweep", "--epochs", "2",
    )  # fmt: skip
    done = inside(*command)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["learning-rate", "weight-decay", "epoch", "val", "loss", "val", "train"]
    assert rows[10] == "… and 22 more in runs/colours-linear-1/sweep.json"
    *advice, blank, told, _ = rows[11:]
    assert not blank and told.startswith("linear head in ")
    assert all(
        re.fullmatch(r"the best \S+, \S+, is the \w+est tried: .* better", a) for a in advice
    )
    found = json_of(inside(*command, "--json", "--out", tmp_path / "other"))
    assert found["sweep"]["trained"] == 32
    path = inside(
        *command[:4], "--sweep", "--head", "logistic", "--folds", "3", "--out", tmp_path / "path"
    )
    head, *rows = path.stdout.splitlines()
    assert head.split() == ["C", "cv", "loss", "val", "loss", "val", "train"]
    assert all(len(row) == len(head) for row in rows[:10])
    alone = inside("train-head", "colours", "--cache", workspace / "cache", "--folds", "3")
    assert (
        alone.returncode == 2
        and "found --folds; leave --folds out, or use --head logistic" in alone.stderr
    )


def test_a_recipe_may_sweep(tmp_path: Path) -> None:
    text = '[dataset]\nname = "set"\ndata = "photos"\n[[head]]\nkind = "{}"\n{}\n'
    path = tmp_path / "recipe.toml"
    path.write_text(text.format("mlp", "sweep = true\nseeds = 3\nepochs = 2"))
    (head,) = load_recipe(path).heads
    assert head == HeadSpec(head="mlp", sweep=True, seeds=3, params={"epochs": 2})
    for kind, line, message in (
        ("mlp", "sweep = 1", "expected a truth value for 'sweep'"),
        ("logistic", "sweep = true\nseeds = 3", "comes out the same"),
    ):
        path.write_text(text.format(kind, line))
        with pytest.raises(UsageError, match=message):
            load_recipe(path)


def test_python_sweeps_too(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=20, val=8))
    result = featpipe.train_head(
        "set", cache=cache, sweep=True, epochs=2, weight_decay=0.0, out=tmp_path / "run"
    )
    assert result.sweep is not None and len(result.sweep.rows) == 8
