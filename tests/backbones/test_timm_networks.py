"""Networks of timm: its own features, its data config, its names of weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.command import Run, json_of

from featpipe.backbones.base import NetworkInput
from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import UsageError, WeightsError
from featpipe.weights import fetch_weights, open_weights

SIZE = 224


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="NO TIMM: pip install 'featpipe[timm]' to test its networks")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("name", "taps"),
    [
        ("resnet18", ["act1", "layer2.0", "fc"]),
        ("vit_tiny_patch16_224", ["patch_embed", "blocks.3", "head"]),
        ("convnext_atto", ["stem", "stages.1", "head.fc"]),
    ],
)
def test_features_are_what_timm_s_own_modules_give(name: str, taps: list[str]) -> None:
    import timm

    backbone = get_backbone(f"timm/{name}")
    tensors = backbone.random_tensors(0, list(backbone.tensor_shapes))
    network = timm.create_model(name).eval()
    network.load_state_dict(_torch(tensors), strict=False)
    expected: dict[str, torch.Tensor] = {}
    for tap in taps:
        network.get_submodule(tap).register_forward_hook(
            lambda _, __, output, tap=tap: expected.setdefault(tap, output.clone())
        )
    pictures = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        network(pictures)
        found = backbone.build(tensors, taps, SIZE)(pictures)
    for tap, output in zip(taps, found, strict=True):
        np.testing.assert_allclose(output.numpy(), expected[tap].numpy(), rtol=1e-4, atol=1e-4)


def _torch(tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in tensors.items()}


def test_the_data_config_decides_the_input() -> None:
    half = (0.5, 0.5, 0.5)
    vit = get_backbone("timm/vit_tiny_patch16_224")
    assert vit.input_of(vit.default_weights) == NetworkInput(
        half, half, size=224, resize_to=248, interpolation="bicubic"
    )
    swin = get_backbone("timm/swin_tiny_patch4_window7_224")
    assert swin.default_size == 224
    assert get_backbone("timm/resnet18").input_of("resnet18.tv_in1k").interpolation == "bilinear"


def test_class_tokens_are_where_timm_puts_them() -> None:
    vit = get_backbone("timm/vit_tiny_patch16_224")
    assert vit.output_shape("blocks.1", "cls", SIZE) == (192,)
    assert vit.output_shape("blocks.1", "avg", SIZE) == (192,)
    registers = get_backbone("timm/vit_little_patch16_reg1_gap_256")
    for backbone, tap in ((vit, "patch_embed"), (registers, "blocks.1")):
        with pytest.raises(UsageError, match="its output has no class token"):
            backbone.output_shape(tap, "cls", backbone.default_size)


def test_names_of_published_weights(tmp_path: Path) -> None:
    backbone = get_backbone("timm/resnet18")
    for name in ("DEFAULT", "a1_in1k", "resnet18.a1_in1k"):
        assert open_weights(name, backbone, tmp_path).spec == "resnet18.a1_in1k"
    with pytest.raises(UsageError, match=r"say --backbone timm/resnet18 --weights resnet18\.a2"):
        get_backbone("timm/resnet18.a2")
    with pytest.raises(UsageError, match="did you mean 'timm/resnet18'"):
        get_backbone("timm/resnet18x")


def test_weights_that_cannot_be_fetched_say_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(
        WeightsError, match=r"tried Hugging Face's cache and hub \(.+\)\. Ways out: "
    ) as error:
        fetch_weights("a1_in1k", get_backbone("timm/resnet18"), tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_timm_has_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def with_pretrained(name: str, *, pretrained: bool = False) -> torch.nn.Module:
        return create(name, num_classes=7 if pretrained else 1000)

    monkeypatch.setattr(timm, "create_model", with_pretrained)
    backbone = get_backbone("timm/resnet18")
    path, _ = fetch_weights("a1_in1k", backbone, tmp_path)
    assert path.name == "timm+resnet18-resnet18.a1_in1k.safetensors"
    with pytest.raises(
        WeightsError, match=r"tried Hugging Face's cache and hub \(has no fc\.weight\)"
    ):
        open_weights("a1_in1k", backbone, tmp_path).digest("fc")  # a classifier of 7 classes
    monkeypatch.setattr(timm, "create_model", None)  # from here on the own copy is enough
    assert len(open_weights("a1_in1k", backbone, tmp_path).digest("layer1")) == 64


def test_without_timm_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from featpipe.backbones import timm_networks

    monkeypatch.setitem(sys.modules, "timm", None)
    timm_networks.names.cache_clear()
    try:
        assert timm_networks.names() == ()
        with pytest.raises(UsageError, match=r"install it: pip install 'featpipe\[timm\]'"):
            timm_networks.timm_network("timm/resnet18")
    finally:
        timm_networks.names.cache_clear()


def test_features_of_pictures(inside: Run, photo_folder: Path) -> None:
    done = inside(
        *("extract", photo_folder, "--name", "s", "--backbone", "timm/resnet10t", "--json"),
        *("--tap", "layer1", "--pool", "avg", "--weights", "random:0", "--size", 32),
        *("--precision", "fp32"),
    )
    assert done.returncode == 0, done.stderr
    assert json_of(done)["spaces"][0]["shape"] == [64]
