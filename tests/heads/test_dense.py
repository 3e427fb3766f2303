"""A head as convolutions says at the size of training what it says as matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.heads import MAP_KINDS, made, separable, space_for
from torch import nn
from torch.nn import functional as F

from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import UsageError
from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.heads import new_head
from featpipe.heads.base import Head
from featpipe.heads.dense import dense_head
from featpipe.heads.dense_graph import CHANNELS_LAST, as_convolutions
from featpipe.heads.suffix import SuffixHead

FAST: dict[str, Any] = {"epochs": 2}


def space_of(shape: tuple[int, ...], **changes: Any) -> FeatureSpace:
    """A space of vgg11 at 64 px, whose block4_pool gives maps of 512 x 4 x 4."""
    prep = Preprocessing(size=64, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    fields: dict[str, Any] = {
        "backbone": "vgg11",
        "weights": "ab" * 32,
        "tap": "block4_pool",
        "pooling": "none",
        "preprocessing": prep,
        "precision": "fp32",
        "dtype": "float32",
        "shape": shape,
    }
    return FeatureSpace(**{**fields, **changes})


def pixels_of(side: int, channels: int = 3) -> FeatureSpace:
    prep = Preprocessing(
        size=side,
        resize="squash",
        mean=(0.0,) * 3,
        std=(1 / 255,) * 3,
        channels="rgb" if channels == 3 else "grey",
    )
    shape = (channels, side, side)
    return space_of(shape, backbone="pixels", tap="input", preprocessing=prep, dtype="uint8")


def trained(kind: str, rows: np.ndarray, y: np.ndarray, **params: Any) -> Head:
    head = new_head(kind, params)
    head.classes_ = np.array([f"class {i}" for i in range(int(y.max()) + 1)])
    head.fit(rows, y, rows, y, seed=0, device="cpu", tick=lambda row: None)
    return head


def logits_of(head: Head, rows: np.ndarray) -> np.ndarray:
    return head.logits(head.standardise(rows))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of the largest value."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


PARAMS: dict[str, dict[str, Any]] = {
    "linear": FAST,
    "mlp": {**FAST, "hidden": 16},
    "logistic": {"C": 0.01},
}


@pytest.mark.parametrize("kind", PARAMS)
def test_a_row_head_on_maps_is_one_convolution_of_their_size(kind: str) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(2, 3, (24, 512, 4, 4)).astype(np.float16)
    head = trained(kind, rows, np.arange(24) % 3, **PARAMS[kind])
    dense = dense_head(head, [space_of((512, 4, 4))])
    assert dense.window == (4, 4) and not dense.is_class_map
    assert_close(dense.logits(rows), logits_of(head, rows))
    scores = dense.scores(rows)
    assert scores.shape == (24, 3, 1, 1)
    assert_close(scores[..., 0, 0], logits_of(head, rows))
    # Over a larger map, each place is the head on that part of it.
    larger = rng.normal(2, 3, (2, 512, 6, 7)).astype(np.float32)
    scores = dense.scores(larger)
    assert scores.shape == (2, 3, 3, 4)
    for i, j in np.ndindex(3, 4):
        part = np.ascontiguousarray(larger[:, :, i : i + 4, j : j + 4])
        assert_close(scores[:, :, i, j], logits_of(head, part))


@pytest.mark.parametrize("kind", [kind for kind in MAP_KINDS if kind != "suffix"])
def test_a_small_network_keeps_its_convolutions(kind: str) -> None:
    rows, y = separable(kind, 24, 3, dtype="u1")
    rows = np.concatenate([rows, rows, rows], axis=1)[:, :3]
    head = trained(kind, rows, y, **FAST)
    dense = dense_head(head, [pixels_of(16)])
    scores = dense.scores(rows)
    assert scores.shape == (24, 3, 1, 1)
    assert_close(scores[..., 0, 0], logits_of(head, rows))
    larger = np.random.default_rng(0).integers(0, 256, (2, 3, 40, 32), np.uint8)
    scores = dense.scores(larger)
    assert scores.shape[2] > scores.shape[3] > 1
    # Without padding, a place is the network on that part of the picture.
    if kind.startswith(("lenet", "mnist")):
        assert_close(scores[:, :, 2, 1], logits_of(head, larger[:, :, 8:24, 4:20]))


def trained_suffix(backbone: str, tap: str, top: str) -> tuple[Head, FeatureSpace, np.ndarray]:
    """A suffix of a network with drawn weights after an epoch, its space and some rows."""
    network = get_backbone(backbone)
    shape = network.output_shape(tap, "none", 64)
    space = space_of(shape, backbone=backbone, tap=tap)
    rows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    head = new_head("suffix", {"compute": "fp32", "top": top, "epochs": 1})
    assert isinstance(head, SuffixHead)
    head.attach([space])
    names = (*head.body, *head.tail)
    head.start_from(network.random_tensors(0, names), pretrained=False)
    head.classes_ = np.array(["a", "b", "c"])
    y = np.arange(8) % 3
    head.fit(rows, y, rows, y, seed=0, device="cpu", tick=lambda row: None)
    return head, space, rows


@pytest.mark.parametrize(
    ("backbone", "tap", "top"),
    [
        ("resnet18", "layer4.0", "own"),
        ("squeezenet1_1", "features.10", "own"),
        ("squeezenet1_1", "features.10", "linear"),
        pytest.param("swin_t", "features.5", "own", marks=pytest.mark.slow),
        pytest.param("vgg11", "block4_pool", "own", marks=pytest.mark.slow),
    ],
)
def test_a_suffix_is_rewritten_behind_its_last_map(backbone: str, tap: str, top: str) -> None:
    head, space, rows = trained_suffix(backbone, tap, top)
    dense = dense_head(head, [space])
    assert_close(dense.scores(rows).mean(axis=(2, 3)), logits_of(head, rows))
    axes = get_backbone(backbone).pooled_axes(tap, 64)
    sides = [n * 3 if axis + 1 in axes else n for axis, n in enumerate(space.shape)]
    larger = np.random.default_rng(1).normal(size=(2, *sides)).astype(np.float32)
    scores = dense.scores(larger)
    assert scores.shape[1] == 3 and min(scores.shape[2:]) > 1


def test_a_suffix_that_mixes_places_with_channels_is_refused() -> None:
    head = made("suffix", {"epochs": 1})
    rows, y = separable("suffix", 12, 3)
    head.classes_ = np.array(["a", "b", "c"])
    head.fit(rows, y, rows, y, seed=0, device="cpu", tick=lambda row: None)
    with pytest.raises(UsageError, match="such a head has no score maps"):
        dense_head(head, [space_for("suffix")])


@pytest.mark.parametrize("kind", ["linear", "logistic"])
def test_on_pooled_rows_the_class_map_has_the_logits_as_its_mean(kind: str) -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(2, 3, (24, 512, 4, 4)).astype(np.float32)
    rows = maps.mean(axis=(2, 3))
    head = trained(kind, rows, np.arange(24) % 3, **PARAMS[kind])
    dense = dense_head(head, [space_of((512,), pooling="avg")])
    assert dense.is_class_map and dense.window == (1, 1)
    assert dense.space.shape == (512, 4, 4)
    assert dense.scores(maps).shape == (24, 3, 4, 4)
    assert_close(dense.logits(maps), logits_of(head, rows))
    larger = rng.normal(2, 3, (2, 512, 6, 9)).astype(np.float32)
    assert_close(dense.logits(larger), logits_of(head, larger.mean(axis=(2, 3))))


def test_an_mlp_on_pooled_rows_sees_the_averages_of_windows() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(2, 3, (24, 512, 4, 4)).astype(np.float32)
    head = trained("mlp", maps.mean(axis=(2, 3)), np.arange(24) % 3, **PARAMS["mlp"])
    dense = dense_head(head, [space_of((512,), pooling="avg")])
    assert dense.window == (4, 4)
    assert_close(dense.scores(maps)[..., 0, 0], logits_of(head, maps.mean(axis=(2, 3))))
    larger = rng.normal(2, 3, (2, 512, 6, 5)).astype(np.float32)
    part = larger[:, :, 2:6, 1:5].mean(axis=(2, 3))
    assert_close(dense.scores(larger)[:, :, 2, 1], logits_of(head, part))


def test_maps_with_channels_last_are_turned() -> None:
    backbone = get_backbone("swin_t")
    shape = backbone.output_shape("features.3", "none", 64)
    assert shape == (8, 8, 192)
    prep = Preprocessing(size=64, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    space = space_of(shape, backbone="swin_t", tap="features.3", preprocessing=prep)
    rng = np.random.default_rng(0)
    maps = rng.normal(2, 3, (12, *shape)).astype(np.float32)
    head = trained("linear", maps, np.arange(12) % 3, **FAST)
    dense = dense_head(head, [space])
    assert_close(dense.scores(maps)[..., 0, 0], logits_of(head, maps))
    larger = rng.normal(2, 3, (2, 9, 10, 192)).astype(np.float32)
    part = np.ascontiguousarray(larger[:, 1:, 2:])
    assert_close(dense.scores(larger)[:, :, 1, 2], logits_of(head, part))
    pooled = trained("linear", maps.mean(axis=(1, 2)), np.arange(12) % 3, **FAST)
    by_channel = dense_head(pooled, [space_of((192,), **vars_of(space, pooling="avg"))])
    assert_close(by_channel.logits(larger), logits_of(pooled, larger.mean(axis=(1, 2))))


def vars_of(space: FeatureSpace, **changes: Any) -> dict[str, Any]:
    names = ("backbone", "tap", "preprocessing", "pooling")
    return {**{name: getattr(space, name) for name in names}, **changes}


class Functional(nn.Module):
    """A classifier as people write it, with functions for layers and a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.wide, self.norm = nn.Linear(6 * 3 * 4, 10), nn.BatchNorm1d(10)
        self.last = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = x.view(x.size(0), -1)
        x = F.dropout(F.relu(self.norm(self.wide(x))), training=self.training)
        return F.log_softmax(self.last(x), dim=1)


class Bare(nn.Module):
    """Matrices without modules, one called like a method."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(6, 100))
        self.bias, self.last = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(3, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(F.linear(torch.flatten(x, 1), self.mean, self.bias)) * 2
        return F.linear(x, weight=self.last)


class Scaled(Bare):
    """Scaled by a parameter, which would meet other axes at every place."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.flatten(x, 1), self.mean) * self.bias


def vgg_top(channels: int, side: int, classes: int = 3) -> nn.Module:
    """The form of VGG's classifier: adaptive pooling to another size, dropout, dense layers."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((side, side)),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(channels * side * side, 20),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(20, 20),
        nn.ReLU(),
        nn.Linear(20, classes),
    )


NETWORKS = {
    "functions": (Functional, (4, 6, 8)),
    "bare matrices": (Bare, (4, 5, 5)),
    "enlarging pooling": (lambda: vgg_top(4, 7), (4, 5, 5)),
    "reducing pooling": (lambda: vgg_top(4, 2), (4, 5, 3)),
    "batch norm and linear": (
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3)
        ),
        (4, 5, 5),
    ),
    "layer norm": (
        lambda: nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 3)
        ),
        (4, 5, 5),
    ),
    "one convolution behind the pooling": (
        lambda: nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 8, 1), nn.Hardswish()),
            *(nn.Flatten(), nn.Linear(8, 3)),
        ),
        (4, 5, 5),
    ),
    "scores before the pooling": (
        lambda: nn.Sequential(
            *(nn.Dropout(), nn.Conv2d(4, 3, 1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten()),
        ),
        (4, 5, 5),
    ),
}


def with_numbers(module: nn.Module) -> nn.Module:
    """The module with drawn parameters and statistics, as after a training."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.1 if "var" in name else tensor + 0.3)
    return module.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_many_forms_are_rewritten(name: str) -> None:
    make, shape = NETWORKS[name]
    module = with_numbers(make())
    maps = torch.randn(5, *shape)
    with torch.inference_mode():
        expected = module(maps).numpy()
        dense = as_convolutions(module, shape)
        found = dense.module(maps).mean(dim=(2, 3)).numpy()
        assert dense.module(torch.randn(2, shape[0], 11, 13)).shape[1] == 3
    assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 64), ("convnext_tiny", 64), ("mobilenet_v3_small", 64)],
)
def test_whole_networks_are_rewritten(name: str, size: int) -> None:
    from torchvision import models

    torch.manual_seed(0)
    module = getattr(models, name)(weights=None).eval()
    pictures = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = module(pictures).numpy()
        dense = as_convolutions(module, (3, size, size))
        assert_close(dense.module(pictures).mean(dim=(2, 3)).numpy(), expected)
        assert min(dense.module(torch.randn(1, 3, size + 64, size + 96)).shape[2:]) > 1


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 3),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    pooled=st.none() | st.integers(1, 6),
    more=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    is_last=st.booleans(),
    is_deep=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_place_of_any_map_is_the_network_on_its_window(
    channels: int,
    height: int,
    width: int,
    pooled: int | None,
    more: tuple[int, int],
    is_last: bool,
    is_deep: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    inputs = channels * (pooled**2 if pooled else height * width)
    layers = [nn.AdaptiveAvgPool2d(pooled)] if pooled and not is_last else []
    shape = (height, width, channels) if is_last else (channels, height, width)
    inputs = inputs if not is_last else channels * height * width
    layers += [nn.Flatten(), nn.Linear(inputs, 4)]
    layers += [nn.ReLU(), nn.Linear(4, 2)] if is_deep else []
    module = nn.Sequential(*layers)
    axes = CHANNELS_LAST if is_last else (2, 3)
    dense = as_convolutions(module, shape, axes)
    sides = [n + (more[axes.index(a)] if a in axes else 0) for a, n in enumerate((1, *shape))]
    larger = torch.randn(2, *sides[1:])
    with torch.inference_mode():
        scores = dense.module(larger)
        if dense.window == (1, 1):
            expected = module(larger[(slice(None), *[slice(n) for n in shape])])
            part = dense.module(larger[(slice(None), *[slice(n) for n in shape])])
            found = part.mean(dim=(2, 3))
        else:
            i, j = more
            assert scores.shape[2:] == (i + 1, j + 1)
            cut = [slice(None)] * 4
            cut[axes[0]], cut[axes[1]] = slice(i, i + height), slice(j, j + width)
            found, expected = scores[:, :, i, j], module(larger[tuple(cut)])
    assert_close(found.numpy(), expected.numpy())


class TwoPoolings(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


class Sorting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
            "AdaptiveMaxPool2d",
        ),
        (nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(100, 3)), "ReLU"),
        (TwoPoolings(), "amax"),
        (Scaled(), "mul"),
        (Sorting(), "cannot be traced"),
        (nn.Conv2d(4, 3, 1), "not one row for each map"),
    ],
)
def test_what_cannot_be_moved_over_a_map_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        as_convolutions(module, (4, 5, 5))


def test_heads_without_maps_are_refused_with_the_reason() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(12, 512)).astype(np.float32)
    linear = trained("linear", rows, np.arange(12) % 2, **FAST)
    for pooling in ("max", "cls"):
        with pytest.raises(UsageError, match=f"found pooling '{pooling}'"):
            dense_head(linear, [space_of((512,), pooling=pooling)])
    with pytest.raises(UsageError, match="a head on one tap, found one on block4_pool \\+ block"):
        dense_head(linear, [space_of((512,)), space_of((256,), tap="block3_pool")])
    knn = trained("knn", rows, np.arange(12) % 2)
    with pytest.raises(UsageError, match="a head that is a network, found 'knn'"):
        dense_head(knn, [space_of((512,), pooling="avg")])
