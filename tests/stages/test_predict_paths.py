"""A path that does not exist is an error before any work; a file that vanishes is a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import TINY_FLAGS, Run
from support.library import predict
from support.samples import class_picture


@pytest.mark.parametrize(
    "path", ["nothere/", "photos/nothere.png", "photos/red/00.png/x", "x" * 300]
)
def test_a_path_without_anything_exits_10(path: str, inside: Run, workspace: Path) -> None:
    done = inside("predict", "run", "photos/red", path, cwd=workspace)
    assert (done.returncode, done.stdout) == (10, "")
    assert done.stderr == (
        f"Error: expected a picture or a folder at {path}, found nothing there; check the path\n"
    )


def test_a_file_that_vanishes_later_is_a_line(own_workspace: Path) -> None:
    new = own_workspace / "new"
    new.mkdir()
    for seed in range(3):
        class_picture(0, 40 + seed).save(new / f"{seed}.png")
    answers = predict(
        own_workspace / "run", [new], cache=own_workspace / "cache", device="cpu", workers=1
    )
    (new / "1.png").unlink()
    assert [answer.error for answer in answers] == [None, "read: No such file or directory", None]


def test_too_many_pixels_are_said_with_size_and_option(inside: Run, own_workspace: Path) -> None:
    class_picture(0, 77).save(own_workspace / "big.png")
    done = inside("predict", "run", "big.png", "--json", "--max-pixels", 100)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"] == (
        "open: 40 x 40 is more than 100 pixels; shrink it, or allow it with --max-pixels 1600"
    )


def test_what_a_decoder_said_itself_is_for_verbose_alone(inside: Run, own_workspace: Path) -> None:
    data = (own_workspace / "photos" / "red" / "00.png").read_bytes()
    (own_workspace / "photos" / "red" / "cut.png").write_bytes(data[:-40])
    for command in (
        ("predict", "run", "photos/red/cut.png"),
        ("extract", "photos", "--name", "colours", "--retry-quarantined", *TINY_FLAGS),
    ):
        plain, verbose = inside(*command), inside(*command, "--verbose")
        assert "damaged PNG: the file is truncated" in plain.stdout
        assert "Error" not in plain.stdout + plain.stderr
        if command[0] == "predict":
            assert plain.stderr == "warning: 1 file could not be read; its line says why\n"
        assert "damaged PNG: the file is truncated (OSError: " in verbose.stderr
