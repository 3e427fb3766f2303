"""A head that is worse than it could be says so: in the log, in JSON and in its folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.heads import STAGE_KINDS, space_for
from support.library import train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

UNEQUAL = [
    (f"{split}/{label}/{i}.png", label, split)
    for split, cats, dogs in (("train", 60, 3), ("val", 60, 3))
    for label, count in (("cat", cats), ("dog", dogs))
    for i in range(count)
]
# So little that the head still answers what it began with, so few epochs that the last is best.
STUCK = {"learning_rate": 1e-9, "epochs": 2}
LAST = (
    "expected the validation loss to stop falling, found it lowest in the last of 2 epochs; "
    "raise --epochs"
)
NO_BETTER = (
    "expected a validation accuracy above 95.24%, that of always answering 'cat', found 95.24%; "
    "try another tap or head, or more pictures of the smaller classes"
)


@pytest.mark.parametrize("sweep", [False, True], ids=["one", "sweep"])
def test_a_head_no_better_than_the_larger_class_is_a_warning(
    sweep: bool, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored_set(cache, UNEQUAL)
    more = {"sweep": True, "weight_decay": 0.0} if sweep else {}
    with caplog.at_level(logging.WARNING, "featpipe"):
        result = train_head(
            "set", cache=cache, out=tmp_path / "run", device="cpu", params=STUCK, **more
        )
    assert result.val["accuracy"] == pytest.approx(60 / 63)
    assert NO_BETTER in result.warnings
    assert [record.getMessage() for record in caplog.records] == [
        f"'linear' head: {text}" for text in result.warnings
    ]
    assert result.as_json()["warnings"] == result.warnings
    assert load_head(result.head).info["warnings"] == result.warnings


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_a_good_head_is_no_warning(
    kind: str, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored_set(cache, in_splits(train=40, val=20), spaces=[space_for(kind)])
    params = {"learning_rate": 0.003} if kind in ("linear", "mlp") else {}
    with caplog.at_level(logging.WARNING, "featpipe"):
        result = train_head(
            "set", head=kind, cache=cache, out=tmp_path / "run", device="cpu", params=params
        )
    assert result.val["accuracy"] > 0.9
    assert result.warnings == [] and caplog.records == []
    assert "warnings" not in load_head(result.head).info


def test_the_command_line_prints_warnings_and_lists_them_in_json(
    featpipe: Any, workspace: Path
) -> None:
    command = ["train-head", "colours", "--cache", workspace / "cache", "--json"]
    done = featpipe(*command, "--epochs", "2", "--learning-rate", "1e-9")
    assert done.returncode == 0, done.stderr
    warnings = json.loads(done.stdout)["warnings"]
    assert LAST in warnings
    assert done.stderr.splitlines() == [f"warning: 'linear' head: {text}" for text in warnings]
