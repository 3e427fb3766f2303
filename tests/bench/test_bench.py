"""The bench: turns, medians, verdicts, and that each one runs; what it measures is not tested."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support import tiny_network
from support.command import Run
from support.library import plan_of

from featpipe.bench import peers, pictures
from featpipe.bench.extract import (
    _BACKBONE,
    _DECODING,
    _END_TO_END,
    _PRODUCTS,
    _flop,
    _pixels,
    _ratios,
)
from featpipe.bench.heads import bench_heads
from featpipe.bench.measure import Contender, Report, in_turns, machine
from featpipe.bench.networks import bench_networks
from featpipe.bench.pictures import write_pictures
from featpipe.bench.read import bench_read
from featpipe.bench.suffixes import bench_suffix


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


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_suffixes_are_measured_beside_a_bare_loop(compute: str, tmp_path: Path) -> None:
    report = bench_suffix(
        tmp_path, backbone=tiny_network.NAME, tap=tiny_network.TAP, size=tiny_network.SIZE,
        top="own", compute=compute, rows=40, batch_size=8, rounds=1, device="cpu",
    )  # fmt: skip
    assert all(result.rate > 0 for result in report.results.values())
    ((what, ratio, least),) = report.ratios
    assert what.startswith("rows per second") and ratio > 0 and least == pytest.approx(1 / 1.15)
    assert f"{compute}, cpu" in report.as_text()


@pytest.mark.slow
def test_extraction_is_measured(featpipe: Run) -> None:
    done = featpipe("bench", "extract", "--count", 4, "--rounds", 1, "--quiet")
    assert done.returncode == 0, done.stderr
    assert "end to end / decoding and backbone one after the other" in done.stdout


@pytest.mark.slow
def test_extraction_with_any_backbone_is_measured(featpipe: Run) -> None:
    done = featpipe(
        *("bench", "extract", "--backbone", "shufflenet_v2_x0_5", "--tap", "stage4"),
        *("--count", 4, "--rounds", 1, "--quiet"),
    )
    assert done.returncode == 0, done.stderr
    assert "backbone / torch fp32, eager" in done.stdout
    assert "shufflenet_v2_x0_5 up to stage4 at 224 px" in done.stdout
    assert "keras was not measured: its script is for vgg16" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--backbone", "pixels", "--quick"),
            "expected a --backbone with weights, found 'pixels'; 'featpipe backbones' lists them",
        ),
        (
            ("--backbone", "resnet18", "--quick"),
            "expected --tap for --backbone resnet18, found none; 'featpipe backbones resnet18' "
            "lists its taps",
        ),
    ],
)
def test_a_backbone_that_cannot_be_measured_is_an_error(
    featpipe: Run, options: tuple[str, ...], message: str
) -> None:
    done = featpipe("bench", "extract", *options)
    assert (done.returncode, done.stderr.strip()) == (2, f"Error: {message}")


def test_where_cores_are_shared_the_bound_is_both_times_together() -> None:
    rate = {_END_TO_END: 9.0, _BACKBONE: 20.0, _DECODING: 20.0, _PRODUCTS: 10.0}
    (on_cpu, *_), (on_gpu, *_) = (_ratios(rate, device) for device in ("cpu", "cuda:0"))
    assert on_cpu == ("end to end / decoding and backbone one after the other", 0.9, 0.95)
    assert on_gpu == ("end to end / slower of decoding and backbone", 0.45, 0.95)


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


def test_operations_of_other_networks_end_at_the_tap(cache: Path) -> None:
    options = {"weights": "random:0", "device": "cpu", "precision": "fp32"}
    asked = {**options, "backbone": "resnet18", "tap": ("layer4",)}
    # He et al. (2015), Table 1: 1.8 billion multiplications and additions with the last layer.
    assert _flop(plan_of(asked, cache)) == pytest.approx(2 * 1.814e9, rel=1e-3)


def test_the_backbone_gets_enough_pictures_to_fill_its_batches(tmp_path: Path, cache: Path) -> None:
    write_pictures(tmp_path, 3)
    plan = plan_of({"weights": "random:0", "device": "cpu", "precision": "fp32"}, cache)
    pixels = _pixels(sorted(tmp_path.rglob("*.jpg")), plan)
    assert pixels.shape == (16, 224, 224, 3)
    assert len(np.unique(pixels.reshape(16, -1), axis=0)) == 3
