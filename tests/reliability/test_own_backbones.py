"""Promise 7: a backbone of one's own is imported where the person names it, and nowhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, json_of
from support.own_networks import SOURCE
from support.tally import NewTally

import featpipe as package
from featpipe.base.errors import UsageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset

PROMISE = "7 No code from data"
NAME = "own_networks:plain"
FLAGS = ("--backbone", NAME, "--tap", "1", "--size", 32, "--precision", "fp32", "--pool", "avg")
REFUSED = f"expected a backbone that comes with featpipe, found '{NAME}', which is code to be run"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with networks that leaves this mark when it is imported."""
    (tmp_path / "own_networks.py").write_text(SOURCE.format(mark=str(tmp_path / "mark"), shift=1.0))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    return tmp_path / "mark"


@pytest.fixture
def head(mark: Path, inside: Run, photo_folder: Path, cache: Path, tmp_path: Path) -> Path:
    """A head on features of one's own network; the module is not imported any more."""
    done = inside("extract", photo_folder, "--name", "own", *FLAGS)
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    forget(mark)
    folder = tmp_path / "run"
    done = inside("train-head", "own", "--epochs", 2, "--out", folder, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return folder


def forget(mark: Path) -> None:
    mark.unlink()
    sys.modules.pop("own_networks", None)


def test_a_cache_of_ones_own_network_is_used_without_importing_it(
    head: Path, mark: Path, inside: Run, photo_folder: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "commands on a cache that names code of one's own")
    for command in (
        ("evaluate", head),
        ("train-head", "own", "--tap", "layer1"),
        ("train-head", "own", "--backbone", NAME, "--tap", "1", "--out", head.parent / "other"),
        ("compare", head, head),
        ("audit", "own"),
        ("advise", "own"),
        ("cache", "verify"),
        ("cache", "list"),
        ("runs", head.parent),
        ("relabel", "own", head.parent / "none.csv", "--name", "other"),
        ("predict", head, photo_folder),
    ):
        with t.case(command[0]):
            done = inside(*command)
            assert not mark.exists()
    assert (done.returncode, done.stderr) == (
        2,
        f"Error: {REFUSED}; if you trust it, name it yourself: --allow-code {NAME} (in Python: "
        f"allow_code='{NAME}')\n",
    )


def test_predictions_run_code_that_is_named(
    head: Path, mark: Path, inside: Run, photo_folder: Path, cache: Path
) -> None:
    picture = photo_folder / "red" / "00.png"
    done = inside("predict", head, picture, "--allow-code", NAME, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    forget(mark)
    for code in ({}, {"allow_code": "own_networks:strided"}):
        with pytest.raises(UsageError, match=REFUSED):
            package.predict(head, picture, cache=cache, **code)
    assert not mark.exists()
    (answer,) = package.predict(head, picture, cache=cache, allow_code=NAME)
    assert answer.label is not None


def test_an_export_runs_code_that_is_named(
    head: Path, mark: Path, inside: Run, tmp_path: Path
) -> None:
    words = ("export", head, "--format", "torch", "--out", tmp_path / "model.pt2")
    done = inside(*words)
    assert done.returncode == 2 and REFUSED in done.stderr and not mark.exists()
    done = inside(*words, "--allow-code", NAME)
    assert done.returncode == 0, done.stderr
    assert mark.exists()
    forget(mark)


def test_other_code_of_the_same_name_is_another_feature_space(
    head: Path, mark: Path, inside: Run, photo_folder: Path, tmp_path: Path
) -> None:
    source = (tmp_path / "own_networks.py").read_text()
    (tmp_path / "own_networks.py").write_text(source.replace("nn.ReLU(", "nn.ReLU6("))
    done = inside("extract", photo_folder, "--name", "own", *FLAGS, "--json")
    assert json_of(done)["computed"] == 0, "what comes after the tap does not matter"
    (tmp_path / "own_networks.py").write_text(source.replace("padding=1", "padding=2"))
    sys.modules.pop("own_networks")
    done = inside("predict", head, photo_folder, "--allow-code", NAME)
    assert done.returncode == 12, done.stderr
    assert f"they, or the code of {NAME}, have changed since" in done.stderr
    done = inside("extract", photo_folder, "--name", "own", *FLAGS, "--json")
    assert json_of(done)["computed"] == 40


def test_a_cache_or_a_head_that_names_a_shell_runs_nothing(
    head: Path, cache: Path, inside: Run, mark: Path, photo_folder: Path
) -> None:
    (cache / "weights").mkdir(exist_ok=True)
    (cache / "weights" / "os:system-x.safetensors").write_bytes(b"")
    path = head / "head.json"
    path.write_text(path.read_text().replace(NAME, "os:system"))
    from featpipe.runs.trained_head import _document_digest

    document = json.loads(path.read_text())
    space = FeatureSpace.from_json(json.dumps(document["feature_space"]))
    document["feature_space_id"] = space.id
    path.write_text(json.dumps({**document, "sha256": _document_digest(document)}))
    with pytest.raises(UsageError, match="found 'os:system', which is code to be run"):
        package.predict(head, photo_folder, cache=cache, allow_code=NAME)
    assert "'os:system', which is code to be run" in inside("cache", "verify").stdout
    assert not mark.exists()


def test_a_recipe_names_a_backbone_and_the_person_permits_it(
    mark: Path, inside: Run, photo_folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[dataset]\nname = "own"\ndata = "{photo_folder}"\n[extract]\nbackbone = "{NAME}"\n'
        'tap = "1"\nsize = 32\npool = "avg"\nprecision = "fp32"\n'
        '[[head]]\nkind = "linear"\nepochs = 2\n'
    )
    for command in (("run", recipe), ("run", recipe, "--check")):
        refused = inside(*command)
        assert (refused.returncode, mark.exists()) == (2, False)
        assert REFUSED in refused.stderr
        done = inside(*command, "--allow-code", NAME)
        assert done.returncode == 0, done.stderr
        assert mark.exists()
        forget(mark)


CALLS: dict[str, Callable[[Path, Path], Any]] = {
    "extract": lambda folder, cache: package.extract(
        folder, name="own", cache=cache, backbone=NAME, tap="1", size=32, precision="fp32"
    ),
    "transform": lambda folder, cache: package.CachedFeatures(
        cache=cache, backbone=NAME, tap="1", size=32, precision="fp32"
    ).transform([folder / "red" / "00.png"]),
    "columns": lambda folder, cache: package.CachedFeatures(
        cache=cache, backbone=NAME, tap="1", pool="avg"
    ).get_feature_names_out(),
}


@pytest.mark.parametrize("call", CALLS)
def test_python_calls_that_name_a_backbone_permit_it(
    call: str, mark: Path, photo_folder: Path, cache: Path
) -> None:
    CALLS[call](photo_folder, cache)
    assert mark.exists()


def test_a_space_that_is_held_is_listed_by_its_own_name(
    head: Path, cache: Path, mark: Path, inside: Run
) -> None:
    (text,) = load_dataset(cache, "own").spaces
    assert FeatureSpace.from_json(text).backbone == NAME
    document = json_of(inside("backbones", NAME, "--json"))
    assert mark.exists()
    assert [tap["name"] for tap in document["taps"]][:2] == ["0", "1"]
