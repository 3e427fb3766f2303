"""A cache and heads that the first edition wrote open, verify, evaluate and extend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, json_of

from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset

RECIPE = (
    "--weights random:0 --size 32 --tap block4_pool --pool avg --precision fp32 --device cpu"
).split()
KINDS = ("linear", "mlp", "logistic")


@pytest.fixture
def old(shared: Path, tmp_path: Path) -> Path:
    """A copy, in ``tmp_path``, that may be written to."""
    source = shared / "data" / "old_cache"
    if not source.is_dir():
        pytest.skip(f"NO SAMPLE DATA: {source} is missing; old caches were not tested")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return tmp_path


@pytest.fixture
def expected(old: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((old / "expected.json").read_text())
    return found


def test_it_verifies_clean(old: Path, featpipe: Run) -> None:
    done = featpipe("cache", "verify")
    assert done.returncode == 0, done.stdout


def test_extracting_again_computes_nothing(
    old: Path, expected: dict[str, Any], featpipe: Run
) -> None:
    segments = sorted(old.rglob("segments/*.h5"))
    done = json_of(featpipe("extract", "sklearn:digits", "--name", "digits", *RECIPE, "--json"))
    assert (done["computed"], done["reused"]) == (0, 1797)
    assert [space["id"] for space in done["spaces"]] == [expected["space"]]
    assert sorted(old.rglob("segments/*.h5")) == segments


def test_its_spaces_keep_their_ids(old: Path, expected: dict[str, Any]) -> None:
    (text,) = load_dataset(old / "cache", "digits").spaces
    space = FeatureSpace.from_json(text)
    assert (space.id, space.canonical_json) == (expected["space"], text)
    assert (old / "cache" / "spaces" / space.name).is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_its_heads_score_as_they_did(
    kind: str, old: Path, expected: dict[str, Any], featpipe: Run
) -> None:
    done = json_of(featpipe("evaluate", f"runs/{kind}", "--json"))
    assert done["accuracy"] == expected["test_accuracy"][kind]
    assert done["log_loss"] == pytest.approx(expected["test_log_loss"][kind], rel=1e-6)


def test_it_can_be_extended(old: Path, featpipe: Run) -> None:
    wider = [*RECIPE[:4], "--tap", "block3_pool", *RECIPE[4:]]
    done = json_of(featpipe("extract", "sklearn:digits", "--name", "digits", *wider, "--json"))
    assert done["computed"] == 1797
    trained = json_of(
        featpipe("train-head", "digits", "--tap", "block4_pool", "--epochs", "2", "--json")
    )
    assert len(trained["classes"]) == 10
    assert featpipe("cache", "verify").returncode == 0
