"""Suffix heads from extract to predict: what they start from, and that no picture is touched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.command import Run, json_of
from support.heads import space_for
from support.tiny_network import TINY

import featpipe as library
from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.network import Network
from featpipe.decoding.pool import DecodePool
from featpipe.heads import new_head
from featpipe.stages.starting_tensors import StartingTensors
from featpipe.weights import Weights

NET, TAP = "squeezenet1_1", "features.10"
FLAGS = ("--backbone", NET, "--size", 48, "--resize", "squash", "--precision", "fp32",
         "--device", "cpu", "--workers", 1)  # fmt: skip
QUICK = ("--head", "suffix", "--epochs", 2, "--batch-size", 16, "--compute", "fp32", "--device",
         "cpu", "--overwrite", "--json")  # fmt: skip
LAST = "classifier.1"
BODY = ["features.11", "features.12"]


def weights(path: Path, *, without: str = "?") -> Path:
    """A file with tensors of the network, which count as pretrained."""
    backbone = get_backbone(NET)
    tensors = backbone.random_tensors(3, list(backbone.tensor_shapes))
    save_file({n: t for n, t in tensors.items() if not n.startswith(without)}, path)
    return path


@pytest.fixture
def data(inside: Run, photo_folder: Path, tmp_path: Path) -> Path:
    """The photographs' maps as the data set ``photos``; returns the file of weights."""
    file = weights(tmp_path / "squeezenet.safetensors")
    extract(inside, photo_folder, file)
    return file


def extract(inside: Run, photo_folder: Path, file: object, *more: object) -> None:
    done = inside("extract", photo_folder, "--name", "photos", "--weights", file, "--tap", TAP,
                  *FLAGS, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr


def train(inside: Run, *more: object) -> Any:
    return json_of(inside("train-head", "photos", "--out", "run", *QUICK, *more))


def layers(names: list[str]) -> set[str]:
    return {".".join(name.split(".")[:2]) for name in names}


@pytest.mark.usefixtures("data")
def test_a_suffix_trains_and_evaluates_without_a_picture_and_predicts_from_pictures(
    inside: Run, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # Pictures are decoded in processes of a pool alone.
        count = {"passes": 0, "pools": 0}

        def counted(name: str, real: Any) -> Any:
            def call(*args: Any, **options: Any) -> Any:
                count[name] += 1
                return real(*args, **options)

            return call

        patch.setattr(Network, "__call__", counted("passes", Network.__call__))
        patch.setattr(DecodePool, "__init__", counted("pools", DecodePool.__init__))
        trained = train(inside, "--epochs", 8)
        scores = json_of(inside("evaluate", "run", "--json"))
        assert count == {"passes": 0, "pools": 0}
        other = tmp_path / "other"
        other.mkdir()
        (photo_folder / "red" / "00.png").rename(other / "new.png")
        fresh = inside("predict", "run", other, "--cache", tmp_path / "empty", "--json")
        assert json.loads(fresh.stdout)["label"] in ("red", "blue"), fresh.stderr
        assert min(count.values()) > 0, "the counters must work, or this test shows nothing"
    assert trained["val"]["accuracy"] >= 0.9 and scores["accuracy"] >= 0.9
    # What it says of a picture is what it says of its row in memory.
    head = library.load_head(tmp_path / "run")
    rows = library.open_features("photos", "test", cache=tmp_path / "cache")
    first = head.predict_proba(np.asarray(rows.X))[0]
    done = inside("predict", "run", photo_folder, "--json", "--probabilities")
    lines = {Path(line["path"]).relative_to(photo_folder).as_posix(): line
             for line in map(json.loads, done.stdout.splitlines())}  # fmt: skip
    said = lines[rows.paths[0]]["probabilities"]
    assert np.allclose(first, [said[name] for name in head.classes_], atol=1e-5)


@pytest.mark.usefixtures("data")
def test_the_own_top_is_the_default_where_its_weights_are_there(
    inside: Run, tmp_path: Path
) -> None:
    trained = train(inside)
    start = trained["start"]
    assert start["top"] == "own" and start["drawn"] == [LAST]
    assert layers(start["pretrained"]) == set(BODY)
    document = json.loads((tmp_path / "run" / "head.json").read_text())
    assert document["params"]["top"] == "own" and document["info"]["start"] == start
    assert document["format"] == 1
    linear = train(inside, "--top", "linear")["start"]
    assert (linear["top"], linear["drawn"]) == ("linear", ["linear_top"])
    text = inside("train-head", "photos", "--out", "run", *[f for f in QUICK if f != "--json"])
    assert text.returncode == 0
    assert "own top; pretrained: 'features.11.squeeze'" in text.stdout
    assert f"drawn: '{LAST}'" in text.stdout


def test_pretrained_layers_begin_at_the_weights_and_a_factor_of_0_freezes_them(
    inside: Run, data: Path, tmp_path: Path
) -> None:
    frozen = train(inside, "--backbone-rate-factor", 0)
    assert layers(frozen["start"]["pretrained"]) == set(BODY)
    tensors, given = load_file(tmp_path / "run" / "head.safetensors"), load_file(data)
    names = [name for name in given if f"module.{name}" in tensors and LAST not in name]
    assert names
    assert all(np.array_equal(tensors[f"module.{name}"], given[name]) for name in names)
    train(inside)
    tensors = load_file(tmp_path / "run" / "head.safetensors")
    distance = max(np.abs(tensors[f"module.{name}"] - given[name]).max() for name in names)
    # Two epochs of at least 25 steps at 0.03 of the rate.
    assert 0 < distance <= 1.5 * 60 * 0.03 * 1e-3


def test_random_weights_are_no_reason_for_an_own_top_or_a_lower_rate(
    inside: Run, photo_folder: Path
) -> None:
    extract(inside, photo_folder, "random:0")
    start = train(inside)["start"]
    assert start["top"] == "linear" and start["pretrained"] == []
    own = train(inside, "--top", "own")["start"]
    assert own["pretrained"] == [] and LAST in own["drawn"]


def test_what_the_weights_lack_is_said(
    inside: Run, photo_folder: Path, tmp_path: Path, data: Path
) -> None:
    data.unlink()
    command = ("train-head", "photos", "--out", "run", *QUICK)
    gone = inside(*command)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr.splitlines()[-1] == (
        "Error: expected the weights that the features were made with, to start the layers behind "
        f"{TAP} from, but: expected a weights file, found nothing at {data}; check the path; put "
        "the file back, or extract again with --weights"
    )
    # Others in its place are not taken.
    backbone = get_backbone(NET)
    save_file(backbone.random_tensors(4, list(backbone.tensor_shapes)), data)
    other = inside(*command)
    assert other.returncode == 12 and "expected weights of digest" in other.stderr
    # A file that ends at the tap has nothing to start from.
    weights(data, without="features.12")
    short = inside(*command)
    assert short.returncode == 1 and "without features.12.squeeze.weight" in short.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("data")
def test_a_sweep_seeds_and_few_pictures_start_from_the_weights_too(inside: Run) -> None:
    swept = train(inside, "--sweep", "--epochs", 1, "--learning-rate", 1e-3)
    assert swept["sweep"]["trained"] == 3, "the factor alone: the rate is given"
    assert swept["start"]["top"] == "own"
    seeds = train(inside, "--seeds", 2, "--epochs", 1)
    assert seeds["seeds"]["seeds"] == 2 and seeds["start"]["pretrained"]
    few = train(inside, "--n-shot", 2, "--tries", 2, "--epochs", 1)
    assert few["n_shot"]["shots"][0]["n"] == 2 and few["start"]["pretrained"]


def test_what_a_suffix_cannot_be_trained_on_is_one_line(
    inside: Run, photo_folder: Path, tmp_path: Path
) -> None:
    more = ("--tap", "features.9", "--tap", "features.10.expand3x3")
    extract(inside, photo_folder, "random:0", *more, "--pool", "none", "--pool", "avg")
    command = ("train-head", "photos", "--out", "run", *QUICK, "--tap")
    for arguments, message in (
        (
            (TAP, "--pool", "avg"),
            "expected features of one --tap with --pool none for a 'suffix' head, found --pool "
            "avg; the layers behind a tap need all that it gives",
        ),
        (
            ("features.10.expand3x3", "--pool", "none"),
            f"expected a tap that everything behind it in {NET} is computed from, found "
            "features.10.expand3x3, which a branch goes past; extract --tap "
            "features.10.squeeze_activation or --tap features.10",
        ),
        (
            (TAP, "--tap", "features.9"),
            "expected one --tap for 'suffix', which is trained on maps, found 2; name one of them",
        ),
    ):
        done = inside(*command, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1] == f"Error: {message}"
    assert not (tmp_path / "run").exists()


def test_dropout_is_refused_where_no_layer_has_it(inside: Run, photo_folder: Path) -> None:
    done = inside("extract", photo_folder, "--name", "photos", "--backbone", "resnet18", "--tap",
                  "layer4.0", "--weights", "random:0", *FLAGS[2:])  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = ("train-head", "photos", "--out", "run", *QUICK, "--dropout", 0.2, "--top")
    refused = inside(*command, "own")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1] == (
        "Error: expected no --dropout for resnet18 behind layer4.0 with its own top, which has no "
        "dropout layer, found 0.2; leave it out, or say --top linear"
    )
    assert inside(*command, "linear").returncode == 0


def test_pixels_have_no_suffix(inside: Run, photo_folder: Path) -> None:
    done = inside("extract", photo_folder, "--name", "photos", "--backbone", "pixels", "--size", 16)
    assert done.returncode == 0, done.stderr
    refused = inside("train-head", "photos", "--out", "run", *QUICK)
    assert refused.returncode == 2
    assert "found pixels: it is no network; train another head" in refused.stderr


def test_a_backbone_of_ones_own_is_cut_where_it_is_named(
    inside: Run, photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suffix_nets.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "suffix_nets:build"
    done = inside("extract", photo_folder, "--name", "own", "--backbone", name, "--tap", "0",
                  "--size", 32, "--precision", "fp32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    command = ("train-head", "own", "--out", "run", *QUICK)
    for trust in (("--backbone", name), ("--allow-code", name)):
        assert json_of(inside(*command, *trust))["start"]["pretrained"] == ["1"]
    monkeypatch.delitem(sys.modules, "suffix_nets")
    for refused in (inside(*command), inside("evaluate", "run")):
        assert refused.returncode == 2 and "name it yourself: --allow-code" in refused.stderr
        assert "suffix_nets" not in sys.modules
    assert inside("evaluate", "run", "--allow-code", name).returncode == 0


def test_an_own_top_that_must_be_drawn_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    held = Weights(TINY, "convolutions.safetensors", _load=lambda _: None, _input=lambda: None)  # type: ignore[arg-type, return-value]
    monkeypatch.setattr(Weights, "named", lambda _, names, also: TINY.random_tensors(0, names))
    starting = StartingTensors([space_for("suffix")], held.spec, tmp_path)
    monkeypatch.setattr(starting, "_weights", held)
    for _ in range(2):
        starting.give(new_head("suffix", {"top": "own"}))
    (said,) = caplog.messages
    assert said == (
        "expected pretrained tensors of the own top of tiny-network in convolutions.safetensors, "
        "found 2 of 2 missing: these layers are drawn; for pretrained ones extract with a whole "
        "file of weights, or take --top linear"
    )
