"""``--precision auto``: asked of the hardware, measured where its word is not enough, and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faulty_disk import FaultyDisk

from featpipe.backbones import bf16_speed as speed
from featpipe.base import hardware
from featpipe.base.disk import use_disk
from featpipe.engine import precision
from featpipe.engine.precision import check_kept_precisions, choose_compute, choose_precision
from featpipe.stages.maintain import repair, verify

CLAIMS = "GenuineIntel-6-207-avx512_bf16"
CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 207
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu avx2 {flags}

processor\t: 1
vendor_id\t: Other
"""


class Processor:
    """One that claims bf16, and how much faster it is measured to be."""

    def __init__(self) -> None:
        self.gain = 2.0
        self.measurements = 0

    def measure(self) -> float:
        self.measurements += 1
        return self.gain


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Processor:
    found = Processor()
    monkeypatch.setattr(precision, "cpu_claims", lambda: CLAIMS)
    monkeypatch.setattr(speed, "bf16_speedup", found.measure)
    return found


def test_what_is_asked_for_is_given_without_measuring(cache: Path, processor: Processor) -> None:
    for name in ("fp32", "bf16", "fp16"):
        assert choose_precision(name, "cpu", cache) == name
    assert processor.measurements == 0 and not cache.exists()


@pytest.mark.parametrize(("gain", "expected"), [(2.0, "bf16"), (1.19, "fp32"), (0.6, "fp32")])
def test_bf16_is_chosen_only_where_it_pays_and_once(
    cache: Path, processor: Processor, gain: float, expected: str
) -> None:
    processor.gain = gain
    assert choose_precision("auto", "cpu", cache) == expected
    processor.gain = 3.0 - processor.gain
    for _ in range(3):
        assert choose_precision("auto", "cpu", cache) == expected, "the choice wavered"
    assert processor.measurements == 1
    assert [f.name for f in (cache / "processors").iterdir()] == [f"{CLAIMS}.{expected}"]


def test_a_processor_without_the_instructions_is_not_measured(
    cache: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "cpu_claims", lambda: "")
    assert choose_precision("auto", "cpu", cache) == "fp32"
    assert choose_precision("auto", "mps", cache) == "fp32"
    assert processor.measurements == 0 and not cache.exists()


def test_a_trial_keeps_nothing(cache: Path, processor: Processor) -> None:
    assert choose_precision("auto", "cpu", cache, remember=False) == "bf16"
    assert not cache.exists()


def test_a_measurement_that_cannot_be_kept_still_counts(cache: Path, processor: Processor) -> None:
    with use_disk(FaultyDisk(fail_at=0)):
        assert choose_precision("auto", "cpu", cache) == "bf16"


def test_another_kind_of_processor_is_measured_anew(
    cache: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose_precision("auto", "cpu", cache)
    monkeypatch.setattr(precision, "cpu_claims", lambda: "AuthenticAMD-25-17-avx512_bf16")
    processor.gain = 0.5
    assert choose_precision("auto", "cpu", cache) == "fp32"
    assert len(list((cache / "processors").iterdir())) == 2


def test_verify_and_repair_know_kept_measurements(cache: Path, processor: Processor) -> None:
    choose_precision("auto", "cpu", cache)
    (cache / "spaces").mkdir()
    assert verify(cache) == (1, [])
    foreign = cache / "processors" / "notes.txt"
    foreign.write_text("x")
    (kept,) = [path for path, problem in check_kept_precisions(cache) if not problem]
    kept.write_bytes(b"1")
    _, damages = verify(cache, quick=True)
    assert {damage.path for damage in damages} == {foreign, kept}
    assert {mended.path for mended in repair(cache)} == {foreign, kept}
    assert verify(cache) == (0, [])


def test_training_has_choices_of_its_own_by_layer(
    cache: Path, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gains = {"convolution": 2.0, "dense": 0.8}
    measured = []

    def measure(layer: str) -> float:
        measured.append(layer)
        return gains[layer]

    monkeypatch.setattr(speed, "training_speedup", measure)
    for _ in range(2):
        assert choose_compute("auto", "cpu", cache, layer="convolution") == "bf16"
        assert choose_compute("auto", "cpu", cache, layer="dense") == "fp32"
        assert choose_compute("bf16", "cpu", cache, layer="dense") == "bf16"
        assert choose_compute("auto", "mps", cache, layer="dense") == "fp32"
    assert measured == ["convolution", "dense"] and processor.measurements == 0
    assert choose_precision("auto", "cpu", cache) == "bf16"
    assert processor.measurements == 1, "the choice of training is not that of features"
    assert sorted(path.name for path in (cache / "processors").iterdir()) == [
        f"{CLAIMS}.bf16",
        f"{CLAIMS}.training-convolution.bf16",
        f"{CLAIMS}.training-dense.fp32",
    ]
    (cache / "spaces").mkdir()
    assert verify(cache) == (3, [])


@pytest.mark.parametrize(("capability", "expected"), [("bf16", "bf16"), ("fp16", "fp32")])
def test_a_gpu_trains_in_bf16_where_it_has_units_for_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capability: str, expected: str
) -> None:
    monkeypatch.setattr(precision, "matrix_precision", lambda device: capability)
    assert choose_compute("auto", "cuda:0", cache, layer="dense") == expected


@pytest.mark.parametrize("layer", ["convolution", "dense"])
def test_a_training_step_is_timed_in_both(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    monkeypatch.setattr(speed, "_BATCH", 2)
    assert 0.001 < speed.training_speedup(layer) < 1000


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx512_bf16 amx_bf16", "GenuineIntel-6-207-amx_bf16-avx512_bf16"),
        ("avx512f", ""),
        ("bf16", "GenuineIntel-6-207-bf16"),
    ],
)
def test_the_first_processor_speaks_for_all(
    monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    text = CPUINFO.format(flags=flags)
    monkeypatch.setattr(Path, "read_text", lambda *args, **kwargs: text)
    hardware.cpu_claims.cache_clear()
    assert hardware.cpu_claims() == expected
    hardware.cpu_claims.cache_clear()


def test_the_measurement_itself_gives_a_ratio() -> None:
    assert 0 < speed.bf16_speedup() < 100
