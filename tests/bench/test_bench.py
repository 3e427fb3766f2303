"""The bench: turns, medians, verdicts, and that each one runs; what it measures is not tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.command import Run
from support.library import plan_of

from featpipe.bench import peers, pictures
from featpipe.bench.extract import _flop, _pixels
from featpipe.bench.heads import bench_heads
from featpipe.bench.measure import Contender, Report, in_turns, machine
from featpipe.bench.networks import bench_networks
from featpipe.bench.pictures import write_pictures
from featpipe.bench.read import bench_read


def test_contenders_take_turns_and_warm_up_unmeasured() -> None:
    calls: list[str] = []
    contenders = [
        Contender("a", lambda: calls.append("a")),
        Contender("b", lambda: calls.append("b")),
    ]
    results = in_turns(contenders, 2, warm_up=True)
    assert "".join(calls) == "ab" * 3
    assert [len(result.rates) for result in results.values()] == [2, 2]


def test_rates_count_the_work_that_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 14.0, 20.0, 21.0])
    monkeypatch.setattr("featpipe.bench.measure.time.perf_counter", lambda: next(clock))
    (result,) = in_turns([Contender("a", lambda: 8.0)], 3).values()
    assert result.rates == [4.0, 2.0, 8.0]
    assert result.rate == 4.0, "the median"


def test_a_report_says_what_was_reached_and_what_was_missed() -> None:
    results = in_turns([Contender("a", lambda: None)], 1)
    report = Report("read", "GB/s", results, [("x", 2.0, 1.5), ("y", 1.0, 1.5), ("z", 1.0, None)])
    lines = report.as_text().splitlines()
    assert [line.split()[-1] for line in lines if "target" in line] == ["reached", "missed"]
    assert report.as_json()["ratios"][2] == {"what": "z", "ratio": 1.0, "target": None}
    assert report.as_json()["machine"] == machine()


def test_reading_is_measured(tmp_path: Path) -> None:
    report = bench_read(tmp_path, rows=40, many=300, rounds=1)
    assert all(result.rate > 0 for result in report.results.values())
    assert "40 rows, 1 segments" in report.notes


def test_heads_are_measured(tmp_path: Path) -> None:
    report = bench_heads(tmp_path, rows=50, width=16, classes=2, rounds=1, device="cpu")
    assert all(result.rate > 0 for result in report.results.values())
    assert any("train-head linear" in note for note in report.notes)


def test_networks_are_measured_beside_a_bare_loop() -> None:
    for optimizer in ("adamw", "sgd", "rmsprop"):
        report = bench_networks(
            kind="lenet",
            rows=60,
            side=16,
            channels=1,
            batch_size=16,
            optimizer=optimizer,
            rounds=1,
            device="cpu",
        )
        assert [len(result.rates) for result in report.results.values()] == [1, 1]
        assert all(result.rate > 0 for result in report.results.values())


@pytest.mark.slow
def test_extraction_is_measured(featpipe: Run) -> None:
    done = featpipe("bench", "extract", "--count", 4, "--rounds", 1, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "end to end / slower of decoding and backbone" in done.stdout


def test_made_up_pictures_are_all_different(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_DRAWN", 2)
    write_pictures(tmp_path, 4)
    contents = {path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    assert len(contents) == 4


def test_a_peer_that_is_not_there_is_told() -> None:
    assert peers.unusable("no_such_package_at_all") == "not installed"


def test_a_pictures_operations_are_those_of_the_convolutions(cache: Path) -> None:
    plan = plan_of({"weights": "random:0", "device": "cpu", "precision": "fp32"}, cache)
    # Simonyan and Zisserman's network at 224 px: 15.3 billion multiplications and additions.
    assert _flop(plan) == pytest.approx(30.69e9, rel=1e-3)


def test_the_backbone_gets_enough_pictures_to_fill_its_batches(tmp_path: Path, cache: Path) -> None:
    write_pictures(tmp_path, 3)
    plan = plan_of({"weights": "random:0", "device": "cpu", "precision": "fp32"}, cache)
    pixels = _pixels(sorted(tmp_path.rglob("*.jpg")), plan)
    assert pixels.shape == (16, 224, 224, 3)
    assert len(np.unique(pixels.reshape(16, -1), axis=0)) == 3
