"""A calibrated head: its temperature is fitted on validation, kept, applied and told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.heads import MAP_KINDS, STAGE_KINDS, space_for
from support.library import evaluate, train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

from featpipe.heads import new_head
from featpipe.heads.base import softmax
from featpipe.stages.calibration import calibrate

PARAMS: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 0.05, "epochs": 6},
    "mlp": {"learning_rate": 0.02, "epochs": 4, "hidden": 8},
    "logistic": {"C": 1.0},
    "knn": {"k": 3},
    **{kind: {"epochs": 3} for kind in MAP_KINDS},
}

SPLITS = ("train", "val", "test")


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train on a data set of which some pictures have both labels, into ``tmp_path/NAME``."""
    both = {f"{split}/cat/{i}.png": f"{split}/dog/{i}.png" for split in SPLITS for i in (3, 7)}
    spaces = [space_for("linear"), space_for("lenet"), space_for("suffix")]
    stored_set(cache, in_splits(train=40, val=30, test=12), contents=both, spaces=spaces)

    def go(head: str, name: str, **options: Any) -> Any:
        out = tmp_path / name
        options = {"out": out, "params": PARAMS[head], "device": "cpu", "cache": cache, **options}
        options.setdefault("space", space_for(head).id)
        return train_head("set", head=head, **options)

    return go


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_the_same_head_answers_with_calibrated_probabilities(
    kind: str, train: Callable[..., Any], cache: Path
) -> None:
    plain, calibrated = train(kind, "plain"), train(kind, "calibrated", calibrate=True)
    found = json.loads(json.dumps(calibrated.as_json()))["calibration"]
    assert found["after"]["log_loss"] < found["before"]["log_loss"]
    assert found["temperature"] != 1 and "calibration" not in plain.as_json()
    # Everything else is the same head; evaluate says the same numbers.
    first, second = load_head(plain.head).head, load_head(calibrated.head).head
    assert second.temperature_ == found["temperature"]
    X = np.random.default_rng(0).normal(size=(50, *space_for(kind).shape)).astype(np.float16)
    expected = softmax(np.log(first.predict_proba(X)) / second.temperature_)
    assert np.allclose(second.predict_proba(X), expected, rtol=1e-4, atol=1e-6)
    for result, scores in ((plain, found["before"]), (calibrated, found["after"])):
        metrics = evaluate(result.head, cache=cache, split="val").metrics
        assert metrics["log_loss"] == pytest.approx(scores["log_loss"], rel=1e-5)
        assert metrics["ece"] == pytest.approx(scores["ece"], abs=1e-6)
    assert load_head(calibrated.head).info["calibration"] == found


def test_only_a_calibrated_head_has_the_newer_format(train: Callable[..., Any]) -> None:
    for name, options, version in (("a", {}, 1), ("b", {"calibrate": True}, 2)):
        folder = train("logistic", name, **options).head
        assert json.loads((folder / "head.json").read_text())["format"] == version


def test_a_temperature_goes_with_seeds_sweeps_and_few_pictures(train: Callable[..., Any]) -> None:
    params = {"epochs": 3, "weight_decay": 0.0}
    for name, options in (
        ("a", {"seeds": 2}),
        ("b", {"sweep": True}),
        ("c", {"n_shot": 5, "tries": 2}),
    ):
        result = train("linear", name, params=params, calibrate=True, **options)
        assert load_head(result.head).head.temperature_ == result.calibration["temperature"] != 1


def test_without_mistakes_the_probabilities_stay_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    X = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    y = np.repeat([0, 1], 10)
    head = new_head("logistic", {"C": 1.0})
    head.classes_ = np.array(["a", "b"])
    head.fit(X, y, X, y, seed=0, device="cpu", tick=lambda row: None)
    with caplog.at_level(logging.WARNING, "featpipe"):
        found = calibrate(head, X, y)
    assert found["temperature"] == head.temperature_ == 1.0 and found["before"] == found["after"]
    assert "expected a temperature of the lowest loss on 20 validation pictures" in caplog.text


def test_the_command_says_what_it_changed(
    inside: Run, train: Callable[..., Any], cache: Path
) -> None:
    common = ("train-head", "set", "--cache", cache, "--head", "knn", "--pool", "avg")
    done = inside(*common, "--calibrate")
    assert done.returncode == 0, done.stderr
    assert "  calibrated on validation: temperature " in done.stdout
    found = json_of(inside(*common, "--calibrate", "--json"))["calibration"]
    assert set(found) == {"temperature", "before", "after"}
    assert set(found["before"]) == {"log_loss", "ece"}
