"""Winograd's convolutions: the direct ones' numbers, whatever the shape and the company."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.backbones import TOY, network, pixels, preprocessing, space
from torch import nn

from featpipe.backbones import network as network_module
from featpipe.backbones import winograd
from featpipe.backbones.vgg import FAMILY
from featpipe.backbones.winograd import WinogradConv


def convolution(inner: int, outer: int, seed: int = 0) -> nn.Conv2d:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Conv2d(inner, outer, 3, padding=1)
    with torch.no_grad():
        made.weight.normal_(0, (9 * inner) ** -0.5, generator=generator)
        made.bias.normal_(generator=generator)  # type: ignore[union-attr]
    return made


def image(n: int, channels: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    drawn = torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return drawn.to(memory_format=torch.channels_last)


def off(found: torch.Tensor, layer: nn.Conv2d, given: torch.Tensor) -> float:
    """Relative distance (L2) to the direct sum in float64."""
    wide = nn.functional.conv2d(
        given.double(),
        layer.weight.double(),
        layer.bias.double(),
        padding=1,  # type: ignore[union-attr]
    ).relu()
    return float((found - wide).norm() / wide.norm())


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3),
    inner=st.integers(1, 9),
    outer=st.integers(1, 9),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    strip=st.sampled_from([1, 2**12, 2**22]),
)
def test_it_is_the_convolution_and_its_relu(
    n: int, inner: int, outer: int, height: int, width: int, strip: int
) -> None:
    layer, given_ = convolution(inner, outer), image(n, inner, height, width)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(winograd, "_STRIP_BYTES", strip)
        found = WinogradConv(layer, relu=True)(given_)
        assert found.shape == (n, outer, height, width)
        assert torch.allclose(found, layer(given_).relu(), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
@pytest.mark.parametrize(("channels", "side"), [(64, 56), (256, 28), (512, 14)])
def test_it_is_about_as_exact_as_the_direct_sum(channels: int, side: int) -> None:
    layer, given_ = convolution(channels, channels), image(1, channels, side, side)
    direct = off(layer(given_).relu(), layer, given_)
    assert off(WinogradConv(layer, relu=True)(given_), layer, given_) < max(5 * direct, 2e-6)


@torch.inference_mode()
def test_company_changes_no_bit() -> None:
    layer, given_ = WinogradConv(convolution(64, 128), relu=True), image(5, 64, 30, 30)
    whole = layer(given_)
    for some in (slice(0, 1), slice(3, 5), slice(1, 4)):
        assert torch.equal(layer(given_[some].clone()), whole[some])


@torch.inference_mode()
def test_what_it_is_given_stays_and_what_it_gives_lies_channels_last() -> None:
    layer, given_ = WinogradConv(convolution(4, 8), relu=True), image(2, 4, 16, 16)
    before = given_.clone()
    found = layer(given_)
    assert torch.equal(given_, before)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("precision", "size", "expected"),
    [("fp32", 224, 11), ("fp32", 64, 5), ("fp32", 16, 0), ("bf16", 224, 0)],
)
def test_it_is_used_where_it_pays(precision: str, size: int, expected: int) -> None:
    backbone = FAMILY["vgg16"]
    tensors = {name: np.zeros(shape, np.float32) for name, shape in backbone.tensor_shapes.items()}
    tap = "block5_pool" if size >= 32 else "block4_pool"
    asked = space(
        backbone,
        tap,
        preprocessing=preprocessing(size=size),
        precision=precision,
        shape=backbone.output_shape(tap, "none", size),
    )
    built = network_module.Network(backbone, tensors, [asked], device="cpu", batch_size=1)
    assert sum(isinstance(layer, WinogradConv) for layer in built._module.modules()) == expected


@pytest.mark.parametrize(
    ("channels", "side", "expected"),
    # the 3 x 3 convolutions of ResNet-50's four stages, and VGG16's last block, at 224 px
    [(64, 56, False), (128, 28, True), (256, 14, False), (512, 7, False), (512, 14, True)],
)
def test_narrow_layers_of_small_maps_are_computed_directly(
    channels: int, side: int, expected: bool
) -> None:
    assert winograd.pays(nn.Conv2d(channels, channels, 3, padding=1), side) == expected


def test_a_network_gives_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = [space(TOY, tap) for tap in ("block1_conv1", "block2_pool")]
    batch = pixels(3)
    expected = network(taps)(batch)
    monkeypatch.setattr(winograd, "_FEWEST_PRODUCTS", 1)
    monkeypatch.setattr(winograd, "_SMALLEST_SIDE", 1)
    replaced = network(taps)
    assert sum(isinstance(layer, WinogradConv) for layer in replaced._module.modules()) == 3
    for rows, reference in zip(replaced(batch), expected, strict=True):
        assert np.allclose(rows, reference, rtol=1e-4, atol=1e-5)
