"""What training takes is known beforehand, and what cannot fit is refused before it begins."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.command import Run
from support.heads import MAP_KINDS, MAP_SHAPE, banded, made
from torch import nn

from featpipe.base.errors import OutOfMemoryError
from featpipe.heads import new_head
from featpipe.heads.layer_costs import activation_bytes
from featpipe.heads.lenet import LeNetHead
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.suffix import SuffixHead
from featpipe.heads.training import feature_rows as rows_module
from featpipe.heads.training import fit as training
from featpipe.heads.training import memory
from featpipe.heads.training.feature_rows import StreamedRows
from featpipe.heads.training.loop import EpochLoop
from featpipe.heads.training.module_trainer import ModuleTrainer, random_numbers


def head_of(kind: str, **params: Any) -> ModuleHead:
    head = new_head(kind, params)
    assert isinstance(head, ModuleHead)
    head.classes_, head.row_shape_ = np.array(["a", "b"]), MAP_SHAPE
    return head


def fit(head: ModuleHead, n: int = 40) -> Any:
    data = (*banded(n, dtype="u1"), *banded(20, seed=1, dtype="u1"))
    return head.fit(*data, seed=0, device="cpu", tick=lambda _: None)


@pytest.mark.parametrize(
    ("options", "moments", "copied"),
    [
        ({"optimizer": "adamw"}, 2, 0),
        ({"optimizer": "sgd"}, 1, 0),
        ({"optimizer": "sgd", "momentum": 0}, 0, 0),
        ({"optimizer": "rmsprop"}, 2, 0),
        ({"compute": "bf16"}, 2, 0.5),
    ],
)
def test_memory_is_counted_by_what_it_is_for(
    options: dict[str, Any], moments: int, copied: float
) -> None:
    head = head_of("simplecnn", batch_size=7, **options)
    numbers = sum(p.numel() for p in head.new_module(MAP_SHAPE).parameters())
    needed = memory.training_memory(head, MAP_SHAPE)
    assert needed.parameters == 4 * numbers + int(copied * 4 * numbers)
    assert needed.gradients == needed.best == 4 * numbers
    assert needed.moments == moments * 4 * numbers
    assert needed.total == sum(vars(needed).values())


def test_activations_are_what_a_batch_leaves_for_the_way_back() -> None:
    layers = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)
    )
    saved, widest = activation_bytes(layers, (2, 10, 10))
    # The input of the convolution, the output of the ReLU (and the same numbers, flattened).
    assert saved == 4 * (2 * 100 + 8 * 100)
    assert widest == 4 * 800


def test_frozen_parameters_have_no_gradient_and_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = {"conv1.weight": 0.0, "conv1.bias": 0.0}
    monkeypatch.setattr(LeNetHead, "rate_factors", lambda self, module: frozen)
    head = head_of("lenet")
    module = head.new_module(MAP_SHAPE)
    numbers = {name: p.numel() for name, p in module.named_parameters()}
    trained = 4 * sum(size for name, size in numbers.items() if name not in frozen)
    needed = memory.training_memory(head, MAP_SHAPE)
    assert (needed.gradients, needed.best) == (trained, trained)
    assert needed.parameters == 4 * sum(numbers.values())
    with torch.no_grad(), random_numbers(0, "cpu"):
        trainer = ModuleTrainer(
            head, scale=1.0, class_weights=np.ones(2), planned_steps=1, device="cpu"
        )
    state = trainer.state()
    assert not state.keys() & frozen.keys()
    layers = trainer.layers({name: value.clone() for name, value in state.items()}, 0, 0)
    assert [*layers] == [f"module.{name}" for name in numbers], "they are in the head all the same"
    fit(head)
    assert head.layers_["module.conv1.bias"].shape == (6,)


@pytest.mark.parametrize("kind", [kind for kind in MAP_KINDS if kind != "suffix"])
def test_counting_draws_nothing_and_takes_no_memory(kind: str) -> None:
    before = torch.get_rng_state()
    head = head_of(kind, batch_size=64)
    needed = memory.training_memory(head, (3, 1024, 1024))
    assert torch.equal(torch.get_rng_state(), before)
    assert needed.activations > 64 * 4 * 3 * 1024**2


def test_a_suffix_is_counted_as_the_layers_that_it_has() -> None:
    counted = {}
    for factor in (1.0, 0.0):
        head = made("suffix", {"backbone_rate_factor": factor, "batch_size": 4})
        assert isinstance(head, SuffixHead)
        head.classes_ = np.array(["a", "b"])
        head.start_from(head._start, pretrained=True)
        counted[factor] = memory.training_memory(head, MAP_SHAPE)
        numbers = sum(p.numel() for p in head.blank_module(MAP_SHAPE).parameters())
        assert counted[factor].parameters == 4 * numbers
    assert counted[1.0].gradients == 4 * numbers > counted[0.0].gradients
    assert counted[0.0].moments == 2 * counted[0.0].gradients
    assert counted[1.0].activations > 0


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How much memory is free, as training finds it."""
    free = {"bytes": 0}
    monkeypatch.setattr(memory, "free_memory", lambda device: free["bytes"])
    yield free


def test_what_cannot_fit_is_refused_before_rows_are_read(
    little: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module.HeldRows, "__init__", None)
    head = head_of("simplecnn", batch_size=64)
    needed = memory.training_memory(head, MAP_SHAPE)
    little["bytes"] = needed.total - 1
    with pytest.raises(OutOfMemoryError) as caught:
        fit(head)
    size = r"\d+\.\d MiB"
    assert re.fullmatch(
        rf"expected at least {size} \(parameters {size}, gradients {size}, moments {size}, best "
        rf"epoch {size}, activations of a batch of 64 {size}\) of free memory to train "
        rf"'simplecnn', found {size}; use a smaller --batch-size",
        str(caught.value),
    )
    # A smaller batch does not help where the parameters alone do not fit.
    little["bytes"] = needed.parameters
    with pytest.raises(OutOfMemoryError, match=r"use smaller maps \(a smaller --size\) or a small"):
        fit(head)


def test_it_is_said_beforehand_what_training_takes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, logger="featpipe"):
        fit(head_of("lenet", epochs=1))
    assert not caplog.records, "a small network takes little"
    for module in (memory, training):
        monkeypatch.setattr(module, "WORTH_SAYING", 0)
    with caplog.at_level(logging.INFO, logger="featpipe"):
        fit(head_of("lenet", epochs=1, batch_size=16))
    assert not caplog.records, "only --verbose tells it where there is memory enough"
    with caplog.at_level(logging.DEBUG, logger="featpipe"):
        fit(head_of("lenet", epochs=1, batch_size=16))
    needs, rows = (record.message for record in caplog.records)
    assert needs.startswith("training 'lenet' takes ") and "of a batch of 16" in needs
    assert rows == "rows of train: 0.0 MiB, held in memory (cpu)"


def test_rows_are_held_in_what_training_leaves_free(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = banded(40, dtype="u1")
    monkeypatch.setattr(rows_module, "free_memory", lambda device: 2 * X.nbytes + 1000)
    assert rows_module.fits(X, "cpu", reserved=1000)
    assert not rows_module.fits(X, "cpu", reserved=1001)
    assert isinstance(rows_module.feature_rows(X, y, "cpu", reserved=1001), StreamedRows)


def test_a_network_learns_from_streamed_rows_as_from_held_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = {"epochs": 6, "batch_size": 8, "learning_rate": 3e-3}
    held, streamed = head_of("lenet", **rates), head_of("lenet", **rates)
    before = fit(held, 64).kept
    monkeypatch.setattr(rows_module, "HELD_SHARE", 0.0)
    monkeypatch.setattr(rows_module, "_BLOCK_BYTES", 4 * 512 * 5)
    seen = 0
    read = StreamedRows._read

    def watched(self: StreamedRows, *place: Any) -> None:
        nonlocal seen
        seen += 1
        read(self, *place)

    monkeypatch.setattr(StreamedRows, "_read", watched)
    after = fit(streamed, 64).kept
    assert seen > 20
    assert (before.val_accuracy, after.val_accuracy) == (1.0, 1.0)


def test_the_best_epoch_is_not_copied_before_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[bool] = []
    keep = EpochLoop._keep_improved

    def watched(self: EpochLoop) -> None:
        copies.append(bool(self.best))
        keep(self)

    monkeypatch.setattr(EpochLoop, "_keep_improved", watched)
    fit(head_of("lenet", epochs=3))
    assert copies == [False, True, True]


def test_a_trained_head_holds_the_best_epoch_once() -> None:
    head = head_of("simplecnn", epochs=2)
    fit(head)
    head.predict_proba(banded(4, dtype="u1")[0])
    module = head._evaluating()
    for name, parameter in module.state_dict().items():
        assert np.shares_memory(parameter.numpy(), head.layers_[f"module.{name}"]), name


def test_blocks_are_bounded_by_the_widest_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    head = head_of("lenet", epochs=1)
    # 16 x 16 maps of 512 channels inside, from rows of 512 numbers.
    wide = nn.Sequential(nn.Conv2d(2, 512, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512 * 256, 2))
    monkeypatch.setattr(LeNetHead, "build", lambda *_: wide)
    fit(head)
    head.predict_proba(banded(4, dtype="u1")[0])
    assert head._widest == 512 * 256
    assert head.block_rows == 16 * 2**20 // (4 * 512 * 256)


def test_a_network_that_is_too_large_ends_the_command_in_one_line(
    inside: Run, photo_folder: Any, tmp_path: Any
) -> None:
    pixels = ("--backbone", "pixels", "--size", "16", "--resize", "squash", "--device", "cpu")
    cache = tmp_path / "cache"
    assert inside("extract", photo_folder, "--name", "p", *pixels, "--cache", cache).returncode == 0
    done = inside("train-head", "p", "--head", "simplecnn", "--batch-size", "2000000000",
                  "--cache", cache, "--device", "cpu")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: expected at least ") and error.endswith("--batch-size")
