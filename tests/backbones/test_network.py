"""Backbones against torchvision: names, shapes, numbers, and no work that is not needed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support.backbones import TOY, network, pixels, preprocessing, random_tensors, space
from torch import nn
from torchvision.models import vgg

from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.graph import ShapeRun
from featpipe.backbones.network import Network
from featpipe.backbones.vgg import FAMILY
from featpipe.base.errors import FeatureOverflowError, OutOfMemoryError, UsageError

TORCHVISION_LAYERS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def normalised(batch: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(batch) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Output channels of every convolution that runs, in order."""
    ran: list[int] = []
    forward = nn.Conv2d.forward

    def counted(self: nn.Conv2d, batch: torch.Tensor) -> torch.Tensor:
        if not batch.is_meta:
            ran.append(self.out_channels)
        return forward(self, batch)

    monkeypatch.setattr(nn.Conv2d, "forward", counted)
    yield ran


@pytest.mark.parametrize("name", TORCHVISION_LAYERS)
def test_every_tap_equals_torchvisions_node(name: str) -> None:
    torch.manual_seed(0)
    layers = vgg.make_layers(vgg.cfgs[TORCHVISION_LAYERS[name]]).eval()
    tensors = {f"features.{key}": value.numpy() for key, value in layers.state_dict().items()}
    backbone = FAMILY[name]
    shapes = {key: value.shape for key, value in tensors.items()}
    assert list(shapes.items()) == list(backbone.tensor_shapes.items())[: len(shapes)]
    batch = pixels(2)
    expected, hidden = {}, normalised(batch)
    with torch.inference_mode():
        for number, layer in enumerate(layers):
            # Out of place, so that what is kept is what the node gave.
            hidden = torch.relu(hidden) if isinstance(layer, nn.ReLU) else layer(hidden)
            expected[f"features.{number}"] = hidden.numpy()
    taps = list(backbone.conv_taps.values())
    spaces = [space(backbone, tap.name) for tap in taps]
    found = Network(backbone, tensors, spaces, device="cpu", batch_size=2)(batch)
    assert len(taps) == sum(backbone.blocks) + 5
    for tap, asked, rows in zip(taps, spaces, found, strict=True):
        reference = expected[tap.node]
        kind = nn.MaxPool2d if tap.name.endswith("pool") else nn.ReLU
        assert isinstance(layers[tap.last_layer], kind)
        assert tap.convolutions == sum(
            isinstance(layer, nn.Conv2d) for layer in layers[: tap.last_layer + 1]
        )
        assert rows.shape == reference.shape == (2, *asked.shape)
        # Deep maps of torch's default initialisation are small: compare with their own size.
        error = np.linalg.norm(rows - reference) / np.linalg.norm(reference)
        assert error < 1e-5, tap.name


def test_published_names_of_vgg16() -> None:
    vgg16 = FAMILY["vgg16"]
    assert vgg16.tap("block5_pool").node == "features.30"
    assert vgg16.tap("block5_conv3").node == "features.29"
    assert vgg16.tap("block1_conv1").node == "features.1"
    assert vgg16.tap("features.30") is vgg16.tap("block5_pool")
    assert vgg16.output_shape("block5_pool", "none", 224) == (512, 7, 7)
    assert vgg16.output_shape("block5_conv3", "none", 224) == (512, 14, 14)
    assert vgg16.output_shape("block5_pool", "avg", 224) == (512,)
    assert FAMILY["vgg19"].tap("block5_pool").node == "features.36"


def test_unknown_names_are_usage_errors_that_help() -> None:
    with pytest.raises(UsageError, match="did you mean 'block5_pool'"):
        get_backbone("vgg16").tap("block5_pol")
    for node in ("features.31", "classifier.7", ""):
        with pytest.raises(UsageError):
            get_backbone("vgg16").tap(node)
    with pytest.raises(
        UsageError, match="expected a backbone, found 'resnet5'; did you mean 'resnet"
    ):
        get_backbone("resnet5")


def test_vgg_has_torchvisions_other_taps_too() -> None:
    vgg16 = FAMILY["vgg16"]
    assert vgg16.tap("features") is vgg16.tap("block5_pool")
    assert list(vgg16.taps)[:4] == ["features.0", "block1_conv1", "features.2", "block1_conv2"]
    assert vgg16.output_shape("avgpool", "none", 96) == (512, 7, 7)
    assert vgg16.output_shape("classifier.3", "none", 224) == (4096,)
    assert vgg16.parameters("features.2") == vgg16.parameters("block1_conv2")
    assert len(vgg16.parameters("classifier.3")) == 2 * (13 + 2)
    assert vgg16.tensor_shapes == vgg16.whole.tensor_shapes


def test_a_tap_before_the_relu_is_not_changed_by_a_deeper_one() -> None:
    vgg11 = FAMILY["vgg11"]
    tensors = vgg11.random_tensors(0, vgg11.parameters("block2_pool"))
    asked = [space(vgg11, tap) for tap in ("features.0", "block1_conv1", "block2_pool")]
    together = Network(vgg11, tensors, asked, device="cpu", batch_size=2)(pixels(2))
    alone = Network(vgg11, tensors, asked[:1], device="cpu", batch_size=2)(pixels(2))
    assert together[0].min() < 0 and np.array_equal(together[0], alone[0])
    assert np.array_equal(together[1], np.maximum(together[0], 0))
    deep = Network(vgg11, tensors, asked[2:], device="cpu", batch_size=2)(pixels(2))
    assert np.allclose(together[2], deep[0], rtol=1e-5)


@pytest.mark.parametrize("size", [16, 31, 32, 33, 63, 100])
def test_promised_shapes_are_true_for_odd_sizes(size: int) -> None:
    taps = [tap for tap in TOY.conv_taps.values() if tap.stride <= size]
    spaces = [
        space(
            TOY,
            tap.name,
            preprocessing=preprocessing(size=size),
            shape=TOY.output_shape(tap.name, "none", size),
        )
        for tap in taps
    ]
    for asked, rows in zip(spaces, network(spaces)(pixels(1, size=size)), strict=True):
        assert rows.shape == (1, *asked.shape)


def test_pictures_too_small_for_a_tap_are_refused() -> None:
    vgg16 = FAMILY["vgg16"]
    assert vgg16.output_shape("block5_pool", "none", 32) == (512, 1, 1)
    with pytest.raises(UsageError, match="--size of at least 32 for block5_pool, found 31"):
        vgg16.output_shape("block5_pool", "none", 31)


@pytest.mark.parametrize(
    ("tap", "count"), [("block1_conv1", 1), ("block2_conv1", 2), ("block2_pool", 3)]
)
def test_the_network_stops_at_the_deepest_tap(
    tap: str, count: int, convolutions: list[int]
) -> None:
    # Weights of later layers need not even be there.
    tensors = random_tensors(TOY, 0, count)
    network([space(TOY, tap)], tensors)(pixels(3))
    assert len(convolutions) == count


def test_several_taps_and_poolings_share_one_pass(convolutions: list[int]) -> None:
    asked = [
        space(TOY, tap, pooling)
        for tap in ("block3_pool", "block1_conv1", "block2_pool")
        for pooling in ("none", "avg", "max")
    ]
    found = network(asked)(pixels(3))
    assert len(convolutions) == 4
    alone = [network([one])(pixels(3))[0] for one in asked]
    assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))


def test_poolings_are_the_maps_mean_and_maximum() -> None:
    spaces = [space(TOY, "block2_conv2", pooling) for pooling in ("none", "avg", "max")]
    maps, mean, maximum = network(spaces)(pixels(3))
    assert np.allclose(mean, maps.mean((2, 3)), rtol=1e-5)
    assert np.array_equal(maximum, maps.max((2, 3)))
    assert maps.min() == 0 and maps.max() > 0, "a convolution's tap lies behind its ReLU"


def test_channel_order_and_scale_are_the_weights_own() -> None:
    batch = pixels(2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    rgb = space(TOY, "block1_pool", preprocessing=preprocessing(mean=mean, std=std))
    bgr = space(TOY, "block1_pool", preprocessing=preprocessing(mean=mean, std=std, channels="bgr"))
    (flipped,) = network([bgr])(batch)
    assert np.array_equal(flipped, network([rgb])(batch[..., ::-1].copy())[0])
    assert not np.allclose(flipped, network([rgb])(batch)[0])


def test_stored_dtype_is_the_spaces() -> None:
    wide, narrow = (
        network([space(TOY, "block2_pool", dtype=dtype)])(pixels(2))[0]
        for dtype in ("float32", "float16")
    )
    assert (wide.dtype, narrow.dtype) == (np.float32, np.float16)
    assert np.array_equal(wide.astype(np.float16), narrow)


def test_rows_keep_their_order_over_several_batches() -> None:
    asked = [space(TOY, "block1_pool")]
    batch = pixels(7)
    (whole,) = network(asked, batch_size=7)(batch)
    for size in (1, 2, 3):
        (parts,) = network(asked, batch_size=size)(batch)
        assert parts.shape == whole.shape
        assert np.allclose(parts, whole, rtol=1e-4, atol=1e-5)
    # Order, not just nearness.
    assert not np.allclose(whole[0], whole[1], rtol=1e-4, atol=1e-5)


def test_values_beyond_float16_are_an_error_that_names_the_way_out() -> None:
    tensors = random_tensors(TOY, 0, 6)
    tensors["features.0.weight"] *= 1e6
    with pytest.raises(FeatureOverflowError, match=r"at block1_pool, .*--dtype float32$"):
        network([space(TOY, "block1_pool", dtype="float16")], tensors)(pixels(1))
    assert np.isfinite(network([space(TOY, "block1_pool")], tensors)(pixels(1))[0]).all()
    tensors["features.0.weight"][0, 0, 0, 0] = np.nan
    with pytest.raises(FeatureOverflowError, match=r"float32 .* block1_pool.*check the weights"):
        network([space(TOY, "block1_pool")], tensors)(pixels(1))


def test_the_batch_is_halved_for_good_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    forward = Network._forward

    def hungry(self: Network, batch: np.ndarray, size: int) -> list[np.ndarray]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return forward(self, batch, size)

    asked = [space(TOY, "block1_pool")]
    (expected,) = network(asked, batch_size=2)(pixels(5))
    monkeypatch.setattr(Network, "_forward", hungry)
    small = network(asked, batch_size=8)
    (found,) = small(pixels(5))
    assert np.array_equal(found, expected)
    assert sizes == [5, 4, 2, 2, 1]
    small(pixels(4))
    assert sizes[5:] == [2, 2]

    def starving(self: Network, batch: np.ndarray, size: int) -> list[np.ndarray]:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 2 GiB.\nAnd more.")

    monkeypatch.setattr(Network, "_forward", starving)
    with pytest.raises(OutOfMemoryError) as caught:
        small(pixels(4))
    assert str(caught.value) == (
        "expected room for one picture of 32 px on cpu, found too little (out of memory. Tried to "
        "allocate 2 GiB.); end other programs there, or choose a smaller --size"
    )


def test_a_thread_keeps_its_shape_while_another_runs_out_of_memory_and_the_limit_never_rises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forward = Network._forward
    slow_is_in, fast_is_done = threading.Event(), threading.Event()
    shapes: dict[str, list[int]] = {"slow": [], "fast": []}

    def hungry(self: Network, batch: np.ndarray, size: int) -> list[np.ndarray]:
        name = threading.current_thread().name
        shapes[name].append(size)
        if name == "slow" and size == 8:
            # Two pieces of this call: the other thread lowers the limit between them.
            if len(shapes["slow"]) == 1:
                slow_is_in.set()
                assert fast_is_done.wait(30)
                return forward(self, batch, size)
            raise torch.OutOfMemoryError
        if size > 2:
            raise torch.OutOfMemoryError
        return forward(self, batch, size)

    asked = [space(TOY, "block1_pool")]
    expected = network(asked, batch_size=2)(pixels(12))[0]
    monkeypatch.setattr(Network, "_forward", hungry)
    shared = network(asked, batch_size=8)
    results: dict[str, np.ndarray] = {}

    def compute(name: str) -> None:
        results[name] = shared(pixels(12))[0]
        if name == "fast":
            fast_is_done.set()

    slow = threading.Thread(target=compute, args=["slow"], name="slow")
    slow.start()
    assert slow_is_in.wait(30)
    fast = threading.Thread(target=compute, args=["fast"], name="fast")
    fast.start()
    for thread in (fast, slow):
        thread.join(30)
    assert shapes["fast"] == [8, 4, *[2] * 6]
    # The slow thread began with 8 and failed with 8, when the limit was 2 already: it goes on
    # with 2, not with half of 8.
    assert shapes["slow"] == [8, 8, *[2] * 6]
    assert np.array_equal(results["fast"], expected) and np.array_equal(results["slow"], expected)


def test_building_vgg_loads_neither_torchvision_nor_torchs_compiler() -> None:
    # Each takes as long to load as torch itself, which one picture to predict would pay for.
    code = (
        "import sys; from featpipe.backbones.vgg import FAMILY; net = FAMILY['vgg11']; "
        "tensors = net.random_tensors(0, net.parameters('block1_pool')); "
        "net.build(tensors, ['block1_pool'], 32); "
        "sys.exit(sum(name in sys.modules for name in ('torchvision', 'torch._dynamo')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shapes_in_vggs_graph_are_those_of_a_run() -> None:
    backbone = FAMILY["vgg11"]
    tensors = backbone.random_tensors(0, backbone.parameters("block3_pool"))
    module = backbone.build(tensors, ["block1_conv1", "block3_pool"], 45)
    said = {node: node.meta["shape"] for node in module.graph.nodes if node.op == "call_module"}
    run = ShapeRun(module).run_shapes(1, 45)
    assert said == {node: tuple(run.results[node].shape) for node in said}
