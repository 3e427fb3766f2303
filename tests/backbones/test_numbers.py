"""Features of real photographs against a plain torchvision forward pass on the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.library import extract, plan_of
from torch import nn
from torchvision.models import vgg
from torchvision.transforms import v2

from featpipe.backbones.catalog import get_backbone
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset
from featpipe.decoding.pixels import load_pixels
from featpipe.store.feature_store import FeatureStore

TAPS = ("block1_pool", "block3_conv2", "block5_conv3", "block5_pool")
POOLS = ("none", "avg", "max")


@pytest.fixture
def weights(shared: Path) -> Path:
    return shared / "weights" / "vgg16_imagenet1k_v1_features.safetensors"


@pytest.fixture
def photographs(shared: Path, tmp_path: Path) -> Path:
    """Two cats and two dogs."""
    folder = tmp_path / "photographs"
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True)
        for path in sorted((shared / "data" / "dogscats" / "train" / label).iterdir())[:2]:
            (folder / label / path.name).write_bytes(path.read_bytes())
    return folder


def torchvision_features(weights: Path) -> nn.Sequential:
    layers = vgg.make_layers(vgg.cfgs["D"])
    state = load_file(weights)
    layers.load_state_dict({name.removeprefix("features."): t for name, t in state.items()})
    return layers.eval()


@torch.inference_mode()
def plain_forward(layers: nn.Sequential, pixels: np.ndarray) -> list[torch.Tensor]:
    """One picture (size, size, 3) through torchvision's own layers and transforms, fp32: what each
    layer gives."""
    preset = v2.Compose(
        [
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )
    maps, found = preset(pixels.copy())[None], []
    for layer in layers:
        # A copy, because the next ReLU writes into its input.
        maps = layer(maps.clone())
        found.append(maps[0])
    return found


def at(space: FeatureSpace, found: list[torch.Tensor]) -> np.ndarray:
    """The tap and pooling of a space among what the layers give."""
    maps = found[int(get_backbone("vgg16").tap(space.tap).node.removeprefix("features."))]
    if space.pooling == "avg":
        maps = maps.mean((1, 2))
    if space.pooling == "max":
        maps = maps.amax((1, 2))
    return maps.numpy()


def worst_error(
    folder: Path, weights: Path, cache: Path, *, batch_size: int | None = None, **request: Any
) -> dict[tuple[str, str], float]:
    """Largest relative L2 error of any picture, by tap and pooling, read back from the store."""
    result = extract(
        folder,
        name="set",
        cache=cache,
        weights=str(weights),
        device="cpu",
        batch_size=batch_size,
        **request,
    )
    assert result.quarantined == 0
    dataset = load_dataset(cache, "set")
    layers = torchvision_features(weights)
    (preprocessing,) = {space.preprocessing for space in result.spaces}
    plain = [
        plain_forward(layers, load_pixels((folder / path).read_bytes(), preprocessing))
        for path in dataset.paths
    ]
    errors = {}
    for space in result.spaces:
        rows = FeatureStore(cache, space).rows(dataset.image_sha256)
        worst = 0.0
        for found, row in zip(plain, rows, strict=True):
            expected = at(space, found)
            assert row.shape == expected.shape and row.dtype == np.float16
            difference = np.linalg.norm(row.astype(np.float64) - expected)
            worst = max(worst, float(difference / np.linalg.norm(expected)))
        errors[space.tap, space.pooling] = worst
    return errors


def test_fp32_features_are_torchvisions(photographs: Path, weights: Path, cache: Path) -> None:
    errors = worst_error(
        photographs, weights, cache, size=96, precision="fp32", tap=TAPS, pool=POOLS
    )
    assert len(errors) == 12
    assert max(errors.values()) <= 1e-3, errors


def test_bf16_features_are_near_torchvisions(photographs: Path, weights: Path, cache: Path) -> None:
    # Processors without bf16 hardware are slow at this: two pictures and the deepest tap.
    for path in sorted(photographs.rglob("*.jpg"))[::2]:
        path.unlink()
    errors = worst_error(
        photographs,
        weights,
        cache,
        size=96,
        precision="bf16",
        tap=("block5_pool",),
        pool=("none", "avg"),
    )
    assert max(errors.values()) <= 1e-2, errors
    # Exactness would mean that the precision was not used.
    assert max(errors.values()) > 1e-4


def test_default_size_and_tap_are_torchvisions(
    photographs: Path, weights: Path, cache: Path
) -> None:
    for path in sorted(photographs.rglob("*.jpg"))[1:]:
        path.unlink()
    errors = worst_error(photographs, weights, cache, precision="fp32")
    assert list(errors) == [("block5_pool", "none")]
    assert max(errors.values()) <= 1e-3, errors


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("bf16", 1e-2), ("fp16", 1e-2)])
def test_every_precision_is_near_enough_at_full_size(
    precision: str, limit: float, photographs: Path, weights: Path, cache: Path
) -> None:
    errors = worst_error(photographs, weights, cache, precision=precision, tap=TAPS, pool=POOLS)
    assert max(errors.values()) <= limit, errors


def test_crop_of_photographs_is_torchvisions_preset(shared: Path) -> None:
    preset = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(224),
        ]
    )
    (preprocessing,) = {
        space.preprocessing
        for space in plan_of({"precision": "fp32", "device": "cpu"}, Path("unused")).spaces
    }
    ratios = set()
    for path in sorted((shared / "data" / "dogscats" / "train" / "cat").iterdir())[:30]:
        with Image.open(path) as image:
            ratios.add(round(image.width / image.height, 1))
            expected = np.asarray(preset(image.convert("RGB")))
        assert np.array_equal(load_pixels(path.read_bytes(), preprocessing), expected), path.name
    assert len(ratios) >= 4, "too few aspect ratios to mean anything"


def features_alone_and_together(
    shared: Path, weights: Path, size: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    from featpipe.backbones.network import Network

    options = {"weights": weights, "size": size, "precision": "fp32", "device": "cpu"}
    plan = plan_of({**options, "weights": str(weights)}, Path("unused"))
    paths = sorted((shared / "data" / "dogscats" / "train" / "dog").iterdir())[:5]
    preprocessing = plan.spaces[0].preprocessing
    pixels = np.stack([load_pixels(path.read_bytes(), preprocessing) for path in paths])
    network = Network(
        plan.weights.backbone,
        plan.weights.tensors(["block5_pool"]),
        plan.spaces,
        device="cpu",
        batch_size=5,
    )
    together = network(pixels)[0]
    shuffled = network(pixels[::-1].copy())[0][::-1]
    pairs = np.concatenate([network(pixels[i : i + 2])[0] for i in (0, 2)])
    alone = np.concatenate([network(pixels[i : i + 1])[0] for i in range(5)])
    return [alone], [together, shuffled, pairs]


def test_company_in_a_batch_changes_no_bit(shared: Path, weights: Path) -> None:
    _, (together, shuffled, pairs) = features_alone_and_together(shared, weights, 64)
    assert np.array_equal(together, shuffled)
    assert np.array_equal(together[:4], pairs)
    assert not np.array_equal(together[0], together[1])


def test_a_picture_alone_in_its_batch_has_the_same_bits(shared: Path, weights: Path) -> None:
    (alone,), (together, _, _) = features_alone_and_together(shared, weights, 64)
    assert np.array_equal(alone, together)
