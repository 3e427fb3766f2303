"""A network of the user's own: what it may be, and that its code runs only where it is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run
from support.heads import MAP_SHAPE, banded, space_for
from support.samples import in_splits, stored_set

import featpipe
from featpipe.base.errors import OwnCodeError, UsageError
from featpipe.base.own_code import permitted
from featpipe.heads import new_head
from featpipe.heads.base import Head

SOURCE = """
import torch
from torch import nn

open({mark!r}, "a").close()


class Normed(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(shape[0])
        self.dense = nn.LazyLinear(classes)

    def forward(self, x):
        return self.dense((self.norm(x) * self.scale).flatten(1))


def build(shape, classes):
    return Normed(shape, classes)


def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(int(torch.tensor(shape).prod()), classes + 1))


def raising(shape, classes):
    raise RuntimeError("no such\\nlayer")


def nothing(shape, classes):
    return None


def failing(shape, classes):
    return nn.Conv2d(shape[0] + 1, 4, 3)


def halved(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(512, classes)).bfloat16()


def single(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Linear(4, classes))
"""
NAME = "own_nets:build"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of one's own can be imported, and leaves this mark when it is."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_nets.py").write_text(SOURCE.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    return tmp_path / "mark"


def fit(name: str, **params: Any) -> Head:
    head = new_head(name, {"epochs": 4, "learning_rate": 0.01, "batch_size": 16, **params})
    head.classes_ = np.array(["a", "b", "c"])
    data = (*banded(60, 3, dtype="u1"), *banded(30, 3, seed=1, dtype="u1"))
    with permitted([name]):
        head.fit(*data, seed=0, device="cpu", tick=lambda _: None)
    return head


def test_a_network_of_ones_own_learns_and_comes_back_with_its_buffers(mark: Path) -> None:
    head = fit(NAME)
    tensors = head.tensors()
    assert {"module.scale", "module.norm.running_mean", "module.norm.num_batches_tracked"} <= set(
        tensors
    )
    assert tensors["module.norm.num_batches_tracked"] > 0
    X, y = banded(60, 3, seed=2, dtype="u1")
    assert (head.predict_proba(X).argmax(axis=1) == y).mean() >= 0.95
    other = new_head(NAME, head.params)
    with permitted([NAME]):
        other.set_tensors(tensors, ["a", "b", "c"], MAP_SHAPE)
    assert np.array_equal(other.predict_proba(X), head.predict_proba(X))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "wide",
            "expected the network of 'own_nets:wide' to answer 2 rows with float32 logits of "
            "shape (2, 3), found (2, 4); correct the factory",
        ),
        (
            "raising",
            "expected 'own_nets:raising' to make a network for rows of (2, 16, 16) and 3 classes, "
            "but: RuntimeError: no such; correct it",
        ),
        (
            "nothing",
            "expected 'own_nets:nothing' to return an nn.Module, found NoneType; correct the "
            "factory",
        ),
        ("failing", "expected 'own_nets:failing' to take 2 rows of (2, 16, 16), but: RuntimeError"),
        ("halved", "expected 'own_nets:halved' to take 2 rows of (2, 16, 16), but: RuntimeError"),
        ("absent", "expected a function 'absent' in 'own_nets' for the head 'own_nets:absent'"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(mark: Path, function: str, message: str) -> None:
    with pytest.raises(OwnCodeError) as caught:
        fit(f"own_nets:{function}")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_batch_that_a_network_cannot_take_is_refused_in_one_line(mark: Path) -> None:
    with pytest.raises(
        OwnCodeError, match=r"'own_nets:single' to train on a batch of 1, but: ValueError: .*more"
    ):
        fit("own_nets:single", batch_size=1)


def test_another_network_than_that_of_the_head_is_refused(mark: Path) -> None:
    head = fit(NAME)
    other = new_head("own_nets:single", head.params)
    with (
        permitted(["own_nets:single"]),
        pytest.raises(OwnCodeError, match="expected 'own_nets:single' to make the network that"),
    ):
        other.set_tensors(head.tensors(), ["a", "b", "c"], MAP_SHAPE)


@pytest.fixture
def trained(cache: Path, tmp_path: Path, mark: Path) -> Path:
    """The run folder of a head of one's own; the module is not imported any more."""
    stored_set(cache, in_splits(train=20, val=8, test=5), spaces=[space_for("lenet")])
    done = featpipe.train_head(
        "set", head=NAME, epochs=2, cache=cache, out=tmp_path / "run", device="cpu"
    )
    forget(mark)
    return done.head


def forget(mark: Path) -> None:
    mark.unlink()
    del sys.modules["own_nets"]


CALLS: dict[str, Callable[..., Any]] = {
    "load_head": lambda run, cache, **code: featpipe.load_head(run, **code),
    "evaluate": lambda run, cache, **code: featpipe.evaluate(run, cache=cache, **code),
    "predict": lambda run, cache, **code: featpipe.predict(run, [], cache=cache, **code),
    "compare": lambda run, cache, **code: featpipe.compare(
        [run, run.parent / "other"], cache=cache, out=run.parent / "compared", **code
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_heads_own_code_runs_only_where_the_call_names_it(
    call: str, trained: Path, mark: Path, cache: Path, tmp_path: Path
) -> None:
    featpipe.train_head(
        "set", head="linear", epochs=1, cache=cache, out=tmp_path / "other", device="cpu"
    )
    for code in ({}, {"allow_code": "os:system"}, {"allow_code": ["own_nets:wide"]}):
        with pytest.raises(UsageError, match=f"name it yourself: --allow-code {NAME}"):
            CALLS[call](trained, cache, **code)
    assert not mark.exists()
    if call == "predict":
        # It asks for the backbone as well, which the pretended space has not.
        with pytest.raises(featpipe.FeatpipeError, match="tiny"):
            CALLS[call](trained, cache, allow_code=NAME)
    else:
        CALLS[call](trained, cache, allow_code=NAME)
    assert mark.exists()


def test_the_command_line_names_it_too(
    trained: Path, mark: Path, cache: Path, featpipe: Run
) -> None:
    command = ("evaluate", trained, "--cache", cache, "--json")
    refused = featpipe(*command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        f"Error: expected a head that comes with featpipe, found '{NAME}', which is code to be "
        f"run; if you trust it, name it yourself: --allow-code {NAME} (in Python: "
        f"allow_code='{NAME}')\n"
    )
    assert not mark.exists()
    done = featpipe(*command, "--allow-code", "own_nets:wide", "--allow-code", NAME)
    assert done.returncode == 0, done.stderr
    assert mark.exists()


def test_a_head_that_names_a_shell_runs_nothing(
    trained: Path, mark: Path, cache: Path, tmp_path: Path
) -> None:
    path = trained / "head.json"
    path.write_text(path.read_text().replace(NAME, "os:system"))
    from featpipe.runs.trained_head import _document_digest

    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "sha256": _document_digest(document)}))
    with pytest.raises(UsageError, match="found 'os:system', which is code to be run"):
        featpipe.load_head(trained)
    # Not even where other code is permitted.
    with pytest.raises(UsageError, match="found 'os:system'"):
        featpipe.load_head(trained, allow_code=NAME)
    assert not mark.exists()
    (listed,) = featpipe.list_runs(tmp_path).found.runs
    assert listed.head.kind == "os:system"


def test_runs_are_listed_without_importing(trained: Path, mark: Path, tmp_path: Path) -> None:
    (listed,) = featpipe.list_runs(tmp_path).found.runs
    assert listed.head.kind == NAME
    assert not mark.exists()


def test_a_recipe_cannot_permit_what_it_names(mark: Path, tmp_path: Path, cache: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[dataset]\nname = "digits"\ndata = "sklearn:digits"\n'
        f'[extract]\nweights = "random:0"\n[[head]]\nkind = "{NAME}"\n'
    )
    with pytest.raises(UsageError, match=f"--allow-code {NAME}"):
        featpipe.run_recipe(recipe, cache=cache)
    assert not mark.exists() and not cache.exists(), "before anything was computed"
    for table in ("[[head]]", "[evaluate]"):
        recipe.write_text(
            '[dataset]\nname = "digits"\ndata = "sklearn:digits"\n'
            f'[[head]]\nkind = "{NAME}"\n{table if table != "[[head]]" else ""}\n'
            f'allow_code = "{NAME}"\n'
        )
        with pytest.raises(UsageError, match="found 'allow_code'"):
            featpipe.run_recipe(recipe, cache=cache)


@pytest.mark.parametrize("value", ["os.system", "a:b:c", "", 5])
def test_what_is_no_name_of_code_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"allow-code"):
        featpipe.load_head(tmp_path, allow_code=value)


def test_the_run_folder_has_a_name_that_any_disk_takes(
    trained: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = featpipe.train_head("set", head=NAME, epochs=1, cache=cache, device="cpu")
    assert str(done.head) == "runs/set-own_nets-build-1"
    document = done.as_json()
    assert document["epoch_seconds"] > 0
    assert featpipe.load_head(done.head, allow_code=NAME).info["epoch_seconds"] > 0
