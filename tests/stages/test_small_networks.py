"""Small networks on cached pixels, from extract to predict, on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support.command import Run, json_of
from support.samples import in_splits, stored_set

import featpipe as library

PIXELS = ("--backbone", "pixels", "--size", "16", "--resize", "squash", "--device", "cpu")
QUICK = ("--learning-rate", "0.003", "--batch-size", "8", "--epochs", "6", "--device", "cpu")


@pytest.fixture
def pixels(inside: Run, photo_folder: Path, cache: Path) -> None:
    """The photographs as rows of pixels: the data set ``photos``."""
    done = inside("extract", photo_folder, "--name", "photos", *PIXELS, "--cache", cache)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("pixels")
def test_a_network_from_pixels_to_predictions(
    inside: Run, photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ("train-head", "photos", "--cache", cache, "--out", run, "--overwrite", *QUICK)
    trained = json_of(inside(*common, "--head", "lenet", "--seed", "3", "--json"))
    assert trained["kind"] == "lenet" and trained["val"]["accuracy"] >= 0.8
    assert 0 < trained["epoch_seconds"] < trained["seconds"]
    document = json.loads((run / "head.json").read_text())
    assert document["info"]["epoch_seconds"] == trained["epoch_seconds"]
    scores = json_of(inside("evaluate", run, "--cache", cache, "--json"))
    assert scores["accuracy"] >= 0.8
    done = inside("predict", run, photo_folder / "red", "--cache", cache, "--json")
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels.count("red") >= 0.8 * len(labels) and len(labels) == 20
    # What it says of a row is what it says of the same pixels in memory.
    head = library.load_head(run)
    assert head.space.dtype == "uint8" and head.space.shape == (3, 16, 16)
    rows = library.open_features("photos", "test", cache=cache).X
    assert np.allclose(head.predict_proba(rows), head.predict_proba(np.asarray(rows, np.float32)))


@pytest.mark.usefixtures("pixels")
def test_networks_are_swept_and_compared(inside: Run, cache: Path, tmp_path: Path) -> None:
    common = ("train-head", "photos", "--cache", cache, *QUICK)
    swept = json_of(
        inside(*common, "--head", "mnist-cnn", "--sweep", "--out", tmp_path / "a", "--json")
    )
    assert swept["sweep"]["trained"] == 3, "dropout alone: the rest is given"
    few = inside(*common, "--head", "simplecnn", "--n-shot", "2", "--tries", "2",
                 "--out", tmp_path / "b", "--json")  # fmt: skip
    assert json_of(few)["n_shot"]["shots"][0]["n"] == 2
    heads = (tmp_path / "a", tmp_path / "b")
    done = json_of(
        inside("compare", *heads, "--cache", cache, "--out", tmp_path / "page", "--json")
    )
    assert {row["kind"] for row in done["heads"]} == {"mnist-cnn", "simplecnn"}


@pytest.mark.usefixtures("pixels")
@pytest.mark.parametrize("head", ["linear", "mlp", "logistic", "knn"])
def test_row_heads_take_pixels_too(inside: Run, cache: Path, tmp_path: Path, head: str) -> None:
    command = ("train-head", "photos", "--cache", cache, "--head", head, "--device", "cpu")
    trained = json_of(inside(*command, "--out", tmp_path / "run", "--json"))
    assert trained["val"]["accuracy"] >= 0.8


@pytest.mark.usefixtures("pixels")
def test_ones_own_network_predicts_where_it_is_named(
    inside: Run,
    photo_folder: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "flat_nets.py").write_text(
        "from torch import nn\n"
        "def build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name, run = "flat_nets:build", tmp_path / "run"
    command = ("train-head", "photos", "--cache", cache, "--head", name, "--out", run, *QUICK)
    trained = json_of(inside(*command, "--json"))
    assert trained["kind"] == name
    monkeypatch.delitem(sys.modules, "flat_nets")
    predict = ("predict", run, photo_folder / "red" / "00.png", "--cache", cache)
    refused = inside(*predict)
    assert refused.returncode == 2 and "flat_nets" not in sys.modules
    done = inside(*predict, "--allow-code", name)
    assert done.returncode == 0 and "00.png" in done.stdout


def test_flat_rows_and_wrong_options_are_one_line(inside: Run, cache: Path) -> None:
    stored_set(cache, in_splits(train=8, val=4))
    command = ("train-head", "set", "--cache", cache, "--head")
    for arguments, message in (
        (
            ("lenet",),
            "expected maps (channels, height, width) for a 'lenet' head, found flat rows of 4 "
            "numbers; extract with --backbone pixels, or with --pool none, and name that space "
            "with --backbone or --pool",
        ),
        (
            ("lenet", "--momentum", "0.9"),
            "expected --momentum only with --optimizer sgd or rmsprop, found --momentum 0.9 with "
            "adamw, which has its own; leave it out or name another optimizer",
        ),
        (
            ("lenet", "--dropout", "0.5"),
            "expected hyper-parameters of 'lenet' (--class-weight, --learning-rate, "
            "--weight-decay, --batch-size, --epochs, --patience, --schedule, --compute, "
            "--optimizer, --momentum, --init), found --dropout; leave --dropout out, or use --head "
            "mlp, mnist-cnn, simplecnn or suffix",
        ),
    ):
        done = inside(*command, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1] == f"Error: {message}"


def test_a_recipe_trains_networks_and_ones_own_where_it_is_permitted(
    inside: Run,
    photo_folder: Path,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "recipe_nets.py").write_text(
        "from torch import nn\n"
        "def build(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[dataset]\nname = "photos"\ndata = "{photo_folder}"\n'
        '[extract]\nbackbone = "pixels"\nsize = 16\nresize = "squash"\ndevice = "cpu"\n'
        '[[head]]\nkind = "lenet"\nepochs = 2\ndevice = "cpu"\n'
        '[[head]]\nkind = "recipe_nets:build"\nepochs = 2\ndevice = "cpu"\n'
    )
    assert inside("run", recipe, "--check").returncode == 0
    command = ("run", recipe, "--cache", cache, "--out", tmp_path / "runs", "--json")
    refused = inside(*command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "recipe_nets" not in sys.modules and not cache.exists()
    done = json_of(inside(*command, "--allow-code", "recipe_nets:build"))
    assert [Path(head["train"]["head"]).name for head in done["heads"]] == [
        "1-lenet",
        "2-recipe_nets-build",
    ]
    assert len(done["comparison"]["heads"]) == 2


@pytest.mark.usefixtures("pixels")
def test_arithmetic_is_chosen_before_training_and_recorded(
    inside: Run, cache: Path, tmp_path: Path
) -> None:
    common = ("train-head", "photos", "--cache", cache, "--head", "lenet", *QUICK)
    options = ("--compute", "auto", "--schedule", "cosine", "--overwrite", "--json")
    json_of(inside(*common, *options, "--out", tmp_path / "run"))
    params = json.loads((tmp_path / "run" / "head.json").read_text())["params"]
    assert params["compute"] in ("fp32", "bf16"), "auto would repeat only on this machine"
    assert (params["schedule"], params["patience"]) == ("cosine", None)
    kept = [path.name for path in (cache / "processors").glob("*.training-*")]
    assert kept == [] or kept[0].endswith(f".training-convolution.{params['compute']}")
    # What was recorded repeats what was chosen, to the bit.
    json_of(inside(*common, "--compute", params["compute"], *options[2:],
                   "--out", tmp_path / "again"))  # fmt: skip
    first, second = (tmp_path / run / "head.safetensors" for run in ("run", "again"))
    assert first.read_bytes() == second.read_bytes()
    refused = inside(*common, "--compute", "fp16")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.splitlines()[-1] == (
        "Error: expected --compute to be one of auto, fp32, bf16, found 'fp16'"
    )
