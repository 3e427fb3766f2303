"""What the threads of an inference pool set up, and what they give back."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.fake_cuda import FakeCuda
from support.samples import class_picture

from featpipe.base.hardware import GPU_LANES
from featpipe.engine import lanes
from featpipe.engine.inference_pool import InferencePool
from featpipe.engine.provenance import provenance


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    monkeypatch.setattr(lanes, "_streams", {})
    yield FakeCuda().install(monkeypatch)


def one_pass(device: str) -> None:
    meeting = threading.Barrier(GPU_LANES)

    def meet(pixels: np.ndarray) -> list[np.ndarray]:
        meeting.wait(timeout=30)
        return [pixels]

    with InferencePool[int](meet, device=device, batch_bytes=1) as pool:
        for number in range(GPU_LANES):
            pool.submit(np.zeros((1, 8, 8, 3), np.uint8), number)
        assert [label for label, _ in pool.results(leave=0)] == list(range(GPU_LANES))


def test_every_lane_computes_on_its_device_with_a_stream_of_its_own(cuda: FakeCuda) -> None:
    one_pass("cuda:1")
    assert cuda.calls[0] == ("synchronize", "cuda:1"), "the weights are there first"
    assert cuda.called("set_device") == [("set_device", "cuda:1")] * GPU_LANES
    streams = [stream for _, stream in cuda.called("set_stream")]
    assert len(set(streams)) == GPU_LANES
    assert {stream.device for stream in streams} == {"cuda:1"}


def test_later_passes_take_the_same_streams_and_each_hands_its_memory_back(cuda: FakeCuda) -> None:
    for device in ("cuda:0", "cuda:0", "cuda:1", "cuda:0"):
        one_pass(device)
        assert cuda.calls[-1] == ("empty_cache",)
    assert len(cuda.called("empty_cache")) == 4
    assert len({stream for _, stream in cuda.called("set_stream")}) == 2 * GPU_LANES


def test_a_network_is_let_go_before_the_memory_is_handed_back(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    import torch

    class Network:
        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            return [pixels]

    network = Network()
    gone = weakref.ref(network)
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(gone() is not None))
    with InferencePool[int](network, device="cuda:0", batch_bytes=1) as pool:
        del network
        pool.submit(np.zeros((1, 8, 8, 3), np.uint8), 0)
        assert len(list(pool.results(leave=0))) == 1
    assert alive == [False]


def test_provenance_names_the_card_and_its_libraries(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 92600)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    found = provenance("cuda:1")
    assert [found[key] for key in ("device", "device_name", "cuda", "cudnn")] == [
        "cuda:1",
        "Card of cuda:1",
        "13.2",
        "92600",
    ]
    assert "cudnn" not in provenance("cpu")


def test_pixels_are_extracted_without_torch(tmp_path: Path) -> None:
    for number, label in enumerate("ab"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for seed in range(5):
            class_picture(number, seed).save(tmp_path / "photos" / label / f"{seed}.png")
    program = (
        "import sys, featpipe\n"
        "done = featpipe.extract('photos', name='x', cache='cache', backbone='pixels', size=8,"
        " workers=1)\n"
        "print(done.computed, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10", "False"]
