"""Batches at the same time, results in order, nothing lost, the thread count given back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from featpipe.engine import lanes as lanes_module
from featpipe.engine.inference_pool import InferencePool
from featpipe.engine.lanes import lanes_for

_PIXEL = 3 * 64 * 4
"""Bytes that a pixel of the input takes in VGG."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(number: int) -> np.ndarray:
    return np.full((1, 8, 8, 3), number, np.uint8)


def identity(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels]


def pool_of(network: object = identity, size: int = 8) -> InferencePool[int]:
    return InferencePool(network, device="cpu", batch_bytes=size * size * _PIXEL)  # type: ignore[arg-type]


def test_results_come_in_the_order_of_submission() -> None:
    def slow_at_first(pixels: np.ndarray) -> list[np.ndarray]:
        time.sleep(0.02 if pixels[0, 0, 0, 0] % 3 == 0 else 0)
        return [pixels]

    found = []
    with pool_of(slow_at_first) as pool:
        for number in range(12):
            pool.submit(batch(number), number)
            found += list(pool.results())
        found += list(pool.results(leave=0))
    assert [label for label, _ in found] == list(range(12))
    assert all((arrays[0] == label).all() for label, arrays in found)
    assert 0.02 <= pool.busy_seconds < 12 * 0.1


def test_each_core_has_a_batch_of_its_own_at_the_same_time() -> None:
    meeting = threading.Barrier(2)

    def meet(pixels: np.ndarray) -> list[np.ndarray]:
        meeting.wait(timeout=30)
        return [np.array(torch.get_num_threads())]

    with pool_of(meet) as pool:
        assert pool.count == 2
        for number in range(4):
            pool.submit(batch(number), number)
        assert [int(arrays[0]) for _, arrays in pool.results(leave=0)] == [1] * 4


def test_the_thread_count_is_given_back_to_this_and_later_threads() -> None:
    with pool_of() as pool:
        pool.submit(batch(0), 0)
        list(pool.results(leave=0))
    found = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [2, 2]


def test_no_more_than_two_batches_a_lane_are_under_way() -> None:
    go = threading.Event()

    def wait(pixels: np.ndarray) -> list[np.ndarray]:
        assert go.wait(30)
        return [pixels]

    with pool_of(wait) as pool:
        for number in range(4):
            pool.submit(batch(number), number)
            assert list(pool.results()) == [], "there is room, and nobody waits"
        pool.submit(batch(4), 4)
        threading.Timer(0.05, go.set).start()
        first, _ = next(pool.results())
        assert first == 0
        assert go.is_set(), "it waited for the first"


def test_a_failure_comes_at_its_turn_and_the_others_are_left_over() -> None:
    def fail(pixels: np.ndarray) -> list[np.ndarray]:
        if pixels[0, 0, 0, 0] == 1:
            raise ValueError("one")
        return [pixels]

    found = []
    with pool_of(fail) as pool, pytest.raises(ValueError, match="one"):
        for number in range(4):
            pool.submit(batch(number), number)
        time.sleep(0.2)
        for label, _ in pool.results(leave=0):
            found.append(label)
    assert found == [0]
    assert [label for label, _ in pool.leftovers()] == [2, 3]
    assert [label for label, _ in pool.leftovers()] == [], "once"


def test_what_was_not_begun_is_cancelled_at_the_end() -> None:
    begun = threading.Semaphore(0)
    go = threading.Event()

    def wait(pixels: np.ndarray) -> list[np.ndarray]:
        begun.release()
        assert go.wait(30)
        return [pixels]

    with pool_of(wait) as pool:
        for number in range(6):
            pool.submit(batch(number), number)
        begun.acquire(timeout=30)
        begun.acquire(timeout=30)
        threading.Timer(0.05, go.set).start()
    kept = [label for label, _ in pool.leftovers()]
    assert kept[:2] == [0, 1]
    assert len(kept) < 6


@pytest.mark.parametrize(
    ("free", "size", "expected"),
    [(2**40, 224, 16), (8 * 38_535_168 * 4, 224, 8), (0, 224, 1), (2**34, 4096, 1)],
)
def test_threads_fit_the_memory(
    monkeypatch: pytest.MonkeyPatch, free: int, size: int, expected: int
) -> None:
    monkeypatch.setattr(lanes_module, "free_memory", lambda: free)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert lanes_for("cpu", size * size * _PIXEL).count == expected
    assert lanes_for("mps", size * size * _PIXEL).count == 1
    assert lanes_for("cpu", 0).count == 1
