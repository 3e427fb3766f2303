"""What training does on a GPU, as far as it can be seen without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cuda import FakeCuda, Operations, fake_tensors
from support.heads import WithViews, toy
from torch._subclasses.fake_tensor import FakeTensor

from featpipe.heads import new_head
from featpipe.heads.base import mean_and_scale
from featpipe.heads.training import mlp_group
from featpipe.heads.training.feature_rows import HeldRows, StreamedRows
from featpipe.heads.training.head_group import HeadGroup
from featpipe.heads.training.linear_group import LinearGroup
from featpipe.heads.training.loop import EpochLoop
from featpipe.heads.training.mlp_group import MLPGroup

ROWS, WIDTH = 50, 8


def held(device: str, views: int = 0) -> HeldRows:
    X, y = toy(ROWS, 3, (WIDTH,), dtype="f2")
    return HeldRows(WithViews(X, *[X] * views), y, device, home=device)


def group(kind: type[HeadGroup], device: str, classes: int) -> HeadGroup:
    given: dict[str, Any] = {"dropout": 0.3} if kind is MLPGroup else {}
    rates = (1e-3, 1e-2)
    heads = [
        new_head("mlp" if kind is MLPGroup else "linear", {"learning_rate": rate, **given})
        for rate in rates
    ]
    return kind(
        heads,
        [0, 1],
        width=WIDTH,
        classes=classes,
        scale=2.0,
        class_weights=np.linspace(1, 2, classes),
        log_prior=np.zeros(classes, np.float32),
        device=device,
    )


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [LinearGroup, MLPGroup])
@pytest.mark.parametrize("views", [0, 2])
def test_steps_stay_on_the_card_and_bring_nothing_to_the_host(
    monkeypatch: pytest.MonkeyPatch, kind: type[HeadGroup], classes: int, views: int
) -> None:
    FakeCuda().install(monkeypatch)
    # torch makes no generator for a device that it does not have.
    monkeypatch.setattr(mlp_group, "_dropout_generator", lambda seed, device: None)
    with fake_tensors(monkeypatch):
        rows, trained = held("cuda:1", views), group(kind, "cuda:1", classes)
        order = np.random.default_rng(0)
        with Operations() as operations:
            for batch in rows.shuffled(order, 20):
                losses, hits = trained.learn(*batch)
            trained.keep([1])
            for batch in rows.in_order(20):
                trained.score(*batch)
        assert losses.device == hits.device == torch.device("cuda:1")
        assert {part.value.device for part in trained._parts.values()} == {losses.device}
    assert operations.copies("cuda", "cpu") == []


def test_an_epochs_sums_leave_the_card_in_two_copies_and_none_is_float64_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_tensors(monkeypatch):
        trained = group(LinearGroup, "cuda:1", 3)
        sums = [(torch.rand(2, device="cuda:1"), torch.rand(2, device="cuda:1")) for _ in range(7)]
        rows: Any = SizedRows(torch.zeros(ROWS, dtype=torch.int64, device="cuda:1"))
        # Values are not known here.
        monkeypatch.setattr(FakeTensor, "tolist", lambda self: [0.0])
        monkeypatch.setattr(trained, "weight", lambda y: 1.0)
        loop: Any = SimpleNamespace(trainer=trained)
        with Operations() as operations:
            EpochLoop._means(loop, sums, rows, 1)
    assert len(operations.copies("cuda", "cpu")) == 2
    assert torch.float64 not in operations.dtypes_on("cuda")


class SizedRows:
    """Classes of rows, and how many there are."""

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y

    def __len__(self) -> int:
        return ROWS


def test_class_weights_are_summed_without_float64_on_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 1.0)
    with fake_tensors(monkeypatch):
        trained = group(LinearGroup, "cuda:1", 3)
        with Operations() as operations:
            trained.weight(torch.zeros(ROWS, dtype=torch.int64, device="cuda:1"))
    assert torch.float64 not in operations.dtypes_on("cuda")
    assert torch.float64 in operations.dtypes_on("cpu")


def test_rows_held_on_a_card_are_summed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_tensors(monkeypatch):
        rows = held("cuda:1")
        with Operations() as operations:
            sums = rows._sums()
    assert (sums.device, sums.dtype) == (torch.device("cuda:1"), torch.float64)
    assert sums.shape == (WIDTH + 1,)
    assert operations.copies("cuda", "cpu") == []


def test_rows_held_on_apples_gpu_are_summed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_tensors(monkeypatch):
        rows = held("cuda:1")
        rows.home = "mps"  # this torch has no tensors there, also without values
        with Operations() as operations:
            sums = rows._sums()
    assert (sums.device, sums.dtype) == (torch.device("cpu"), torch.float64)
    assert torch.float64 not in operations.dtypes_on("cuda")
    # Sent as they are stored, and made wider there: a copy that converts does so before it sends.
    sent = [
        dtype for _, read, device, dtype in operations.all if device == "cpu" and "cuda:1" in read
    ]
    assert sent == [torch.float16]


@pytest.mark.parametrize("kind", [HeldRows, StreamedRows])
def test_sums_in_blocks_are_those_of_all_rows(
    monkeypatch: pytest.MonkeyPatch, kind: type[HeldRows] | type[StreamedRows]
) -> None:
    X, y = toy(ROWS, 3, (WIDTH,), dtype="f2")
    monkeypatch.setattr("featpipe.heads.training.feature_rows._PIECE_BYTES", 8 * WIDTH * 7)
    options: Any = {"home": "cpu"} if kind is HeldRows else {}
    for found, expected in zip(
        kind(X, y, "cpu", **options).mean_and_scale(), mean_and_scale(X), strict=True
    ):
        assert np.allclose(found, expected, rtol=1e-6)
