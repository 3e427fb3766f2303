"""Which device a name means, and what is said of a GPU that torch cannot use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.fake_cuda import FakeCuda

from featpipe.base import hardware
from featpipe.base.errors import UsageError
from featpipe.base.hardware import resolve_device


@pytest.fixture(autouse=True)
def forget_the_best_device() -> Iterator[None]:
    hardware._best_device.cache_clear()
    yield
    hardware._best_device.cache_clear()


@pytest.mark.parametrize(
    ("current", "name", "expected"),
    [
        (0, "cuda", "cuda:0"),
        (1, "cuda", "cuda:1"),
        (1, "auto", "cuda:1"),
        (1, "cuda:0", "cuda:0"),
        (0, "cuda:1", "cuda:1"),
        (1, "cpu", "cpu"),
    ],
)
def test_a_cuda_device_has_an_index(
    monkeypatch: pytest.MonkeyPatch, current: int, name: str, expected: str
) -> None:
    cuda = FakeCuda().show(monkeypatch)
    cuda.current = current
    monkeypatch.setattr(hardware, "_gpu_file", lambda: "/dev/nvidia0")
    assert resolve_device(name) == expected


@pytest.mark.parametrize(
    "name",
    ["cuda:", "cuda:01", "cuda:00", "cuda:2", "cuda:-1", "cuda:1 ", "cuda:²", "CUDA", "cuda:99999"],
)
def test_other_spellings_are_refused_where_there_are_cards(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    FakeCuda().show(monkeypatch)
    with pytest.raises(UsageError) as caught:
        resolve_device(name)
    assert str(caught.value) == (
        f"expected a device this machine has, found {name!r}; use --device auto or cpu"
    )


def without_gpu(monkeypatch: pytest.MonkeyPatch, file: str, built_for: str | None) -> None:
    FakeCuda(count=0).show(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware, "_gpu_file", lambda: file)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch, "__version__", "2.15.0")


@pytest.mark.parametrize(
    ("built_for", "advice"),
    [("13.2", "look for a driver for 13.2"), (None, "install torch for this GPU")],
)
def test_a_gpu_that_torch_cannot_use_becomes_the_cpu_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    built_for: str | None,
    advice: str,
) -> None:
    without_gpu(monkeypatch, "/dev/nvidia0", built_for)
    assert [resolve_device(), resolve_device()] == ["cpu", "cpu"]
    assert [record.getMessage() for record in caplog.records] == [
        "expected to compute on the GPU (/dev/nvidia0), found that torch 2.15.0 cannot: using the "
        f"CPU, which is many times slower; {advice}, or say --device cpu"
    ]


def test_nothing_is_said_where_there_is_no_gpu_or_it_is_hidden_or_not_wanted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    without_gpu(monkeypatch, "/dev/nvidia0", "13.2")
    assert resolve_device("cpu") == "cpu"
    for file in ("", "/dev/dxg"):
        monkeypatch.setattr(hardware, "_gpu_file", lambda file=file: file)
        hardware._best_device.cache_clear()
        assert resolve_device() == "cpu"
    monkeypatch.setattr(hardware, "_gpu_file", lambda: "/dev/nvidia0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hardware._best_device.cache_clear()
    assert resolve_device() == "cpu"
    assert caplog.records == []


def test_a_gpu_is_seen_by_its_device_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert hardware._gpu_file() == ""
    (tmp_path / "dev").mkdir()
    for name in ("kfd", "nvidiactl", "nvidia0"):
        (tmp_path / "dev" / name).touch()
        assert hardware._gpu_file() == str(tmp_path / "dev" / name)
