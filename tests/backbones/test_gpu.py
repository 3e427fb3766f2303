"""What a network does on a CUDA device, as far as it can be seen without one."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from support.backbones import TOY, network, pixels, preprocessing, random_tensors, space
from support.fake_cuda import FakeCuda, Operations, fake_tensors
from torch import fx, nn

from featpipe.backbones import gpu
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.compute_batch import compute_batch, default_batch_size
from featpipe.backbones.network import Network
from featpipe.base.errors import OutOfMemoryError

CUDA = torch.device("cuda:1")
ASKED = [("block1_pool", "none"), ("block3_pool", "avg"), ("block3_pool", "max")]


def on_card(precision: str = "fp32", batch_size: int = 8) -> Network:
    asked = [space(TOY, tap, pool, precision=precision) for tap, pool in ASKED]
    tensors = random_tensors(TOY, 0, sum(TOY.blocks))
    return Network(TOY, tensors, asked, device="cuda:1", batch_size=batch_size)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_pass_stays_on_its_card_and_gives_one_copy_per_space_and_one_wait(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    cuda = FakeCuda().install(monkeypatch)
    with fake_tensors(monkeypatch):
        built = on_card(precision)
        batch = torch.from_numpy(pixels(5))
        with Operations() as operations:
            *rows, finite = built._forward(batch, 8)
    assert [tuple(part.shape) for part in rows] == [(5, 4, 16, 16), (5, 8), (5, 8)]
    assert {part.device.type for part in (*rows, finite)} == {"cpu"}
    # The rows of every space, and whether they are finite: nothing else, and no value is read.
    assert operations.copies("cuda", "cpu") == ["aten.copy_.default"] * (len(ASKED) + 1)
    assert len(operations.copies("cpu", "cuda")) == 1
    assert cuda.calls == [("record", True), ("wait", True)], "one wait, with the core set free"
    written = {device for _, _, device, _ in operations.all}
    assert written <= {"cpu", "cuda:1", ""}


@pytest.mark.parametrize("count", [1, 5, 8])
def test_every_batch_is_padded_to_one_shape(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    FakeCuda().install(monkeypatch)
    with fake_tensors(monkeypatch):
        built = on_card()
        shapes = []
        forward = built._normalise.forward

        def seen(batch: torch.Tensor) -> torch.Tensor:
            shapes.append(tuple(batch.shape))
            return forward(batch)

        monkeypatch.setattr(built._normalise, "forward", seen)
        built._forward(torch.from_numpy(pixels(count)), 8)
    assert shapes == [(8, 3, 32, 32)]


def test_mixed_cards_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda().install(monkeypatch)
    with fake_tensors(monkeypatch):
        built = on_card()
        built.device = torch.device("cuda:0")  # where pictures go; the weights are on cuda:1
        with pytest.raises(RuntimeError, match="same device"):
            built._forward(torch.from_numpy(pixels(2)), 8)


def test_what_is_computed_at_once_depends_on_total_memory_and_not_on_batch_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture = 3 * 4 * 64 * 224 * 224  # VGG's
    found = {}
    for gigabytes in (4, 8, 11, 12, 24, 80):
        FakeCuda(total=gigabytes * 2**30).install(monkeypatch)
        found[gigabytes] = compute_batch("cuda:0", 224, picture)
        two_lanes = 2 * found[gigabytes] * picture
        assert two_lanes <= gigabytes * 2**30 / 2
        assert default_batch_size("cuda:0", 224) % found[gigabytes] == 0, "nothing is padded"
    assert found == {4: 16, 8: 32, 11: 64, 12: 64, 24: 128, 80: 256}
    FakeCuda(total=2**20).install(monkeypatch)
    assert compute_batch("cuda:0", 224, picture) == 1
    with fake_tensors(monkeypatch):
        FakeCuda().install(monkeypatch)
        assert {on_card(batch_size=size).compute_batch for size in (1, 7, 5000)} == {1024}


def test_what_is_handed_over_at_once_fits_the_device() -> None:
    assert [default_batch_size("cpu", side) for side in (224, 4096, 1)] == [2, 1, 64]
    assert [default_batch_size("cuda:1", side) for side in (224, 299, 1)] == [256, 128, 1024]


def flags() -> list[Any]:
    return [getattr(module, name) for module, name, _ in gpu._EXACT]


def test_settings_hold_while_anybody_computes_and_are_given_back() -> None:
    exact = [value for _, _, value in gpu._EXACT]
    before = flags()
    assert before != exact
    inside, leave = threading.Event(), threading.Event()

    def compute() -> None:
        with gpu.exact_arithmetic(CUDA):
            inside.set()
            assert leave.wait(30)

    other = threading.Thread(target=compute)
    with gpu.exact_arithmetic(CUDA):
        assert flags() == exact
        other.start()
        assert inside.wait(30)
    assert flags() == exact, "another thread still computes"
    leave.set()
    other.join(30)
    assert flags() == before
    with pytest.raises(ValueError), gpu.exact_arithmetic(CUDA):
        raise ValueError
    assert flags() == before
    with gpu.exact_arithmetic(torch.device("cpu")):
        assert flags() == before


def test_a_call_computes_with_these_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    built, before, seen = network([space(TOY, "block1_pool")]), flags(), []

    def forward(batch: torch.Tensor, size: int) -> list[torch.Tensor]:
        seen.append(flags())
        return [torch.zeros(1, 4, 16, 16), torch.tensor([True])]

    monkeypatch.setattr(built, "_forward", forward)
    built.device = CUDA
    built(pixels(1))
    assert seen == [[value for _, _, value in gpu._EXACT]] and flags() == before


class Hungry(nn.Module):
    """Keeps an activation in its frame when memory runs out, as a convolution would."""

    def __init__(self, error: Exception, most: int, alive: list[weakref.ref]) -> None:
        super().__init__()
        self.error, self.most, self.alive = error, most, alive

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        activation = images * 2
        self.alive.append(weakref.ref(activation))
        if len(images) > self.most:
            raise type(self.error)(str(self.error))
        return activation


def hungry_network(
    error: Exception, most: int, alive: list[weakref.ref], *, batch_size: int = 4
) -> Network:
    built = network([space(TOY, "block1_pool")], batch_size=batch_size)
    graph = fx.Graph()
    images = graph.placeholder("images")
    graph.output((graph.call_module("hungry", (images,)),))
    built._module = fx.GraphModule({"hungry": Hungry(error, most, alive)}, graph)
    return built


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
    ],
    ids=lambda error: str(error)[:30],
)
def test_however_memory_runs_out_the_batch_is_halved_with_all_activations_freed(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alive: list[weakref.ref] = []
    living: list[int] = []
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: living.append(sum(ref() is not None for ref in alive))
    )
    built = hungry_network(error, most=2, alive=alive)
    # The rest of the pass runs on the CPU.
    monkeypatch.setattr(gpu, "padded_on", lambda device, batch, size: batch)
    built.device = CUDA
    gc.disable()  # what only the collector of cycles frees is not free
    try:
        (rows,) = built(pixels(4))
    finally:
        gc.enable()
    assert rows.shape == (4, 3, 32, 32)
    assert living == [0]
    assert built.compute_batch == 2
    assert [record.getMessage() for record in caplog.records] == [
        "expected room for 4 pictures at once on cuda:1, found too little: going on with 2, which "
        "may change the last bits of features"
    ]
    assert capfd.readouterr().err == ""


def test_no_room_for_one_picture_is_one_line_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(gpu, "padded_on", lambda device, batch, size: batch)
    error = RuntimeError("GET was unable to find an engine to execute this computation\nmore")
    built = hungry_network(error, most=0, alive=[])
    built.device = CUDA
    with pytest.raises(OutOfMemoryError) as caught:
        built(pixels(4))
    assert str(caught.value) == (
        "expected room for one picture of 32 px on cuda:1, found too little (GET was unable to "
        "find an engine to execute this computation); end other programs there, or choose a "
        "smaller --size, or use --device cpu"
    )
    assert caught.value.__context__ is None, "no traceback of torch's behind it"
    assert capfd.readouterr().err == ""


def test_out_of_memory_in_a_plain_operation_prints_no_traceback_of_the_graph(
    capfd: pytest.CaptureFixture[str],
) -> None:
    built = network([space(TOY, "block1_pool")], batch_size=1)
    graph = fx.Graph()
    # A built-in function, so that the innermost frame is the generated code's.
    failing = graph.call_function(torch.add, (graph.placeholder("images"), "no tensor"))
    graph.output((failing,))
    built._module = fx.GraphModule({}, graph)
    with pytest.raises(TypeError):
        built(pixels(1))
    assert capfd.readouterr().err == ""


def test_other_errors_of_torch_are_not_taken_for_lack_of_memory() -> None:
    built = hungry_network(RuntimeError("expected a tensor of another shape"), most=0, alive=[])
    with pytest.raises(RuntimeError, match="another shape"):
        built(pixels(4))
    assert built.compute_batch == 4


@pytest.mark.parametrize(("name", "tap"), [("resnet18", "layer1"), ("alexnet", "features.2")])
def test_bits_on_a_cpu_do_not_depend_on_what_is_handed_over(name: str, tap: str) -> None:
    # At 128 px torch computes a single picture of these networks otherwise than two.
    backbone = get_backbone(name)
    tap = backbone.tap(tap).name
    asked = space(
        backbone,  # type: ignore[arg-type]
        tap,
        preprocessing=preprocessing(size=128),
        shape=backbone.output_shape(tap, "none", 128),
    )
    tensors = backbone.random_tensors(0, backbone.parameters(tap))
    batch = pixels(5, size=128)
    found = []
    for size in (1, 2, 5):
        built = Network(backbone, tensors, [asked], device="cpu", batch_size=size)
        parts = [built(batch[i : i + size])[0] for i in range(0, len(batch), size)]
        found.append(np.concatenate(parts))
    assert all(np.array_equal(part, found[0]) for part in found)


@pytest.mark.parametrize(("name", "tap"), [("resnet18", "layer1"), ("vit_b_16", "conv_proj")])
def test_networks_of_one_backbone_have_nothing_in_common(name: str, tap: str) -> None:
    # Such as one on a card and one on the CPU, or two of other weights.
    backbone = get_backbone(name)
    size = backbone.default_size
    tensors = [backbone.random_tensors(seed, backbone.parameters(tap)) for seed in (0, 1)]
    first = backbone.build(tensors[0], [tap], size)
    kept = {key: value.clone() for key, value in first.state_dict().items()}
    second = backbone.build(tensors[1], [tap], size).to(torch.bfloat16)
    assert next(second.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(value, kept[key]) for key, value in first.state_dict().items())


def test_a_network_whose_graph_reads_parameters_is_built_twice() -> None:
    backbone = get_backbone("vit_b_16")
    tap = backbone.tap("encoder.layers.encoder_layer_0").name
    tensors = backbone.random_tensors(0, backbone.parameters(tap))
    for _ in range(2):
        built = backbone.build(tensors, [tap], 224)
        assert not any(part.is_meta for part in built.state_dict().values())
