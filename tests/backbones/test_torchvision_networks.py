"""Networks of torchvision: its own features, the weights' own input, no work in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from support.backbones import pixels, preprocessing
from torch import nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

import featpipe
from featpipe.backbones.base import Backbone
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.network import Network
from featpipe.backbones.torchvision_networks import names, published
from featpipe.base.errors import UsageError
from featpipe.base.space import FeatureSpace
from featpipe.decoding.pixels import load_pixels
from featpipe.specs.extract import FeatureOptions
from featpipe.weights import open_weights

SIZE = 64
SMALL = {
    "resnet18": ["bn1", "layer2.0.relu", "layer4"],
    "efficientnet_b0": ["features.2", "features.6", "avgpool"],
    "convnext_tiny": ["features.1", "features.5", "avgpool"],
    "mobilenet_v3_small": ["features.1", "features.7", "classifier.1"],
    "densenet121": ["features.denseblock1", "features.transition2", "flatten"],
    "swin_t": ["features.1", "features.3", "permute"],
}
LARGE = {
    "resnet50": ["layer1", "layer3.2", "layer4"],
    "convnext_tiny": ["features.1", "features.5", "avgpool"],
    "efficientnet_b0": ["features.2", "features.6", "avgpool"],
    "vit_b_16": ["encoder.layers.encoder_layer_3", "encoder.ln", "getitem_5"],
    "vgg16": ["features.5", "features.30", "classifier.3"],
}


def made(name: str) -> nn.Module:
    """A network with torch's own random weights and with statistics that are not 0 and 1."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr, operator]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return network


def state_of(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def space_of(backbone: Backbone, tap: str, pooling: str = "none", **changes: Any) -> FeatureSpace:
    size = changes.pop("size", SIZE)
    fields: dict[str, Any] = {
        "backbone": backbone.name,
        "weights": "0" * 64,
        "tap": backbone.tap(tap).name,
        "pooling": pooling,
        "preprocessing": preprocessing(size=size),
        "precision": "fp32",
        "dtype": "float32",
        "shape": backbone.output_shape(tap, pooling, size),
    }
    return FeatureSpace(**{**fields, **changes})


def features(
    name: str, state: dict[str, np.ndarray], spaces: Sequence[FeatureSpace], batch: np.ndarray
) -> list[np.ndarray]:
    return get_backbone(name).network(state, spaces, device="cpu", batch_size=2)(batch)


@torch.inference_mode()
def reference(network: nn.Module, nodes: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(batch) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    # One extractor per node: torchvision's own lets a later ReLU overwrite an earlier output.
    return [create_feature_extractor(network, [n])(images)[n].numpy() for n in nodes]


def assert_equal_features(name: str, taps: Sequence[str], size: int) -> None:
    backbone, network = get_backbone(name), made(name)
    spaces = [space_of(backbone, tap, size=size) for tap in taps]
    batch = pixels(2, size=size)
    found = features(name, state_of(network), spaces, batch)
    for tap, rows, expected in zip(taps, found, reference(network, taps, batch), strict=True):
        assert rows.shape == expected.shape
        error = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
        assert error < 1e-5, (name, tap)


@pytest.mark.parametrize("name", SMALL)
def test_taps_equal_torchvisions_own_extractor(name: str) -> None:
    assert_equal_features(name, SMALL[name], SIZE)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_taps_equal_torchvisions_own_extractor_at_full_size(name: str) -> None:
    assert_equal_features(name, LARGE[name], 224)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near(precision: str) -> None:
    backbone, state = get_backbone("resnet18"), state_of(made("resnet18"))
    exact = space_of(backbone, "layer3")
    near = dataclasses.replace(exact, precision=precision, policy=backbone.policy(precision))
    batch = pixels(2, size=SIZE)
    (rows,), (expected,) = (features("resnet18", state, [s], batch) for s in (near, exact))
    error = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 2e-2
    assert near.policy == "autocast" and near.id != exact.id


def test_names_of_taps() -> None:
    resnet = get_backbone("resnet50")
    tap = resnet.tap("layer4")
    assert (tap.name, tap.node) == ("layer4", "layer4.2.relu_2")
    assert resnet.tap("layer4.2.relu_2") is resnet.tap("layer4.2") is tap
    assert resnet.tap("layer4.1").node == "layer4.1.relu_2"
    assert "x" not in resnet.tap_names, "the picture is no tap"
    with pytest.raises(
        UsageError, match="expected a tap of resnet50, found 'layer5'; did you mean"
    ):
        resnet.tap("layer5")


def test_shapes_come_from_the_graph() -> None:
    shape = get_backbone("resnet50").output_shape
    assert shape("layer4", "none", 224) == (2048, 7, 7)
    assert shape("layer4", "avg", 224) == shape("flatten", "none", 224) == (2048,)
    assert shape("flatten", "max", 224) == (2048,), "a vector has nothing to pool"
    vit = get_backbone("vit_b_16").output_shape
    assert vit("encoder", "none", 224) == (197, 768)
    assert vit("encoder", "cls", 224) == vit("encoder", "avg", 224) == (768,)
    # Swin keeps its channels last.
    assert get_backbone("swin_t").output_shape("features.3", "none", 224) == (28, 28, 192)
    assert get_backbone("swin_t").output_shape("features.3", "avg", 224) == (192,)


@pytest.mark.parametrize(
    ("name", "tap", "pool", "size", "message"),
    [
        ("resnet18", "layer4", "cls", 64, "expected --pool none, avg or max for layer4"),
        ("swin_t", "features.3", "cls", 64, "its output has no class token"),
        ("alexnet", "features", "none", 20, "such as 63, found 20"),
        ("vit_b_16", "encoder", "none", 180, "such as 224, found 180"),
    ],
)
def test_what_cannot_be_is_refused(name: str, tap: str, pool: str, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        get_backbone(name).output_shape(tap, pool, size)
    assert "\n" not in str(error.value)


def test_poolings_of_tokens_and_of_channels_last() -> None:
    backbone, state = get_backbone("swin_t"), state_of(made("swin_t"))
    spaces = [space_of(backbone, "features.3", pooling) for pooling in ("none", "avg", "max")]
    maps, mean, largest = features("swin_t", state, spaces, pixels(2, size=SIZE))
    assert np.allclose(mean, maps.mean((1, 2)), atol=1e-5)
    assert np.array_equal(largest, maps.max((1, 2)))


@pytest.mark.slow
def test_the_class_token_is_the_first() -> None:
    backbone, state = get_backbone("vit_b_16"), state_of(made("vit_b_16"))
    spaces = [space_of(backbone, "encoder", pool, size=224) for pool in ("none", "cls", "avg")]
    tokens, first, mean = features("vit_b_16", state, spaces, pixels(1, size=224))
    assert np.array_equal(first, tokens[:, 0])
    assert np.allclose(mean, tokens.mean(1), atol=1e-6)


def test_several_taps_give_what_each_gives_alone() -> None:
    state, backbone = state_of(made("resnet18")), get_backbone("resnet18")
    spaces = [space_of(backbone, tap) for tap in ("bn1", "relu", "layer1.0.conv1", "layer2")]
    batch = pixels(2, size=SIZE)
    together = features("resnet18", state, spaces, batch)
    assert together[0].min() < 0, "the ReLU behind it has overwritten the tap"
    for space, rows in zip(spaces, together, strict=True):
        (alone,) = features("resnet18", state, [space], batch)
        assert np.allclose(rows, alone, rtol=1e-4, atol=1e-5), space.tap


def test_the_pass_stops_at_the_deepest_tap() -> None:
    backbone = get_backbone("resnet18")
    needed = backbone.parameters("layer1")
    assert not any(name.startswith(("layer2", "fc")) for name in needed)
    tensors = backbone.random_tensors(0, needed)
    network = backbone.network(tensors, [space_of(backbone, "layer1")], device="cpu", batch_size=1)
    assert isinstance(network, Network)
    convolutions = [m for m in network._module.modules() if "Conv" in type(m).__name__]
    assert len(convolutions) == 1 + 4
    assert network(pixels(1, size=SIZE))[0].shape == (1, 64, 16, 16)


def test_the_digest_covers_what_the_tap_depends_on_and_nothing_else(tmp_path: Path) -> None:
    backbone, state = get_backbone("resnet18"), state_of(made("resnet18"))

    def digest(**changes: np.ndarray) -> str:
        save_file({**state, **changes}, tmp_path / "w.safetensors")
        return open_weights(str(tmp_path / "w.safetensors"), backbone, tmp_path).digest("layer2")

    same = digest()
    assert digest(**{"layer3.0.conv1.weight": state["layer3.0.conv1.weight"] + 1}) == same
    assert digest(**{"bn1.num_batches_tracked": np.array(7)}) == same
    for name in ("conv1.weight", "layer2.1.bn2.running_var", "layer2.0.downsample.1.running_mean"):
        assert digest(**{name: state[name] + 1e-3}) != same, name


def test_random_weights_repeat_and_have_a_stream_each() -> None:
    backbone = get_backbone("resnet18")
    few = backbone.random_tensors(3, backbone.parameters("layer1"))
    more = backbone.random_tensors(3, backbone.parameters("layer2"))
    assert all(np.array_equal(few[name], more[name]) for name in few)
    other = backbone.random_tensors(4, backbone.parameters("layer1"))
    assert not np.array_equal(few["conv1.weight"], other["conv1.weight"])


def test_every_published_set_of_weights_has_an_input() -> None:
    for name in names():
        found = published(name)
        assert next(iter(found)) == models.get_model_weights(name).DEFAULT.name
        for weights in models.get_model_weights(name):
            preset = weights.transforms()
            known = found[weights.name].input
            assert [known.size] == preset.crop_size and [known.resize_to] == preset.resize_size
            assert known.interpolation == preset.interpolation.value
            assert (list(known.mean), list(known.std)) == (preset.mean, preset.std)
            assert known.interpolation in ("bilinear", "bicubic")


@pytest.mark.parametrize(
    ("name", "size", "resize_to", "interpolation"),
    [
        ("resnet50", 224, 232, "bilinear"),
        ("efficientnet_b0", 224, None, "bicubic"),
        ("convnext_tiny", 224, 236, "bilinear"),
        ("vit_b_16", 224, None, "bilinear"),
        ("vgg16", 224, None, "bilinear"),
    ],
)
def test_pictures_are_prepared_as_the_weights_expect(
    name: str, size: int, resize_to: int | None, interpolation: str, tmp_path: Path
) -> None:
    from featpipe.engine import plan

    weights = open_weights(None, get_backbone(name), tmp_path)
    options = FeatureOptions.from_options({"backbone": name, "tap": next(iter(LARGE[name]))})
    prepared = plan._preprocessing(options, weights.input)
    assert (prepared.size, prepared.resize_to) == (size, resize_to)
    assert prepared.interpolation == interpolation
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    preset = models.get_model_weights(name).DEFAULT.transforms()
    with Image.open(tmp_path / "a.png") as image:
        expected = preset(image)
    mine = load_pixels((tmp_path / "a.png").read_bytes(), prepared)
    scaled = (mine / 255 - np.array(prepared.mean)) / np.array(prepared.std)
    assert np.allclose(scaled.transpose(2, 0, 1), expected.numpy(), atol=1e-5)


def test_extract_and_predict_with_another_network(tmp_path: Path, photo_folder: Path) -> None:
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"backbone": "resnet18", "weights": "random:0", "size": 32}
    done = featpipe.extract(
        photo_folder, name="set", cache=cache, tap=["layer1", "layer2"], pool="avg", **options
    )
    assert [(s.tap, s.shape) for s in done.spaces] == [("layer1", (64,)), ("layer2", (128,))]
    run = featpipe.train_head(
        "set", head="logistic", cache=cache, out=tmp_path / "run", tap="layer2.1.relu_1"
    )
    assert run.space == done.spaces[1].id
    (first, *_) = featpipe.predict(run.head, [photo_folder], cache=cache)
    assert first.error is None and first.label is not None
