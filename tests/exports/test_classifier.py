"""Pixels to probabilities as one torch module: the same numbers as the head on stored rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.backbones import TOY, network, pixels, preprocessing, random_tensors, space

from featpipe.backbones.pixels import Pixels, grey
from featpipe.base.space import FeatureSpace
from featpipe.exports.classifier import PixelRows, picture_classifier
from featpipe.heads import new_head
from featpipe.heads.base import Head

TENSORS = random_tensors(TOY, 0, sum(TOY.blocks))


def images(batch: np.ndarray) -> torch.Tensor:
    """uint8 N H W C → float32 N C H W of 0..1."""
    scaled = batch.astype(np.float32) / np.float32(255)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))


def side_by_side(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def trained(rows: np.ndarray, kind: str = "linear", **params: Any) -> Head:
    y = np.arange(len(rows)) % 3
    params = {} if kind == "knn" else {"epochs": 2, **params}
    head = new_head(kind, params)
    head.classes_ = np.array(["a", "b", "c"])
    head.fit(rows, y, rows, y, seed=0, device="cpu", tick=lambda row: None)
    return head


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("pooling", ["none", "avg", "max"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_it_answers_as_the_head_on_stored_rows(channels: str, pooling: str, dtype: str) -> None:
    prep = preprocessing(channels=channels, mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    known = space(TOY, "block2_pool", pooling, dtype=dtype, preprocessing=prep)
    rows = network([known], TENSORS)(pixels(12))[0]
    head = trained(rows)
    model = picture_classifier(TOY, TENSORS, [known], head)
    logits, probabilities = model(images(pixels(12)))
    assert logits.dtype == probabilities.dtype == torch.float32
    assert np.abs(probabilities.numpy() - head.predict_proba(rows)).max() < 1e-5


def test_taps_lie_side_by_side_and_a_temperature_divides() -> None:
    known = [space(TOY, "block1_pool", "avg"), space(TOY, "block2_conv1", dtype="float16")]
    rows = side_by_side(network(known, TENSORS)(pixels(12)))
    head = trained(rows, "mlp", hidden=5)
    head.temperature_ = 2.5
    logits, probabilities = picture_classifier(TOY, TENSORS, known, head)(images(pixels(12)))
    assert np.abs(probabilities.numpy() - head.predict_proba(rows)).max() < 1e-5
    assert torch.allclose(logits.softmax(1), probabilities)


@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_pixels_are_the_rows_of_the_backbone_pixels(channels: str) -> None:
    batch = pixels(6, size=9)
    expected = grey(batch)[:, None] if channels == "grey" else batch.transpose(0, 3, 1, 2)
    (rows,) = PixelRows(channels == "grey")(images(batch))
    assert np.array_equal(rows.numpy(), expected)


def test_every_grey_is_exact() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (1, 300, 300, 3), np.uint8)
    levels[0, :256, 0] = np.arange(256)[:, None]
    (rows,) = PixelRows(True)(images(levels))
    assert np.array_equal(rows.numpy()[:, 0], grey(levels))


def test_a_small_network_on_pixels() -> None:
    prep = preprocessing(size=16, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3, channels="grey")
    known = FeatureSpace(
        backbone="pixels",
        weights="0" * 64,
        tap="input",
        pooling="none",
        preprocessing=prep,
        precision="fp32",
        dtype="uint8",
        shape=(1, 16, 16),
    )
    batch = pixels(12, size=16)
    rows = grey(batch)[:, None]
    head = trained(rows, "lenet")
    _, probabilities = picture_classifier(Pixels(), {}, [known], head)(images(batch))
    assert np.abs(probabilities.numpy() - head.predict_proba(rows)).max() < 1e-5


def test_neighbours_vote_in_torch_too() -> None:
    known = space(TOY, "block2_pool", "avg")
    rows = network([known], TENSORS)(pixels(30))[0]
    head = trained(rows, "knn")
    others = network([known], TENSORS)(pixels(12, seed=1))[0]
    model = picture_classifier(TOY, TENSORS, [known], head)
    logits, probabilities = model(images(pixels(12, seed=1)))
    assert np.abs(probabilities.numpy() - head.predict_proba(others)).max() < 1e-5
    assert np.abs(logits.numpy() - head.logits(head.standardise(others))).max() < 1e-4
