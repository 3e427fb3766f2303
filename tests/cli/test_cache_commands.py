"""``featpipe cache remove`` and ``gc``, and what ``info`` and a choice of spaces show."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import TINY_FLAGS, Run, json_of
from support.samples import small_space, stored_set

from featpipe.base.errors import Reason
from featpipe.datasets.dataset import Status
from featpipe.datasets.files import list_datasets, load_dataset, save_dataset
from featpipe.store.lease import shared_lease

SPACE = r"vgg16-block1_pool-[0-9a-f]{12}"
SIZE = r"[0-9.]+ KiB"


def test_without_a_terminal_nothing_is_removed_unless_told_so(
    inside: Run, own_workspace: Path
) -> None:
    done = inside("cache", "remove", "colours")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        r"Error: expected --yes where nobody can be asked, found no terminal; add it to remove "
        rf"data set colours \({SIZE}, 1 file; its rows stay until 'featpipe cache gc'\)\n",
        done.stderr,
    )
    assert list_datasets(own_workspace / "cache") == ["colours"]


def test_a_data_set_is_removed_and_then_its_rows(inside: Run, own_workspace: Path) -> None:
    done = inside("cache", "remove", "colours", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"removed data set colours \({SIZE}, 1 file; its rows stay until 'featpipe cache gc'\)\n",
        done.stdout,
    )
    done = inside("cache", "gc", "-q")
    assert done.stdout == (
        "0 rows, 0 bytes deleted\n40 rows of no data set are young and stay; see --grace\n"
    )
    planned = json_of(inside("cache", "gc", "--grace", "0", "--dry-run", "--json", "-q"))
    assert (planned["dry_run"], planned["rows"]) == (True, 40)
    done = inside("cache", "gc", "--grace", "0", "-q")
    (line, total) = done.stdout.splitlines()
    assert re.fullmatch(rf"{SPACE}: 40 rows of no data set, 0 stay, {SIZE}", line)
    assert re.fullmatch(rf"40 rows, {SIZE} deleted", total)
    assert inside("cache", "list").stdout == "empty\n"
    assert inside("cache", "gc", "--grace", "0", "-q").stdout == "0 rows, 0 bytes deleted\n"


def test_a_space_is_removed_and_what_is_left_is_told(inside: Run, own_workspace: Path) -> None:
    (folder,) = (own_workspace / "cache" / "spaces").iterdir()
    done = inside("cache", "remove", folder.name[-12:-6], "--yes", "--json")
    found = json_of(done)
    assert (found["kind"], found["name"], found["datasets"]) == ("space", folder.name, ["colours"])
    assert found["paths"] == [str(Path("cache") / "spaces" / folder.name)]
    assert found["bytes"] > 40 * 64 * 8 * 8 * 2
    done = inside("train-head", "colours")
    assert done.returncode == 10
    assert "found none; they were removed" in done.stderr


def answered(folder: Path, answer: str, *command: str) -> tuple[int, str]:
    """Exit code and output of a command that is asked on a terminal."""
    mine, its = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "featpipe", *command],
            cwd=folder,
            stdin=its,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "FEATPIPE_CACHE": ""},
        ) as process:
            os.write(mine, f"{answer}\n".encode())
            said, _ = process.communicate(timeout=120)
            return process.returncode, said
    finally:
        os.close(mine)
        os.close(its)


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1), ("", 1)])
def test_on_a_terminal_it_asks(own_workspace: Path, answer: str, code: int) -> None:
    done = answered(own_workspace, answer, "cache", "remove", "colours")
    assert done[0] == code
    asked = r"remove data set colours \(.*\)\? \[y/N\] "
    ends = "removed data set colours .*" if code == 0 else "warning: nothing was removed"
    assert re.fullmatch(rf"{asked}{ends}\n", done[1])
    assert list_datasets(own_workspace / "cache") == ["colours"][:code]


def test_a_cache_in_use_is_left_alone(inside: Run, own_workspace: Path) -> None:
    (folder,) = (own_workspace / "cache" / "spaces").iterdir()
    message = (
        "Error: expected nobody to be using cache, found a process that extracts, predicts, "
        "collects or removes; run the same command again when it has ended\n"
    )
    with shared_lease(own_workspace / "cache"):
        for command in (["gc", "-q"], ["remove", folder.name, "--yes"]):
            done = inside("cache", *command)
            assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
        assert inside("cache", "gc", "--dry-run", "-q").returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("gc --grace -1", 2, "expected --grace of 0 or more, found -1.0"),
        ("gc --grace nan", 2, "expected --grace of 0 or more, found nan"),
        ("gc --cache nowhere", 10, "expected a cache in nowhere, found none; "),
        ("remove colours --yes --cache nowhere", 10, "expected a cache in nowhere, found none; "),
        ("remove dogs --yes", 10, "expected the name of a data set (found: colours) or of a "),
        ("info dogs", 10, "expected a data set 'dogs' in cache, found: colours; make it "),
    ],
)
def test_errors_are_one_line(
    inside: Run, workspace: Path, words: str, code: int, message: str
) -> None:
    done = inside("cache", *words.split(), cwd=workspace)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


def test_what_there_is_to_choose_from_is_shown_with_the_options_to_copy(
    inside: Run, own_workspace: Path
) -> None:
    command = ["extract", "photos", "--name", "colours", *TINY_FLAGS, "--pool", "avg", "-q"]
    assert inside(*command).returncode == 0
    done = inside("train-head", "colours")
    assert (done.returncode, done.stdout) == (2, "")
    error, head, *rows = done.stderr.splitlines()
    assert error == (
        "Error: expected options that choose one of the feature spaces of 'colours', found 2 "
        "spaces that differ in --pool (avg, none); for the first add --pool avg"
    )
    assert head.split("  ") == ["", "options that choose it", "or", *head.split("  ")[3:]]
    assert [row.split()[:2] for row in rows] == [["--pool", "avg"], ["--pool", "none"]]
    assert rows[0].endswith("block1_pool/avg (vgg16 16px squash fp32), 64 float16")
    for row in rows:
        words = row.split()
        for options in (words[:2], words[2:4]):
            run = own_workspace / f"run{options[1]}"
            done = inside("train-head", "colours", *options, "--epochs", "1", "--out", run)
            assert done.returncode == 0, done.stderr


def test_info_counts_classes_and_reasons(inside: Run, cache: Path) -> None:
    samples = [(f"{i}.png", "cat" if i % 3 else "<b>\n", ("train", "val")[i % 2]) for i in range(8)]
    samples += [("x.png", None, None), *((f"bad{i}.png", "cat", "train") for i in range(4))]
    stored_set(cache, samples, spaces=[small_space()])
    dataset = load_dataset(cache, "set")
    dataset.status[-4:] = Status.QUARANTINED
    texts = ["truncated (3 bytes)", "truncated (17 bytes)", "unknown", "unknown"]
    dataset.reasons = {9 + i: Reason("decode", text) for i, text in enumerate(texts)}
    save_dataset(cache, dataset)
    found = json_of(inside("cache", "info", "set", "--json"))
    assert found["class_counts"] == [
        {"class": "<b>\n", "pictures": 3, "splits": {"train": 2, "val": 1, "test": 0}},
        {"class": "cat", "pictures": 5, "splits": {"train": 2, "val": 3, "test": 0}},
        {"class": None, "pictures": 1, "splits": {"train": 0, "val": 0, "test": 0}},
    ]
    assert found["reasons"] == [
        {"stage": "decode", "reason": "truncated (N bytes)", "count": 2, "example": "bad0.png"},
        {"stage": "decode", "reason": "unknown", "count": 2, "example": "bad2.png"},
    ]
    said = inside("cache", "info", "set").stdout
    assert said.partition("\n\n")[2] == (
        "class       train  val  pictures\n"
        "<b>\\n           2    1         3\n"
        "cat             2    3         5\n"
        "(no label)      0    0         1\n"
        "\n"
        "quarantined\n"
        "       2  decode: truncated (N bytes) (such as bad0.png)\n"
        "       2  decode: unknown (such as bad2.png)\n"
    )


def test_list_says_what_no_data_set_names_and_what_is_damaged(
    inside: Run, own_workspace: Path
) -> None:
    cache = own_workspace / "cache"
    found = json_of(inside("cache", "list", "--json"))
    (store,) = found["stores"]
    assert (store["unnamed"], store["datasets"], store["shape"]) == (0, ["colours"], [64, 8, 8])
    assert found["dataset_details"][0]["pictures"] == 40
    save_dataset(cache, load_dataset(cache, "colours"))
    path = cache / "datasets" / "colours.h5"
    path.rename(path.with_name("other.h5"))
    done = inside("cache", "list")
    assert "data set  other: damaged, see 'featpipe cache verify'; " in done.stdout
    path.with_name("other.h5").unlink()
    done = inside("cache", "list")
    assert "of no data set, 40 rows unnamed" in done.stdout
    assert done.stdout.endswith("\n'featpipe cache gc' deletes rows that no data set names\n")
