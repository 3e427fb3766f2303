"""Heads are compared on the very same pictures, and runs are listed with their scores."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.command import Run, json_of
from support.library import evaluate, train_head
from support.runs import load_head, save_head, trained_head
from support.samples import in_splits, small_space, stored_set

import featpipe
from featpipe.base.errors import DataError, NotFoundError, UsageError
from featpipe.cli.comparing import of_runs


@pytest.fixture
def head(cache: Path, tmp_path: Path) -> Callable[..., Path]:
    """Train a head on a data set and return its run folder."""

    def go(folder: str, *, name: str = "set", **options: Any) -> Path:
        options = {"head": "logistic", "params": {"C": 0.1}, **options}
        out = tmp_path / "runs" / folder
        return train_head(name, cache=cache, device="cpu", out=out, **options).head

    return go


@pytest.fixture
def two(cache: Path, head: Callable[..., Path]) -> list[Path]:
    """Two heads of one data set: a useful one, and one that was hardly trained."""
    stored_set(cache, in_splits(train=20, val=5, test=30))
    return [head("weak", params={"C": 1e-9}), head("good")]


def compare(heads: list[Path], cache: Path, tmp_path: Path, **options: Any) -> dict[str, Any]:
    done = featpipe.compare(heads, cache=cache, **{"out": tmp_path / "compared", **options})
    return dict(done.as_json())


def test_heads_are_scored_as_evaluate_scores_them(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    found = compare(two, cache, tmp_path)
    assert (found["dataset"], found["split"], found["n"]) == ("set", "test", 60)
    for row in found["heads"]:
        alone = evaluate(Path(row["head"]), cache=cache).metrics
        for name in ("accuracy", "accuracy_ci95", "log_loss", "ece"):
            assert row[name] == alone[name]
        files = (Path(row["head"]) / name for name in ("head.json", "head.safetensors"))
        assert row["bytes"] == sum(path.stat().st_size for path in files)
    accuracies = [row["accuracy"] for row in found["heads"]]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_pair_counts_the_pictures_that_only_one_head_got_right(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    (pair,) = compare(two, cache, tmp_path)["pairs"]
    right = {}
    for folder in two:
        loaded = load_head(folder)
        X, y = featpipe.open_features("set", split="test", cache=cache)
        names = np.array(["cat", "dog"])[y]
        right[str(folder)] = loaded.head.predict(np.asarray(X)) == names
    a, b = right[pair["a"]], right[pair["b"]]
    assert pair["only_a_right"] == (a & ~b).sum()
    assert pair["only_b_right"] == (b & ~a).sum()
    assert pair["p_value"] == pair["p_value_holm"]


def test_the_comparison_is_written_as_json_and_as_a_page(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    found = compare(two, cache, tmp_path)
    document = json.loads((tmp_path / "compared/comparison.json").read_text("ascii"))
    assert document.pop("schema") == 1
    assert document == found
    page = Path(found["report"]).read_text("utf-8")
    assert all(str(folder) in page for folder in two)
    assert page.count("<svg") == 3, "accuracy by C, coverage, calibration; one C has no curve"
    assert f"{found['heads'][0]['accuracy']:.2%}" in page


def test_heads_of_several_taps_are_drawn_in_the_order_of_the_network(
    cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    taps = ["block5_pool", "block1_pool", "block3_conv1"]
    spaces = [small_space(backbone="vgg16", tap=tap) for tap in taps]
    stored_set(cache, in_splits(train=20, val=5, test=30), spaces=spaces)
    page = Path(compare([head(tap, tap=tap) for tap in taps], cache, tmp_path)["report"])
    text = page.read_text("utf-8")
    svg = text[text.index('<svg role="img" aria-label="accuracy by tap"') :].partition("</svg>")[0]
    assert re.findall(r"<!-- (block\S+) -->", svg) == ["block1_pool", "block3_conv1", "block5_pool"]
    assert text.count("<svg") == 3


@pytest.mark.parametrize(
    ("said", "shown"), [(0.25, 0.25), (0, None), (-1, None), ([1], None), (None, None)]
)
def test_the_seconds_of_an_epoch_are_told_where_a_head_says_them(
    cache: Path, tmp_path: Path, two: list[Path], said: object, shown: float | None
) -> None:
    for number, folder in enumerate(two):
        trained = load_head(folder)
        trained.info["epoch_seconds"] = said
        save_head(tmp_path / f"{number}", trained)
    found = compare([tmp_path / "0", tmp_path / "1"], cache, tmp_path)
    assert [row["seconds_per_epoch"] for row in found["heads"]] == [shown, shown]
    page = Path(found["report"]).read_text("utf-8")
    assert ("Seconds per epoch by C" in page) == (shown is not None)


def test_heads_of_other_pictures_are_refused_without_on(
    cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    stored_set(cache, in_splits(train=20, val=5, test=10), name="small")
    heads = [head("one"), head("two", name="small")]
    with pytest.raises(DataError) as caught:
        compare(heads, cache, tmp_path)
    assert str(caught.value) == (
        f"expected heads with the same pictures and labels in split 'test', found 60 of 'set' "
        f"({heads[0]}) and 20 of 'small' ({heads[1]}); name one data set for all of them with --on"
    )
    assert not (tmp_path / "compared").exists()
    assert compare(heads, cache, tmp_path, on="small")["n"] == 20


def test_the_same_pictures_under_another_name_can_be_compared(
    cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    samples = in_splits(train=20, val=5, test=30)
    stored_set(cache, samples)
    stored_set(cache, list(reversed(samples)), name="copy")
    found = compare([head("one"), head("two", name="copy")], cache, tmp_path)
    (pair,) = found["pairs"]
    assert (pair["only_a_right"], pair["only_b_right"], pair["p_value"]) == (0, 0, 1.0)


def test_other_labels_are_other_pictures(
    cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    samples = in_splits(train=20, val=5, test=30)
    stored_set(cache, samples)
    swapped = [(p, "dog" if p == "test/cat/0.png" else label, s) for p, label, s in samples]
    stored_set(cache, swapped, name="relabelled")
    with pytest.raises(DataError, match="expected heads with the same pictures and labels"):
        compare([head("one"), head("two", name="relabelled")], cache, tmp_path)


def test_pictures_that_a_head_was_trained_on_are_named(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    found = compare(two, cache, tmp_path, split="train")
    assert found["notes"] == [
        "every head was trained on or validated with these 40 pictures: the scores are too high"
    ]
    assert [row["trained_on"] for row in found["heads"]] == [40, 40]


def test_a_head_that_has_seen_some_of_the_pictures_is_named(
    cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    moved = [(p, c, "train" if p.startswith("test/cat/") else s) for p, c, s in in_splits(test=30)]
    stored_set(cache, [*in_splits(train=20, val=5), *moved], name="leaky")
    heads = [head("fair"), head("unfair", name="leaky")]
    assert compare(heads, cache, tmp_path, on="set")["notes"] == [
        f"{heads[1]} was trained on or validated with 30 of the 60 pictures: its scores are too "
        "high"
    ]


def test_heads_are_shown_with_what_was_asked_for_beyond_the_defaults(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    found = compare(two, cache, tmp_path)
    by_name = {Path(row["head"]).name: row for row in found["heads"]}
    assert by_name["good"]["params"]["C"] == 0.1
    assert by_name["good"]["features"] == small_space().words
    page = Path(found["report"]).read_text("utf-8")
    assert "logistic, C 0.1" in page and "logistic, C 1e-09" in page
    assert small_space().words in page


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["good"], "expected at least two heads to compare, found 1"),
        (["good", "weak", "../runs/good"], "expected different heads to compare, found .* twice"),
    ],
)
def test_two_different_heads_are_needed(
    cache: Path, tmp_path: Path, two: list[Path], names: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        compare([tmp_path / "runs" / name for name in names], cache, tmp_path)


def test_a_head_named_by_its_file_is_the_same_head(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    with pytest.raises(UsageError, match="expected different heads to compare"):
        compare([two[0], two[0] / "head.json"], cache, tmp_path)


def test_a_folder_that_may_not_be_entered_ends_no_list(
    tmp_path: Path, two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "locked").mkdir()
    exists = Path.exists

    def refused(path: Path, **options: Any) -> bool:
        if path.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **options)

    monkeypatch.setattr(Path, "exists", refused)
    assert len(featpipe.list_runs(tmp_path / "runs").found.runs) == 2


def test_a_hostile_folder_name_stays_text(cache: Path, tmp_path: Path, two: list[Path]) -> None:
    bad = tmp_path / "runs" / "<script>alert(1)</script>$x$\x07"
    os.makedirs(bad.parent, exist_ok=True)
    os.rename(two[0], bad)
    page = Path(compare([bad, two[1]], cache, tmp_path)["report"]).read_text("utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "\x07" not in page


def test_compare_on_the_command_line(featpipe: Run, own_workspace: Path) -> None:
    common = ("--cache", own_workspace / "cache")
    featpipe("train-head", "colours", "--head", "logistic", "--out", "other", *common)
    done = featpipe("compare", "run", "other", "--json", *common)
    assert done.returncode == 0, done.stderr
    document = json_of(done)
    assert Path(document["report"]) == Path("comparisons/colours-1/comparison.html")
    done = featpipe("compare", "run", "other", *common)
    assert "McNemar's exact test" in done.stdout
    assert done.stdout.splitlines()[-1] == "comparison: comparisons/colours-2/comparison.html"


def test_runs_are_listed_with_their_scores_best_validation_first(
    cache: Path, tmp_path: Path, two: list[Path]
) -> None:
    evaluate(two[1], cache=cache)
    listed = featpipe.list_runs(tmp_path / "runs").as_json()
    assert [Path(row["run"]).name for row in listed["runs"]] == ["good", "weak"]
    good, weak = listed["runs"]
    assert good["val_accuracy"] >= weak["val_accuracy"]
    assert (good["test_n"], weak["test_n"], weak["test_accuracy"]) == (60, None, None)
    assert good["test_accuracy"] is not None and len(good["test_accuracy_ci95"] or []) == 2
    space = small_space()
    assert (good["tap"], good["pool"], good["kind"]) == (space.tap, space.pooling, "logistic")
    assert good["params"]["C"] == 0.1


def test_a_head_of_few_pictures_is_told_apart_in_the_list(
    featpipe: Run, cache: Path, tmp_path: Path, head: Callable[..., Path]
) -> None:
    stored_set(cache, in_splits(train=20, val=5, test=30))
    head("few", params={}, n_shot=(2,), tries=2)
    head("scaled", params={"C": 0.1}, calibrate=True)
    done = featpipe("runs")
    assert "logistic n-shot=2" in done.stdout
    assert "logistic C=0.1 calibration" in done.stdout


def test_a_head_that_was_replaced_loses_its_test_scores(
    cache: Path, tmp_path: Path, two: list[Path], head: Callable[..., Path]
) -> None:
    evaluate(two[1], cache=cache)
    head("good", params={"C": 0.5}, overwrite=True)
    rows = featpipe.list_runs(tmp_path / "runs").as_json()["runs"]
    assert [row["test_accuracy"] for row in rows] == [None, None]


@pytest.mark.parametrize("sort", ["val", "test", "age", "name"])
def test_runs_are_sorted_as_asked(cache: Path, tmp_path: Path, two: list[Path], sort: str) -> None:
    evaluate(two[0], cache=cache)
    now = time.time()
    os.utime(two[0] / "head.json", (now - 90_000, now - 90_000))
    rows = featpipe.list_runs(tmp_path / "runs", sort=sort).as_json()["runs"]
    first = {"val": "good", "test": "weak", "age": "good", "name": "good"}[sort]
    assert Path(rows[0]["run"]).name == first


def test_a_damaged_run_is_named_and_stops_nothing(
    featpipe: Run, tmp_path: Path, two: list[Path]
) -> None:
    (two[0] / "head.json").write_text("{")
    done = featpipe("runs")
    assert done.returncode == 0
    assert "runs/good" in done.stdout and "runs/weak" not in done.stdout
    assert done.stderr.startswith("warning: runs/weak is not listed: expected a whole head in")
    document = json_of(featpipe("runs", "--json"))
    assert [row["run"] for row in document["damaged"]] == ["runs/weak"]


def test_runs_of_a_missing_folder_exits_10(featpipe: Run) -> None:
    done = featpipe("runs", "nowhere")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a folder of runs at nowhere, found none; 'featpipe train-head NAME' makes "
        "one, or name another folder\n"
    )


def test_a_folder_without_runs_says_so(featpipe: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = featpipe("runs", "empty")
    assert (done.returncode, done.stdout) == (
        0,
        "no runs in empty; 'featpipe train-head NAME' makes one\n",
    )


def test_a_run_below_folders_is_found_and_a_link_is_not_followed(
    tmp_path: Path, two: list[Path]
) -> None:
    deep = tmp_path / "work" / "a" / "b"
    deep.mkdir(parents=True)
    os.rename(two[0], deep / "head")
    os.symlink(two[1], tmp_path / "work" / "link")
    rows = featpipe.list_runs(tmp_path / "work").as_json()["runs"]
    assert [row["run"] for row in rows] == [str(deep / "head")]
    with pytest.raises(NotFoundError):
        featpipe.list_runs(tmp_path / "nowhere")


@settings(max_examples=25, deadline=None)
@example([0.1, float("inf")])
@example([10**400, 1])
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=3), st.lists))
def test_a_list_of_runs_survives_metrics_that_say_anything(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        save_head(run, trained_head("logistic"))
        document = {"split": "test", "dataset": "pets", "n": 3, "accuracy": 1.0}
        (run / "metrics.json").write_text(json.dumps({**document, "accuracy_ci95": value}))
        listed = featpipe.list_runs(folder)
        assert len(listed.found.runs) + len(listed.found.damaged) == 1
        of_runs(listed)
        json.dumps(listed.as_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"train": {}, "val": {}}),
        ("metrics", {"train": 3, "val": 3}),
        ("kind", "linea"),
        ("params", {"learning_rate": -1}),
        ("feature_space_id", "x"),
    ],
)
def test_a_description_that_says_impossible_things_is_damaged(
    tmp_path: Path, key: str, value: object
) -> None:
    path = save_head(tmp_path / "run", trained_head()) / "head.json"
    document = {**json.loads(path.read_text()), key: value}
    del document["sha256"]
    text = json.dumps(document, sort_keys=True).encode("ascii")
    path.write_text(json.dumps({**document, "sha256": hashlib.sha256(text).hexdigest()}))
    listed = featpipe.list_runs(tmp_path)
    assert (listed.found.runs, len(listed.found.damaged)) == ([], 1)
