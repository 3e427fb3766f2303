"""What only a CUDA device can show; ``make test-gpu`` runs this file, and fails without one.

``FEATPIPE_TEST_DEVICE=cpu .venv/bin/pytest -m gpu tests/gpu`` rehearses the tests themselves on a
machine without a GPU: what only a card can do is skipped there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.backbones import TOY, pixels, preprocessing, space
from support.heads import WithViews, overlapping, toy
from support.samples import class_picture

import featpipe
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.network import Network
from featpipe.base.errors import OutOfMemoryError
from featpipe.base.hardware import resolve_device
from featpipe.engine.extractor import batch_bytes
from featpipe.engine.inference_pool import InferencePool
from featpipe.heads import new_head
from featpipe.heads.training.feature_rows import HeldRows
from featpipe.heads.training.fit import train_all
from featpipe.stages import predict as prediction

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("FEATPIPE_TEST_DEVICE", "cuda")
ON_CARD = DEVICE.startswith("cuda")
only_on_card = pytest.mark.skipif(not ON_CARD, reason="a rehearsal without a card")
NETWORKS = [
    ("vgg16", "block5_pool", 64),
    ("resnet18", "layer4", 64),
    ("vit_b_16", "encoder", 224),
]
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 1e-2}
"""Relative L2 error per picture against float32 on the CPU."""


@pytest.fixture
def device() -> Iterator[str]:
    if ON_CARD and not torch.cuda.is_available():
        pytest.fail("expected a CUDA device, found none that torch can use; run make test instead")
    yield resolve_device(DEVICE)
    if ON_CARD:
        torch.cuda.set_device(0)
        torch.cuda.empty_cache()


def network_of(
    name: str, tap: str, size: int, *, device: str, precision: str = "fp32", batch_size: int = 256
) -> Network:
    backbone: Any = TOY if name == TOY.name else get_backbone(name)
    tap = backbone.tap(tap).name
    asked = dataclasses.replace(
        space(TOY, "block1_pool"),
        backbone=name,
        tap=tap,
        preprocessing=preprocessing(size=size),
        precision=precision,
        policy=backbone.policy(precision),
        shape=backbone.output_shape(tap, "none", size),
    )
    tensors = backbone.random_tensors(0, backbone.parameters(tap))
    return Network(backbone, tensors, [asked], device=device, batch_size=batch_size)


def errors_of(rows: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Relative L2 error per picture."""
    n = len(rows)
    difference = (rows - expected).reshape(n, -1).astype(np.float64)
    return np.linalg.norm(difference, axis=1) / np.linalg.norm(expected.reshape(n, -1), axis=1)


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("name", "tap", "size"), NETWORKS)
def test_features_are_those_of_the_cpu(
    device: str, name: str, tap: str, size: int, precision: str
) -> None:
    batch = pixels(4, size=size)
    (expected,) = network_of(name, tap, size, device="cpu")(batch)
    (rows,) = network_of(name, tap, size, device=device, precision=precision)(batch)
    assert rows.shape == expected.shape
    assert errors_of(rows, expected).max() <= TOLERANCES[precision]


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("name", "tap", "size"), NETWORKS[:2])
def test_one_picture_at_a_time_gives_the_bits_of_256(
    device: str, name: str, tap: str, size: int, precision: str
) -> None:
    count = 256 if ON_CARD else 4
    batch = pixels(count, size=size)
    (together,) = network_of(name, tap, size, device=device, precision=precision)(batch)
    single = network_of(name, tap, size, device=device, precision=precision, batch_size=1)
    for i in range(0, count, 37):
        assert np.array_equal(single(batch[i : i + 1])[0][0], together[i]), i


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize(("name", "tap", "size"), NETWORKS[:2])
def test_every_lane_gives_the_same_bits_and_so_does_every_pass(
    device: str, name: str, tap: str, size: int, precision: str
) -> None:
    batch = pixels(8, size=size)
    network = network_of(name, tap, size, device=device, precision=precision)
    found = []
    for _ in range(2):
        with InferencePool[int](network, device=device, batch_bytes=batch_bytes(network)) as pool:
            for number in range(12):
                pool.submit(batch, number)
            found += [rows for _, (rows,) in pool.results(leave=0)]
    assert len(found) == 24
    assert all(np.array_equal(rows, found[0]) for rows in found)


@only_on_card
def test_settings_of_cudnn_are_restored(device: str) -> None:
    torch.backends.cudnn.benchmark = True
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    try:
        network_of("toy", "block1_pool", 32, device=device)(pixels(2))
        assert torch.backends.cudnn.benchmark
        after = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        assert after == before
    finally:
        torch.backends.cudnn.benchmark = False


@only_on_card
def test_passes_keep_no_memory_when_they_are_closed(device: str) -> None:
    kept = []
    for _ in range(3):
        network = network_of("vgg16", "block5_pool", 224, device=device)
        size = batch_bytes(network)
        with InferencePool[int](network, device=device, batch_bytes=size) as pool:
            del network
            for number in range(4):
                pool.submit(pixels(8, size=224), number)
            assert len(list(pool.results(leave=0))) == 4
        kept.append(torch.cuda.memory_reserved(device))
    assert kept[2] == kept[1], "the same streams, so the same memory"
    assert kept[2] < 512 * 2**20


@only_on_card
def test_when_memory_runs_out_the_batch_is_halved_and_rows_stay_right(device: str) -> None:
    batch = pixels(64, size=224)
    (expected,) = network_of("vgg16", "block5_pool", 224, device=device)(batch)
    tight = network_of("vgg16", "block5_pool", 224, device=device)
    before = tight.compute_batch
    room = torch.cuda.memory_allocated(device) + 24 * tight.activation_bytes
    fraction = room / torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction, device)
    try:
        (rows,) = tight(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert tight.compute_batch < before
    assert errors_of(rows, expected).max() < 1e-4


@only_on_card
def test_no_room_for_one_picture_is_our_own_error(device: str) -> None:
    tight = network_of("vgg16", "block1_pool", 2048, device=device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved(device) + 32 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / total, device)
    try:
        with pytest.raises(OutOfMemoryError, match=rf"one picture of 2048 px on {device}"):
            tight(pixels(2, size=2048))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def photographs(folder: Path, count: int = 40) -> Path:
    for number, label in enumerate(("red", "blue")):
        (folder / label).mkdir(parents=True)
        for seed in range(count // 2):
            class_picture(2 * number, seed).save(folder / label / f"{seed}.png")
    return folder


SMALL: dict[str, Any] = {"weights": "random:0", "tap": ("block2_pool",), "size": 32, "workers": 1}


def test_extraction_heads_sweeps_and_predictions_over_several_chunks(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = photographs(tmp_path / "photos"), tmp_path / "cache"
    done = featpipe.extract(folder, name="set", cache=cache, device=device, **SMALL)
    assert done.computed == 40
    again = featpipe.extract(folder, name="set", cache=cache, device=device, batch_size=3, **SMALL)
    assert again.computed == 0
    monkeypatch.setattr(prediction, "_CHUNK", 7)
    for number, options in enumerate(
        ({"head": "linear"}, {"head": "mlp"}, {"head": "linear", "sweep": True, "seeds": 2})
    ):
        trained = featpipe.train_head(
            "set", cache=cache, out=tmp_path / f"run{number}", device=device, epochs=20, **options
        )
        assert trained.val["accuracy"] == 1.0, options
        found = featpipe.predict(trained.head, [folder], cache=cache, device=device, workers=1)
        assert len(found) == 40
        assert all(one.label == Path(one.path).parent.name for one in found)
        # Pictures that the cache does not have go through the card, some chunks of them.
        other = photographs(tmp_path / f"other{number}", 42)
        found = featpipe.predict(
            trained.head, [other], cache=tmp_path / f"empty{number}", device=device, workers=1
        )
        assert [one.label for one in found] == [Path(one.path).parent.name for one in found]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_heads_on_the_card_learn_what_they_learn_on_the_cpu(device: str, kind: str) -> None:
    train, val = overlapping(400, 0), overlapping(200, 1)
    lowest = {}
    for place in ("cpu", device):
        head = new_head(kind, {"epochs": 20, "learning_rate": 1e-2})
        head.classes_ = np.array(["0", "1"])
        (end,) = train_all(
            [head], [0], *train, *val, seed=0, device=place, on_epoch=lambda *_: None
        )
        assert not end.diverged
        lowest[place] = end.lowest
    assert lowest[device] == pytest.approx(lowest["cpu"], rel=0.05)


def test_mean_and_scale_of_rows_on_the_card_are_those_of_the_host(device: str) -> None:
    X, y = toy(1000, 3, (50,), dtype="f2")
    there = HeldRows(X, y, device, home=device).mean_and_scale()
    here = HeldRows(X, y, "cpu", home="cpu").mean_and_scale()
    for found, expected in zip(there, here, strict=True):
        assert np.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("home", ["device", "cpu"])
def test_rows_come_in_the_same_views_on_the_card(home: str, device: str) -> None:
    tables = [np.full((50, 3), view, np.float32) for view in range(4)]
    X, y = WithViews(*tables), np.arange(50)
    drawn = []
    for place in (device, "cpu"):
        rows = HeldRows(X, y, place, home=place if home == "device" else "cpu")
        order, found = np.random.default_rng(0), np.full(50, -1)
        for Z, numbers in rows.shuffled(order, 16):
            found[numbers.cpu().numpy()] = Z[:, 0].cpu().numpy()
        drawn.append(found)
    assert np.array_equal(*drawn) and set(drawn[0]) == {0, 1, 2, 3}


@only_on_card
def test_provenance_names_the_card(device: str) -> None:
    from featpipe.engine.provenance import provenance

    found = provenance(device)
    assert found["device_name"] == torch.cuda.get_device_name(device)
    assert found["cudnn"].isdecimal()


@only_on_card
def test_the_second_card_gives_what_the_first_gives(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED: torch.cuda.set_device(1) needs two cards")
    folder = photographs(tmp_path / "photos")
    torch.cuda.set_device(1)
    try:
        assert resolve_device("cuda") == "cuda:1"
        found = []
        for device in ("cuda", "cuda:0"):
            cache = tmp_path / device.replace(":", "")
            featpipe.extract(folder, name="set", cache=cache, device=device, **SMALL)
            found.append(featpipe.open_features("set", cache=cache)[:])
        used = [torch.cuda.max_memory_allocated(number) for number in (0, 1)]
        assert all(used), used
        assert np.allclose(found[0], found[1], rtol=1e-3, atol=1e-4)
    finally:
        torch.cuda.set_device(0)
