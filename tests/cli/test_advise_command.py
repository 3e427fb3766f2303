"""``advise`` on the command line: what it prints, its exit codes, and commands that run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.advising import tapped_set, vgg_space
from support.command import Run, json_of
from support.samples import in_splits, stored_set


@pytest.fixture
def two_taps(tmp_path: Path) -> None:
    """Taps of which the earlier one is better, and overfitted, in the default cache."""
    early, deep = vgg_space("block4_pool"), vgg_space("block5_pool")
    tapped_set(tmp_path / "cache", in_splits(train=40, val=100), {early: 2.0, deep: 0.5})


def test_facts_come_first_then_advice(two_taps: None, inside: Run) -> None:
    done = inside("advise", "set")
    assert done.returncode == 0
    facts, advice = done.stdout.split("\nWhat to try next\n")
    assert facts.startswith("set: facts (")
    assert "  80 training pictures, 200 to validate with (val), 0 test\n" in facts
    assert "differences below 3.0 points mean nothing on 200 validation pictures" in facts
    assert "an earlier tap is better than the deepest: different content" in facts
    assert "  learning curve: " in facts and "  gap: " in facts
    assert advice.startswith("  1. linear: the best of 4 linear heads is on block4_pool")
    assert "\n       featpipe train-head set --head logistic --tap block4_pool --pool avg" in advice
    assert "\nNot now\n" in advice
    assert done.stderr.startswith(
        "set: fits 4 linear heads on cached rows and 6 more for the learning curve, on 80 training "
        "and 200 validation pictures; opens no picture\n"
    )


def test_every_number_of_a_reason_is_a_fact_that_is_shown(two_taps: None, inside: Run) -> None:
    document = json_of(inside("advise", "set", "--json"))
    facts = inside("advise", "set").stdout.split("\nWhat to try next\n")[0]
    thresholds = {"5", "20", "5000", "99", "100"}
    for one in [*document["advice"], *document["not_advised"]]:
        # Names of taps have digits, too.
        words = re.sub(r"block\d_pool", "", one["why"])
        for number in re.findall(r"\d+(?:\.\d+)?", words):
            assert number in facts or number in thresholds, (number, one["why"])


def test_the_document_has_the_keys_of_the_docs(two_taps: None, inside: Run) -> None:
    document = json_of(inside("advise", "set", "--json"))
    assert set(document) == {"schema", "dataset", "facts", "advice", "not_advised", "seconds"}
    assert set(document["facts"]) >= {"classes", "taps", "gap", "learning_curve"}
    assert set(document["advice"][0]) == {"try", "why", "commands"}


def test_the_commands_of_the_linear_head_give_what_was_measured(
    own_workspace: Path, inside: Run
) -> None:
    found = json_of(inside("advise", "colours", "--json", cwd=own_workspace))
    best = min(found["facts"]["taps"], key=lambda tap: tap["val_log_loss"])
    for command in found["advice"][0]["commands"]:
        done = inside(*shlex.split(command)[1:], "--json", cwd=own_workspace)
        assert done.returncode == 0, done.stderr
    assert json_of(done)["val"]["accuracy"] == best["val_accuracy"]


@pytest.mark.parametrize(
    ("samples", "code", "message"),
    [
        (
            [(f"{i}.png", None, None) for i in range(4)],
            1,
            "Error: expected labelled pictures in data set 'set', found none; put them into one "
            "folder per class, or give a list with a 'label' column\n",
        ),
        (
            [(f"{i}.png", "cat", "train") for i in range(9)],
            1,
            "Error: expected at least two classes in the train split of 'set', found 'cat'; a "
            "classifier needs something to tell apart\n",
        ),
        (
            in_splits(val=4),
            1,
            "Error: expected pictures to train on and to validate with in data set 'set', found "
            "too few; add pictures (at least two different ones per class), or raise --val\n",
        ),
    ],
)
def test_what_cannot_be_measured_is_said(
    samples: Any, code: int, message: str, inside: Run, tmp_path: Path
) -> None:
    stored_set(tmp_path / "cache", samples)
    done = inside("advise", "set")
    assert (done.returncode, done.stdout, done.stderr) == (code, "", message)


def test_names_and_options_that_are_wrong(two_taps: None, inside: Run) -> None:
    done = inside("advise", "sat")
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        "Error: expected a data set 'sat' in cache, found: set; make it with 'featpipe extract "
        "DATA --name sat', or name another --cache\n"
    )
    done = inside("advise", "set", "--max-pictures", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--max-pictures" in done.stderr


def test_it_runs_as_a_process_of_its_own(two_taps: None, featpipe: Run) -> None:
    done = featpipe("advise", "set", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert "What to try next" in done.stdout


def test_class_names_stay_on_their_line(inside: Run, tmp_path: Path) -> None:
    samples = [(f"{i}.png", "a\x1b[31m\nb" if i % 2 else "c", "train") for i in range(20)]
    stored_set(tmp_path / "cache", samples)
    done = inside("advise", "set")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout and "a\\x1b[31m\\nb" in done.stdout
