"""Receptive fields against published ones, and against the pixels that do change a value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.graph import ShapeRun, trace
from featpipe.backbones.module_backbone import ModuleBackbone
from featpipe.backbones.receptive_field import receptive_fields
from featpipe.backbones.spans import Field
from featpipe.backbones.tap_table import tap_table


def fields_of(module: nn.Module, size: int = 64) -> dict[str, Field]:
    """Of every node by name."""
    traced = trace(module)
    run = ShapeRun(torch.fx.GraphModule(traced.root, traced.graph)).run_shapes(2, size)
    assert not run.failures
    fields = receptive_fields(traced.root, traced.graph, run.env)
    return {name: fields[node] for name, node in traced.nodes.items() if node in fields}


def last_of(module: nn.Module, size: int = 64) -> Field:
    return list(fields_of(module, size).values())[-1]


def seen(module: nn.Module, size: int, row: int, column: int) -> tuple[range, range]:
    """Rows and columns of the pixels that change one value: its gradient is not zero there.

    All weights are 1, so that nothing cancels.
    """
    module = module.double().eval()
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    pixels = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    module(pixels)[0, 0, row, column].backward()  # type: ignore[no-untyped-call]
    assert pixels.grad is not None
    rows, columns = pixels.grad[0, 0].nonzero(as_tuple=True)
    return range(int(rows.min()), int(rows.max()) + 1), range(
        int(columns.min()), int(columns.max()) + 1
    )


def sees_its_field(module: nn.Module, size: int) -> bool:
    """Whether some value's whole field lies in the picture; if so it is exactly what it sees."""
    field = last_of(module, size)
    assert isinstance(field.size, int)
    assert field.stride is not None
    assert field.padding is not None
    side = module(torch.zeros(1, 3, size, size, dtype=torch.float64)).shape[-1]
    at = max(0, -(-field.padding // field.stride))
    start = at * field.stride - field.padding
    if at >= side or start + field.size > size:
        return False
    wanted = range(start, start + field.size)
    assert seen(module, size, at, at) == (wanted, wanted)
    return True


# Published


@pytest.mark.parametrize(
    ("name", "tap", "expected"),
    [
        # Araujo, Norris and Sim, Distill 2019; their AlexNet does not pad its first layer by 2.
        ("vgg16", "block5_pool", (212, 32, 90)),
        ("alexnet", "features.12", (195, 32, 64 + 2)),
        ("inception_v3", "Mixed_7c", (1311, 32, 618)),
        # The stride sits in the 3 x 3 convolution.
        ("resnet50", "layer4", (427, 32, 213)),
        # By hand: 11, and per block two 3 x 3 convolutions, of which each adds 2 strides.
        ("resnet18", "layer4", (435, 32, 217)),
        ("resnet34", "layer4", (899, 32, 449)),
        ("vgg19", "block5_pool", (268, 32, 118)),
    ],
)
def test_fields_are_the_published_ones(name: str, tap: str, expected: tuple[int, int, int]) -> None:
    row = next(row for row in tap_table(get_backbone(name)).taps if tap in (row.name, row.node))
    assert (row.receptive_field, row.stride, row.padding) == expected


def test_every_tap_of_vgg16_follows_from_3_and_2() -> None:
    taps = tap_table(get_backbone("vgg16")).taps
    rows = [row for row in taps if row.name.startswith("block")]
    assert len(rows) == 13 + 5
    size, stride = 1, 1
    for row in rows:
        kernel = 2 if row.name.endswith("pool") else 3
        size, stride = size + (kernel - 1) * stride, stride * (kernel % 3 or 1)
        assert (row.receptive_field, row.stride) == (size, stride)


# Against the pixels that change a value

CONV = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(1, 5),
        "stride": st.integers(1, 3),
        "padding": st.integers(0, 3),
        "dilation": st.integers(1, 3),
    }
)
POOL = st.integers(2, 4).flatmap(
    lambda kernel: st.fixed_dictionaries(
        {
            "kernel_size": st.just(kernel),
            "stride": st.integers(1, 3),
            "padding": st.integers(0, kernel // 2),
        }
    )
)
LAYER = st.one_of(
    CONV.map(lambda options: nn.Conv2d(3, 3, bias=False, **options)),
    POOL.map(lambda options: nn.AvgPool2d(**options)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(LAYER, min_size=1, max_size=4))
def test_a_chain_sees_exactly_the_pixels_that_change_it(layers: list[nn.Module]) -> None:
    chain = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), *layers).double()
    assume(sees_its_field(chain, 200))


class Branches(nn.Module):
    """Two roads to a sum, or side by side."""

    def __init__(self, first: nn.Module, second: nn.Module, *, beside: bool) -> None:
        super().__init__()
        self.first, self.second, self.beside = first, second, beside
        self.join = nn.Conv2d(6, 3, 1, bias=False)

    def forward(self, x: Any) -> Any:
        if self.beside:
            return self.join(torch.cat([self.first(x), self.second(x)], 1))
        return self.first(x) + self.second(x)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.integers(1, 2), st.integers(1, 2), st.booleans())
def test_branches_see_what_any_of_them_sees(
    a: int, b: int, stride: int, dilation: int, beside: bool
) -> None:
    first = nn.Conv2d(3, 3, 2 * a + 1, stride, a * dilation, dilation, bias=False)
    second = nn.Conv2d(3, 3, 2 * b + 1, stride, b, bias=False)
    module = nn.Sequential(
        nn.Conv2d(3, 3, 3, 2, bias=False), Branches(first, second, beside=beside)
    )
    assert sees_its_field(module.double(), 60)


def test_branches_that_do_not_lie_around_one_pixel_see_from_the_first_to_the_last() -> None:
    # Pixels -2 to 0 and 0 to 2: each branch sees 3, both together 5.
    left = nn.Sequential(nn.ZeroPad2d((2, 0, 2, 0)), nn.Conv2d(3, 3, 3, bias=False))
    right = nn.Sequential(nn.ZeroPad2d((0, 2, 0, 2)), nn.Conv2d(3, 3, 3, bias=False))
    module = Branches(left, right, beside=False).double()
    assert last_of(module).size == 5
    assert sees_its_field(module, 40)


def test_a_5_x_5_sees_what_two_3_x_3_see() -> None:
    one = nn.Conv2d(3, 3, 5, padding=2)
    two = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    assert last_of(one) == last_of(two)
    assert last_of(one).size == 5
    weights = [sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (one, two)]
    assert weights[0] / weights[1] == 25 / 18


def test_of_a_field_that_is_no_square_the_longer_side_counts() -> None:
    assert last_of(nn.Conv2d(3, 3, (1, 7), padding=(0, 3))).size == 7
    both = nn.Sequential(nn.Conv2d(3, 3, (1, 7)), nn.Conv2d(3, 3, (9, 1)))
    assert last_of(both).size == 9


# What sees the whole picture, and what nobody knows


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        return x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))


class ChannelsLast(nn.Module):
    """A matrix on each pixel's channels."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.matrix, self.norm = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), norm

    def forward(self, x: Any) -> Any:
        return self.norm(self.matrix(self.conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Windows(nn.Module):
    """Rows of a map as a sequence each: the axis they lie along is cut in two."""

    def forward(self, x: Any) -> Any:
        n, c, h, w = x.shape
        tokens = x.reshape(n, c, h, 4, w // 4).permute(0, 2, 3, 4, 1)
        return tokens @ tokens.transpose(3, 4)


class Doubled(nn.Module):
    def forward(self, x: Any) -> Any:
        return functional.interpolate(x, scale_factor=2.0)


class Averaged(nn.Module):
    """The rule for a mean reads its first argument by position."""

    def forward(self, x: Any) -> Any:
        return torch.mean(input=x, dim=(2, 3))


CONV3 = nn.Conv2d(3, 3, 3)


@pytest.mark.parametrize(
    ("module", "size", "stride"),
    [
        (Gated(), "all", 2),
        (nn.Sequential(CONV3, nn.AdaptiveAvgPool2d(1)), "all", None),
        (nn.Sequential(CONV3, nn.Flatten(), nn.Linear(3 * 62 * 62, 2)), "all", None),
        (nn.Sequential(CONV3, nn.Flatten()), 3, None),
        (nn.Sequential(CONV3, nn.GroupNorm(1, 3)), "all", 1),
        (nn.Sequential(CONV3, nn.LayerNorm([3, 62, 62])), "all", 1),
        (ChannelsLast(nn.LayerNorm(3)), 3, 1),
        (ChannelsLast(nn.Softmax(2)), "all", 1),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Windows()), None, None),
        (nn.Sequential(CONV3, Doubled()), None, None),
        (nn.Sequential(CONV3, Averaged()), None, None),
        (nn.Sequential(CONV3, Doubled(), CONV3), None, None),
        (nn.Sequential(Gated(), nn.Conv2d(4, 3, 1), Doubled()), "all", None),
        (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), None, None),
        (nn.Conv2d(3, 3, 3, padding="same"), 3, 1),
        (nn.Sequential(CONV3, nn.AdaptiveAvgPool2d(31)), 4, 2),
        # 62 into 5: windows of 13 or 14 at places of no one distance.
        (nn.Sequential(CONV3, nn.AdaptiveAvgPool2d(5)), 16, None),
        (nn.Sequential(CONV3, nn.AdaptiveAvgPool2d(5), CONV3), None, None),
    ],
)
def test_what_mixes_positions_sees_all_and_what_is_not_known_is_said_so(
    module: nn.Module, size: int | str | None, stride: int | None
) -> None:
    field = last_of(module)
    assert (field.size, field.stride) == (size, stride)


def test_attention_over_all_tokens_sees_the_whole_picture() -> None:
    rows = {row.name: row for row in tap_table(get_backbone("vit_b_32")).taps}
    assert (rows["conv_proj"].receptive_field, rows["conv_proj"].stride) == (32, 32)
    # The class token is the same for every picture before it has looked at it.
    assert rows["expand"].receptive_field == 0
    assert rows["cat"].receptive_field == 32
    assert rows["encoder.layers.encoder_layer_0"].receptive_field == "all"
    assert rows["heads"].receptive_field == "all"


def test_attention_in_windows_is_not_known() -> None:
    rows = {row.name: row for row in tap_table(get_backbone("swin_t")).taps}
    assert (rows["features.0"].receptive_field, rows["features.0"].stride) == (4, 4)
    assert rows["features.1"].receptive_field is None


# Costs


SLOW = ("googlenet", "mobilenet_v3_small", "regnet_y_400mf", "mnasnet0_5", "densenet121")


@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "resnet50", "vgg16", "squeezenet1_1", "shufflenet_v2_x0_5"),
        *("convnext_tiny", "efficientnet_b0", "vit_b_32", "swin_t"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_costs_and_parameters_are_those_torchvision_publishes(name: str) -> None:
    from torchvision import models

    meta = models.get_model_weights(name).DEFAULT.meta  # type: ignore[attr-defined]
    table = tap_table(get_backbone(name))
    assert table.notes == []
    last = table.taps[-1]
    assert last.gflops is not None
    assert last.gflops / 2 == pytest.approx(meta["_ops"], abs=6e-4)
    assert last.parameters == meta["num_params"]
    assert last.receptive_field in ("all", None)


def test_a_tap_costs_only_what_it_depends_on() -> None:
    rows = {row.name: row for row in tap_table(get_backbone("resnet18")).taps}
    shortcut = rows["layer2.0.downsample.0"]
    before = rows["layer1"]
    assert shortcut.parameters is not None
    assert before.parameters is not None
    assert shortcut.gflops is not None
    assert before.gflops is not None
    # A 1 x 1 convolution from 64 to 128 channels on 28 x 28 places.
    assert shortcut.parameters - before.parameters == 64 * 128
    assert shortcut.gflops - before.gflops == pytest.approx(2 * 64 * 128 * 28 * 28 / 1e9)


class Small(ModuleBackbone):
    """A backbone whose pictures are small."""

    default_size = 8  # type: ignore[assignment]


def test_a_network_without_convolutions_has_no_fields_but_a_note() -> None:
    dense = Small("dense", lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)))
    table = tap_table(dense)
    assert table.notes == ["receptive fields are not known: dense has no convolutions"]
    assert [row.receptive_field for row in table.taps] == [None] * len(table.taps)
    assert table.taps[-1].parameters == 3 * 8 * 8 * 5 + 5


def test_a_network_without_a_graph_has_shapes_and_notes() -> None:
    class Untraceable(Small):
        graph = None

    network = Untraceable("odd", lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 3)))
    table = tap_table(network, 3)
    assert [row.shape for row in table.taps][-2:] == [(2, 1, 1), None]
    assert [row.receptive_field for row in table.taps][-2:] == [None, None]
    unknown, too_small = table.notes
    assert unknown == "receptive fields are not known: odd has no graph that can be traced"
    assert too_small.startswith("not at 3 px: expected a --size that 1 of odd can be computed for")


class Twice(nn.Module):
    """One matrix, used twice, then changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        first = self.conv(x)
        second = self.conv(first)
        second.add_(self.conv(second))
        return second.relu()


def test_what_is_used_twice_counts_once_and_changes_in_place_are_followed() -> None:
    rows = tap_table(ModuleBackbone("twice", Twice), 32).taps
    assert rows[-1].parameters == 3 * 3 * 9 + 3
    assert rows[-1].receptive_field == 7
    assert rows[-1].gflops == pytest.approx(3 * 2 * 32 * 32 * 3 * 3 * 9 / 1e9)
