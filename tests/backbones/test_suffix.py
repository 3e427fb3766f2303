"""What lies behind a tap: prefix and suffix are the network, and where it cannot be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_network
from torch import nn

from featpipe.backbones.base import Backbone
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.cuts import Flow
from featpipe.backbones.graph import set_state
from featpipe.backbones.module_backbone import ModuleBackbone
from featpipe.backbones.suffix import LINEAR_TOP, SuffixModule
from featpipe.backbones.suffix_tensors import draw, set_dropout
from featpipe.base.errors import UsageError

CASES: list[Any] = [
    ("resnet18", 64, "layer3.0", "fc", (2, 3)),
    ("squeezenet1_1", 64, "features.7", "classifier.1", (2, 3)),
    ("efficientnet_b0", 64, "features.5", "classifier.1", (2, 3)),
    ("timm/vit_tiny_patch16_224", 224, "blocks.9", "head", (1,)),
    ("timm/convnext_atto", 64, "stages.1", "head.fc", (2, 3)),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ("vgg11", 64, "block4_pool", "classifier.6", (2, 3)),
            ("convnext_tiny", 64, "features.5.1", "classifier.2", (2, 3)),
            ("vit_b_16", 224, "encoder.layers.encoder_layer_9", "heads.head", (1,)),
            ("vit_b_16", 224, "conv_proj", "heads.head", (1,)),
            ("swin_t", 64, "features.4", "head", (2, 3)),
            ("densenet121", 64, "features.transition2", "classifier", (2, 3)),
            ("inception_v3", 128, "Mixed_6c", "fc", (2, 3)),
            ("regnet_y_400mf", 64, "trunk_output.block2", "fc", (2, 3)),
            ("timm/mobilenetv4_conv_small", 64, "blocks.2", "classifier", (2, 3)),
        )
    ),
]


def whole_and_parts(backbone: Backbone, tap: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a random network says of noise; and what its suffix says of the maps at a tap."""
    tensors = backbone.random_tensors(0, list(backbone.tensor_shapes))
    suffix = backbone.suffix(tap, size)
    own = suffix.own(None)
    set_state(own, tensors)
    last = list(backbone.taps)[-1]
    prefix, whole = (backbone.build(tensors, [end], size) for end in (tap, last))
    pictures = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return whole(pictures)[0], own(prefix(pictures)[0])


@pytest.mark.parametrize(("name", "size", "tap", "last", "places"), CASES)
def test_a_prefix_and_its_suffix_are_the_whole_network(
    name: str, size: int, tap: str, last: str, places: tuple[int, ...]
) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason="NO TIMM: its networks were not cut")
    backbone = get_backbone(name)
    expected, found = whole_and_parts(backbone, tap, size)
    assert expected.shape == (3, 1000)
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance)
    suffix = backbone.suffix(tap, size)
    own, linear = suffix.own(7), suffix.linear(7)
    assert own.last_layer == last and linear.last_layer == LINEAR_TOP
    for module in (own, linear):
        assert module.logits_shape((4, *suffix.rows)) == (4, 7)
    means = [node for node in linear.graph.nodes if node.target == "mean"]
    assert means[-1].kwargs == {"dim": list(places)}


def test_a_suffix_takes_any_number_of_rows_and_maps_of_other_sizes() -> None:
    suffix = get_backbone("resnet18").suffix("layer3", 64)
    for module in (suffix.own(3), suffix.linear(3)):
        assert module.logits_shape((1, 256, 4, 4)) == (1, 3)
        assert module.logits_shape((5, 256, 9, 6)) == (5, 3)


def test_where_a_branch_goes_past_a_tap_the_nearest_cuts_are_named() -> None:
    backbone = get_backbone("resnet18")
    with pytest.raises(UsageError) as caught:
        backbone.suffix("layer3.0.conv1", 64)
    assert str(caught.value) == (
        "expected a tap that everything behind it in resnet18 is computed from, found "
        "layer3.0.conv1, which a branch goes past; extract --tap layer2 or --tap layer3.0.add"
    )
    for tap in ("layer2", "layer3.0.add"):
        assert backbone.suffix(tap, 64).rows


def test_behind_the_last_layer_there_is_no_own_top() -> None:
    suffix = get_backbone("resnet18").suffix("fc", 64)
    with pytest.raises(UsageError, match=r"behind fc, found none; say --top linear, or choose an"):
        suffix.own(3)
    assert suffix.linear(3).logits_shape((2, 1000)) == (2, 3)


def test_pixels_and_networks_without_a_graph_are_no_networks_to_cut() -> None:
    with pytest.raises(UsageError, match="found pixels: it is no network"):
        get_backbone("pixels").suffix("input", 32)

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x)
            return x if x.mean() > 0 else -x

    backbone = ModuleBackbone("branching", Branching, on_meta=False)
    with pytest.raises(UsageError, match="found branching: its graph cannot be traced"):
        backbone.suffix("layer", 32)


def test_a_network_that_does_not_end_in_a_layer_has_a_linear_top_alone() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.flat = nn.Conv2d(3, 4, 3), nn.Flatten()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.flat(self.conv(x).mean((2, 3)))
            return (self.one(x) + self.two(x)) / 2

    suffix = ModuleBackbone("two", Two).suffix("conv", 32)
    with pytest.raises(UsageError, match="expected one dense layer or convolution"):
        suffix.own(3)
    assert suffix.linear(3).logits_shape((2, *suffix.rows)) == (2, 3)


class Counting(nn.Module):
    """Uses the number and shape of the pictures behind the tap, writes in place, has a token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 4, 8, stride=8), nn.Parameter(torch.zeros(1, 1, 4))
        self.mix, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        n, _, height, width = pictures.shape
        x = self.patches(pictures)
        places = (height // 8) * (width // 8)
        x = x.reshape(n, 4, places).permute(0, 2, 1)
        x.add_(1.0)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1)
        x = self.mix(x.reshape(n * (places + 1), 4)).reshape(n, places + 1, 4)
        return self.last(x[:, 0] + x.mean(1))


def test_what_is_known_of_the_pictures_shape_is_counted_from_the_rows() -> None:
    backbone = ModuleBackbone("counting", Counting)
    for tap in ("patches", "cat"):
        expected, found = whole_and_parts(backbone, tap, 32)
        torch.testing.assert_close(found, expected)
        for n in (1, 5):
            suffix = backbone.suffix(tap, 32)
            assert suffix.own(2).logits_shape((n, *suffix.rows)) == (n, 2)


def test_every_cut_of_a_plain_chain_and_of_residual_blocks_is_found() -> None:
    vgg = get_backbone("vgg11")
    assert vgg.graph is not None
    nodes = [tap.node for tap in vgg.taps.values()]
    assert Flow.of(vgg.graph, 64).cuts == nodes
    resnet = get_backbone("resnet18")
    assert resnet.graph is not None
    cuts = Flow.of(resnet.graph, 64).cuts
    assert {"conv1", "maxpool", "layer1.0.add", "layer4.1.relu_1", "avgpool", "fc"} <= set(cuts)
    assert not {n for n in cuts if ".conv" in n or ".bn" in n or "downsample" in n}


def drawn(module: SuffixModule, seed: int) -> SuffixModule:
    torch.manual_seed(seed)
    with torch.no_grad():
        draw(module, get_backbone("resnet18"), given=())
    return module


def test_statistics_of_batch_normalisation_stay_and_its_scale_learns() -> None:
    module = drawn(get_backbone("resnet18").suffix("layer3", 64).own(3), 0).train()
    norm: Any = module.get_submodule("layer4.0.bn1")
    before = norm.running_mean.clone()
    rows = torch.randn(4, 256, 4, 4)
    torch.autograd.backward(module(rows).sum())
    assert torch.equal(norm.running_mean, before) and norm.weight.grad is not None
    alone = module(rows[:1])
    torch.testing.assert_close(module(rows)[:1], alone)


def test_layers_are_drawn_from_torchs_numbers_and_keep_the_scale() -> None:
    suffix = get_backbone("resnet18").suffix("layer3", 64)
    one, same, other = (drawn(suffix.own(3), seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layer4.0.conv1.weight"], other["layer4.0.conv1.weight"])
    weight = one["layer4.1.conv2.weight"]
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    assert one["layer4.0.bn1.running_var"].tolist() == [1.0] * 512


def test_parameters_outside_of_layers_are_drawn_as_the_backbone_draws_them() -> None:
    backbone = ModuleBackbone("counting", Counting)
    module = backbone.suffix("patches", 32).own(2)
    with torch.no_grad():
        draw(module, backbone, given=())
    assert module.get_parameter("token").abs().sum() > 0
    assert np.isfinite(module(torch.randn(2, 4, 4, 4)).detach().numpy()).all()


def test_the_rate_of_every_dropout_layer_is_set() -> None:
    suffix = tiny_network.TINY.suffix(tiny_network.TAP, tiny_network.SIZE)
    own = suffix.own(3)
    assert own.get_submodule("drop").p == 0.25
    assert set_dropout(own, 0.4) == 1 and own.get_submodule("drop").p == 0.4
    assert set_dropout(suffix.linear(3), 0.4) == 1
    assert set_dropout(get_backbone("resnet18").suffix("layer4", 64).own(3), 0.4) == 0
