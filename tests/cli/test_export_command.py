"""``export`` on the command line: what it prints, exit codes, exact messages."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.command import Run, json_of


def said(inside: Run, workspace: Path, *words: Any) -> tuple[int, str]:
    """Exit code and message of an export that fails and prints nothing."""
    before = sorted(workspace.iterdir())
    done = inside("export", *words, cwd=workspace)
    assert done.stdout == "" and sorted(workspace.iterdir()) == before
    return done.returncode, done.stderr


def test_a_head_is_written_and_described(featpipe: Run, own_workspace: Path) -> None:
    done = featpipe("export", "run", "--format", "torch", "--out", "there/model.pt2", "-v")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"there/model\.pt2: linear, 2 classes, [\d.]+ MiB\n"
        r"  image: float32, N x 3 x 16 x 16, RGB of 0 to 1; gives logits and probabilities\n"
        r"  checked on \d test pictures of colours: same labels, probabilities within \S+\n"
        r"  card: there/README\.md\n",
        done.stdout,
    )
    assert sorted(p.name for p in (own_workspace / "there").iterdir()) == ["README.md", "model.pt2"]


def test_help_marks_what_must_be_given(inside: Run) -> None:
    text = " ".join(inside("export", "--help").stdout.split())
    assert "--format FORMAT --out FILE [OPTIONS] {HEAD|NAME}" in text
    assert text.count("[required]") == 3


def test_features_are_written(inside: Run, own_workspace: Path) -> None:
    words = ("export", "colours", "--format", "npz", "--out", "c.npz")
    done = inside(*words, cwd=own_workspace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "c.npz: colours, block1_pool, pooling none, 0.3 MiB\n"
        "  features: 40 x 64 x 8 x 8, float16; train 25, val 9, test 6\n"
    )
    again = json_of(inside(*words, "--overwrite", "--json", cwd=own_workspace))
    assert again["shape"] == [40, 64, 8, 8] and again["file"] == "c.npz"
    assert again["splits"] == {"train": 25, "val": 9, "test": 6}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            "run --format npz --out x",
            2,
            "expected a data set for --format npz, found the head run; use --format onnx or torch, "
            "or name the data set",
        ),
        (
            "colours --format onnx --out x",
            2,
            "expected the run folder of a head for --format onnx, found the data set 'colours'; "
            "use --format npz or parquet, or name a head ('featpipe runs' lists them)",
        ),
        (
            "nothing --format torch --out x",
            10,
            "expected a head (head.json and head.safetensors) in nothing, found none; train one "
            "with 'featpipe train-head NAME', it prints its folder",
        ),
        (
            "colors --format npz --out x",
            10,
            "expected a data set 'colors' in cache, found: colours; make it with 'featpipe extract "
            "DATA --name colors', or name another --cache",
        ),
        (
            "run --out x",
            2,
            "expected --format, found none; give onnx or torch for a head, npz or parquet for a "
            "data set",
        ),
        (
            "run --format torch",
            2,
            "expected --out, found none; give the file to write, such as --out model/model.onnx",
        ),
        (
            "run --format keras --out x",
            2,
            "expected --format to be one of onnx, torch, npz, parquet, found 'keras'",
        ),
        (
            "run --format torch --out photos",
            2,
            "expected a file as --out, found the folder photos; add a name",
        ),
        (
            "run --format torch --out run/head.json",
            2,
            "expected a new file as --out, found run/head.json; name another one, or replace it "
            "with --overwrite",
        ),
        (
            "run --format torch --out x --tap block1_pool",
            2,
            "expected --tap with --format npz or parquet, found torch; leave it out, a head names "
            "its own features",
        ),
        (
            "colours --format npz --out x --dense",
            2,
            "expected --dense with --format onnx or torch, found npz; leave it out",
        ),
    ],
)
def test_what_cannot_be_exported_says_why(
    words: str, code: int, message: str, inside: Run, workspace: Path
) -> None:
    assert said(inside, workspace, *words.split()) == (code, f"Error: {message}\n")


def test_an_empty_file_name_is_refused(inside: Run, workspace: Path) -> None:
    code, message = said(inside, workspace, "run", "--format", "torch", "--out", "")
    assert (code, message) == (2, "Error: expected a file for --out, found an empty text\n")


def test_what_is_no_file_is_never_replaced(inside: Run, own_workspace: Path) -> None:
    pipe = own_workspace / "pipe"
    os.mkfifo(pipe)
    for words in ("run --format torch", "colours --format npz"):
        done = inside("export", *words.split(), "--out", "pipe", "--overwrite", cwd=own_workspace)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "Error: expected a file as --out, found a device, a pipe or a socket at pipe; name "
            "another one\n"
        )
        assert pipe.is_fifo()


@pytest.mark.parametrize("value", ["x", [0.1], [None, 1.0], 3])
def test_metrics_that_are_none_are_damage(value: Any, inside: Run, own_workspace: Path) -> None:
    head = json.loads((own_workspace / "run" / "head.json").read_text())
    metrics = {"head_sha256": head["sha256"], "split": "test", "accuracy_ci95": value}
    (own_workspace / "run" / "metrics.json").write_text(json.dumps(metrics))
    code, message = said(inside, own_workspace, "run", "--format", "torch", "--out", "x")
    assert code == 13
    assert message.startswith("Error: expected metrics in run/metrics.json, found: ")


def test_other_weights_exit_12(inside: Run, workspace: Path) -> None:
    words = ("run", "--format", "torch", "--out", "x", "--weights", "random:1")
    code, message = said(inside, workspace, *words)
    assert code == 12
    assert message.startswith("Error: expected weights of digest ")


def test_a_damaged_head_exits_13(inside: Run, own_workspace: Path) -> None:
    path = own_workspace / "run" / "head.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "kind": "mlp"}))
    code, message = said(inside, own_workspace, "run", "--format", "torch", "--out", "x")
    assert code == 13 and message.startswith("Error: expected a whole head in run, found: ")
