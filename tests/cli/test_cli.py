"""The command line as people and scripts see it: results, help, JSON, CSV, streams."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from support.command import TINY_FLAGS, Run, files_in, json_of
from support.samples import class_picture

from featpipe._version import __version__
from featpipe.base.disk import write_atomically
from featpipe.cli.app import app


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by the words it is called with."""

    def below(group: Any, words: str) -> Iterator[tuple[str, Any]]:
        for name in group.list_commands(None):
            command = group.get_command(None, name)
            if hasattr(command, "commands"):
                yield from below(command, f"{words}{name} ")
            else:
                yield f"{words}{name}", command

    yield from below(typer.main.get_command(app), "")


COMMANDS = dict(commands())


def raw(*args: Any, cwd: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command line for its very bytes."""
    plain = {"FEATPIPE_CACHE": "", "PYTHONUNBUFFERED": "", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "featpipe", *map(os.fspath, args)],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **plain, **env},
        timeout=240,
        check=False,
    )


# Help, version, what is imported.


def test_the_commands_of_the_design_are_there() -> None:
    wanted = "extract train-head evaluate predict run backbones doctor".split()
    assert {
        *wanted,
        "cache list",
        "cache info",
        "cache verify",
        "weights list",
        "weights fetch",
    } <= (set(COMMANDS))


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_says_what_it_does_and_gives_an_example(words: str) -> None:
    command = COMMANDS[words]
    assert command.callback.__doc__, f"{words} has no docstring"
    lines = [line.strip() for line in command.help.split("\n")]
    examples = [line for line in lines if line.startswith("Example:")]
    assert examples, f"the help of {words} has no 'Example:'"
    for example in examples:
        called = shlex.split(example.removeprefix("Example:"))
        assert called[: 1 + len(words.split())] == ["featpipe", *words.split()]


@pytest.mark.parametrize("words", COMMANDS)
def test_the_options_of_an_example_exist(words: str) -> None:
    command = COMMANDS[words]
    known = {option for param in command.params for option in param.opts}
    (example,) = re.findall(r"Example: (.*?)(?:\n\n|$)", command.help, re.S)
    given = {word for word in shlex.split(example) if word.startswith("-")}
    assert given <= known


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_and_argument_is_explained(words: str) -> None:
    unexplained = [param.name for param in COMMANDS[words].params if not param.help]
    assert not unexplained


def test_the_example_of_the_whole_is_a_real_command() -> None:
    text = typer.main.get_command(app).help
    (example,) = re.findall(r"Example: (.*)", text)
    assert example.split()[0] == "featpipe"
    assert example.split()[1] in COMMANDS


def test_the_help_of_the_whole_names_every_exit_code() -> None:
    text = " ".join(typer.main.get_command(app).help.split())
    assert re.findall(r"\d+", text.partition("Exit codes:")[2]) == (
        "0 1 2 3 10 12 13 74 130 143".split()
    )


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_goes_to_stdout_and_exits_0(featpipe: Run, flag: str) -> None:
    done = featpipe(flag)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Example:" in done.stdout
    for words in COMMANDS:
        assert words.split()[0] in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["extract", "--help"], ["--version"]])
def test_help_and_version_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = {['featpipe', *args]!r}\n"
        "from featpipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    imported = set(done.stderr.split())
    assert {"featpipe", "typer"} <= imported
    assert not imported & {"torch", "torchvision", "sklearn", "h5py", "numpy", "PIL", "rich"}


@pytest.mark.parametrize(
    ("given", "loaded", "expected"),
    [
        ({}, "", "3000 True True"),
        ({"GOMP_SPINCOUNT": "7"}, "", "7 True True"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", "none True True"),
        # It would call a leak what is left over.
        ({}, "triton", "3000 True False"),
    ],
)
def test_a_process_waits_for_its_threads_and_looks_for_garbage_less_than_python_would(
    given: dict[str, str], loaded: str, expected: str
) -> None:
    code = (
        "import atexit, gc, os, sys\n"
        "before = gc.get_freeze_count()\n"
        "atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT', 'none'), "
        "gc.get_threshold()[0] > 10_000, gc.get_freeze_count() > before))\n"
        "sys.argv = ['featpipe', '--version']\n"
        f"sys.modules[{loaded!r}] = sys\n"
        "from featpipe.cli import main\n"
        "main()\n"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=kept | given,
    )
    assert done.stdout.splitlines()[-1] == expected


def test_the_version_is_that_of_the_package(featpipe: Run) -> None:
    done = featpipe("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"featpipe {__version__}\n", "")


# extract


def test_extract_says_what_it_did_and_the_second_time_that_nothing_was_computed(
    featpipe: Run, photo_folder: Path, cache: Path
) -> None:
    command = ("extract", photo_folder, "--name", "colours", *TINY_FLAGS)
    first = featpipe(*command)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == ("colours: 40 pictures: 40 computed, 0 reused, 0 duplicates, 0 quarantined")
    assert re.fullmatch(
        r"  \d+\.\d s, \d+\.\d pictures/s; bottleneck: (read|decode|backbone|write) "
        r"\(list \S+ s, read \S+ s, decode \S+ s, backbone \S+ s, write \S+ s\)",
        lines[1],
    )
    assert "block1_pool, pooling none, 64 x 8 x 8, float16" in lines[2]
    # Progress and logs are not results.
    assert first.stderr == f"{photo_folder}: 40 pictures\n"

    second = featpipe(*command)
    assert second.returncode == 0
    assert second.stdout.splitlines()[:2] == [
        "colours: 40 pictures: 0 computed, 40 reused, 0 duplicates, 0 quarantined",
        "  nothing to compute: no picture was decoded, the backbone did not run",
    ]
    assert len(list(cache.glob("spaces/*/segments/*.h5"))) == 1

    # A third time, with two pictures more: one new, one a copy.
    class_picture(0, 99).save(photo_folder / "red" / "99.png")
    shutil.copy(photo_folder / "red" / "00.png", photo_folder / "red" / "copy.png")
    third = featpipe(*command)
    assert third.stdout.splitlines()[0] == (
        "colours: 42 pictures: 1 computed, 40 reused, 1 duplicates, 0 quarantined"
    )


EXTRACT_KEYS = (
    "dataset spaces images computed reused duplicates quarantined seconds images_per_second "
    "stage_seconds bottleneck"
).split()


def test_extract_gives_one_json_document_even_where_pictures_are_quarantined(
    featpipe: Run, photo_folder: Path
) -> None:
    (photo_folder / "red" / "broken.png").write_bytes(b"not a picture")
    done = featpipe("extract", photo_folder, "--name", "colours", "--json", *TINY_FLAGS)
    assert done.returncode == 3, done.stderr
    assert done.stdout.count("\n") == 1
    found = json_of(done)
    assert set(EXTRACT_KEYS) <= set(found)
    assert found["dataset"] == "colours"
    (space,) = found["spaces"]
    assert space["tap"] == "block1_pool"
    assert space["pool"] == "none"
    assert space["shape"] == [64, 8, 8]
    assert re.fullmatch(r"[0-9a-f]{64}", space["id"])
    counts = [found[key] for key in ("images", "computed", "reused", "duplicates", "quarantined")]
    assert counts == [41, 40, 0, 0, 1]
    assert {"read", "decode", "backbone", "write"} <= set(found["stage_seconds"])
    assert found["bottleneck"] in ("read", "decode", "backbone", "write")
    assert found["images_per_second"] == pytest.approx(41 / found["seconds"], rel=0.1)
    (bad,) = found["bad"]
    assert (bad["path"], bad["stage"]) == ("red/broken.png", "open")


def test_extract_fills_several_spaces_at_once(inside: Run, workspace: Path, cache: Path) -> None:
    more = ("--tap", "block2_pool", "--pool", "avg", "--pool", "max")
    done = inside("extract", workspace / "photos", "--name", "c", "--json", *TINY_FLAGS, *more)
    assert done.returncode == 0, done.stderr
    spaces = [(s["tap"], s["pool"], s["shape"]) for s in json_of(done)["spaces"]]
    assert spaces == [
        ("block1_pool", "avg", [64]),
        ("block1_pool", "max", [64]),
        ("block2_pool", "avg", [128]),
        ("block2_pool", "max", [128]),
    ]
    assert len(list(cache.glob("spaces/*"))) == 4


def test_a_dry_run_writes_nothing(inside: Run, workspace: Path, tmp_path: Path) -> None:
    command = ("extract", workspace / "photos", "--name", "colours", "--dry-run", *TINY_FLAGS)
    done = inside(*command)
    assert (done.returncode, done.stdout) == (
        0,
        "colours: 40 pictures: 0 unchanged and cached, 40 to read (what turns out to be known is "
        "not decoded), 0 quarantined before; nothing was done\n"
        "  classes: blue 20, red 20\n"
        "  splits: by content, so not known before the 40 pictures are read\n",
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_what_is_cached_already(inside: Run, own_workspace: Path) -> None:
    command = ("extract", own_workspace / "photos", "--name", "colours", *TINY_FLAGS)
    # The copy lies elsewhere: nothing about its files is known until they have been read once.
    settle(own_workspace / "photos")
    assert inside(*command).returncode == 0
    class_picture(0, 99).save(own_workspace / "photos" / "red" / "99.png")
    before = {p: p.stat().st_mtime_ns for p in (own_workspace / "cache").rglob("*")}
    found = json_of(inside(*command, "--dry-run", "--json"))
    # How many are known depends on whether two seconds have passed since they were made.
    assert (found["images"], found["quarantined"]) == (41, 0)
    assert found["unchanged"] + found["to_read"] == 41
    assert found["to_read"] >= 1
    assert {p: p.stat().st_mtime_ns for p in (own_workspace / "cache").rglob("*")} == before


def settle(folder: Path) -> None:
    """Make files old enough that their timestamps are trusted."""
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


def test_strict_and_max_bad_decide_when_bad_pictures_are_a_failure(
    inside: Run, own_workspace: Path
) -> None:
    for number in range(4):
        (own_workspace / "photos" / "red" / f"bad{number}.png").write_bytes(b"no %d" % number)
    command = ("extract", own_workspace / "photos", "--name", "other", *TINY_FLAGS)
    # 4 of 44 are 9.1 %.
    codes = {
        flags: inside(*command, *flags.split()).returncode
        for flags in ("--strict", "--max-bad 9%", "--max-bad 10%", "--max-bad 10")
    }
    assert codes == {"--strict": 1, "--max-bad 9%": 1, "--max-bad 10%": 3, "--max-bad 10": 3}


def test_strict_says_which_picture_and_why(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "photos" / "red" / "bad.png").write_bytes(b"no")
    done = inside("extract", own_workspace / "photos", "--name", "other", "--strict", *TINY_FLAGS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "Error: expected at most 0 % of 41 pictures to be unreadable, found 1 so far, among them "
        "'red/bad.png' (open: not a picture but text; remove it, or give it an ending such "
        "as .txt); mend or "
        "remove them, or allow more with --max-bad"
    )
    assert not (own_workspace / "cache" / "datasets" / "other.h5").exists()


def test_split_decides_the_shares(inside: Run, own_workspace: Path) -> None:
    command = ("extract", own_workspace / "photos", "--name", "halves", "--json", *TINY_FLAGS)
    splits = json_of(inside(*command, "--split", "0.5,0,0.5"))["splits"]
    assert set(splits) == {"train", "test"}
    assert sum(splits.values()) == 40
    assert 8 <= splits["test"] <= 32


def test_a_list_is_read_relative_to_its_root(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "lists").mkdir()
    text = "path,label,split\n" + "".join(
        f"{label}/{n:02d}.png,{label},{'test' if n < 5 else 'train'}\n"
        for label in ("red", "blue")
        for n in range(10)
    )
    (own_workspace / "lists" / "some.csv").write_text(text)
    command = ("extract", "lists/some.csv", "--name", "some", "--json", *TINY_FLAGS)
    found = json_of(inside(*command, "--root", "photos"))
    assert (found["images"], found["computed"]) == (20, 0)
    assert found["splits"] == {"train": 10, "test": 10}


# train-head, evaluate, predict


def test_train_head_gives_one_json_document(featpipe: Run, workspace: Path, tmp_path: Path) -> None:
    done = featpipe(
        "train-head", "colours", "--head", "logistic", "--C", "0.01", "--out", "new", "--json",
        "--cache", workspace / "cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    found = json_of(done)
    assert {"head", "kind", "classes", "train", "val", "seconds"} <= set(found)
    assert (found["head"], found["kind"]) == ("new", "logistic")
    assert found["classes"] == ["blue", "red"]
    for part in ("train", "val"):
        assert set(found[part]) == {"n", "loss", "accuracy"}
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "head.json",
        "head.safetensors",
    }


def test_train_head_numbers_its_run_folders(inside: Run, workspace: Path, tmp_path: Path) -> None:
    command = ("train-head", "colours", "--head", "logistic", "--C", "1")
    told = [inside(*command, "--cache", workspace / "cache").stdout for _ in range(2)]
    for number, text in enumerate(told, 1):
        first, second = text.splitlines()
        assert re.match(r"logistic head in \d+\.\d s: validation accuracy 100\.00%", first)
        assert second == f"  runs/colours-logistic-{number}"
        assert (tmp_path / "runs" / f"colours-logistic-{number}" / "head.json").is_file()


def test_overwrite_replaces_a_head(inside: Run, own_workspace: Path) -> None:
    before = (own_workspace / "run" / "head.json").read_bytes()
    command = ("train-head", "colours", "--head", "logistic", "--C", "1", "--out", "run")
    refused = inside(*command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (own_workspace / "run" / "head.json").read_bytes() == before
    assert inside(*command, "--overwrite").returncode == 0
    assert json.loads((own_workspace / "run" / "head.json").read_text())["kind"] == "logistic"


EVALUATE_KEYS = (
    "head dataset split n accuracy accuracy_ci95 log_loss ece per_class confusion report"
).split()


def test_evaluate_gives_one_json_document_and_a_report(featpipe: Run, own_workspace: Path) -> None:
    done = featpipe("evaluate", "run", "--json")
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    found = json_of(done)
    assert set(EVALUATE_KEYS) <= set(found)
    assert (found["head"], found["dataset"], found["split"]) == ("run", "colours", "test")
    assert found["accuracy"] == 1
    low, high = found["accuracy_ci95"]
    assert low <= found["accuracy"] <= high
    assert [row["class"] for row in found["per_class"]] == ["blue", "red"]
    assert sum(map(sum, found["confusion"])) == found["n"]
    assert found["report"] == "run/report.html"
    assert (own_workspace / "run" / "report.html").is_file()
    written = json.loads((own_workspace / "run" / "metrics.json").read_text())
    assert written["accuracy"] == found["accuracy"]


def test_evaluate_says_it_in_words_too(inside: Run, own_workspace: Path) -> None:
    done = inside("evaluate", "run", "--split", "val")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(
        r"accuracy 100\.00% \(95 %: \S+% to \S+%\) on \d+ pictures of colours/val", lines[0]
    )
    assert lines[-1].startswith("  report: run/report")


def test_predict_gives_a_json_line_for_every_file_also_for_unreadable_ones(
    featpipe: Run, own_workspace: Path
) -> None:
    (own_workspace / "broken.png").write_bytes(b"no")
    (own_workspace / "nowhere.png").symlink_to("gone.png")
    paths = ("photos/red/01.png", "broken.png", "nowhere.png", "photos/blue")
    done = featpipe("predict", "run", *paths, "--json")
    assert done.returncode == 3
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3 + 20
    assert all({"path", "label", "probability", "error"} <= set(line) for line in lines)
    assert (lines[0]["path"], lines[0]["label"], lines[0]["error"]) == (paths[0], "red", None)
    assert 0.5 < lines[0]["probability"] <= 1
    for line, reason in zip(lines[1:3], ("open: not a ", "read: No such file"), strict=True):
        assert line["label"] is line["probability"] is None
        assert line["error"].startswith(reason)
    assert {line["label"] for line in lines[3:]} == {"blue"}
    assert lines[3]["path"] == "photos/blue/00.png"


def test_predict_gives_csv_with_every_probability_where_asked(
    inside: Run, own_workspace: Path
) -> None:
    done = inside("predict", "run", "photos/red/01.png", "photos/blue/01.png", "--probabilities")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = list(csv.reader(io.StringIO(done.stdout)))
    assert header == ["path", "label", "probability", "error", "blue", "red"]
    assert [row[1] for row in rows] == ["red", "blue"]
    for row in rows:
        assert float(row[4]) + float(row[5]) == pytest.approx(1, abs=1e-5)
        assert row[2] == max(row[4:])


STRANGE = [
    b"new\nline.png",
    b"return\rhere.png",
    b'quote".png',
    b"comma,semi;colon.png",
    b"not-utf8-\xff\xfe.png",
    b"bell\x07escape\x1b[31m.png",
    b"  spaces .png",
    "naïve-日本.png".encode(),
    b"=1+1.png",
]


@pytest.fixture
def strange(own_workspace: Path) -> Path:
    """A folder of one red picture under every strange name."""
    picture = (own_workspace / "photos" / "red" / "03.png").read_bytes()
    folder = own_workspace / "strange"
    folder.mkdir()
    for name in STRANGE:
        Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(picture)
    return folder


def test_strange_file_names_survive_csv(strange: Path) -> None:
    done = raw("predict", "run", "strange", cwd=strange.parent)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode("utf-8", "surrogateescape")
    header, *rows = list(csv.reader(io.StringIO(text, newline="")))
    assert header == ["path", "label", "probability", "error"]
    assert {os.fsencode(row[0]) for row in rows} == {b"strange/" + name for name in STRANGE}
    assert [row[1] for row in rows] == ["red"] * len(STRANGE)


def test_csv_of_no_pictures_has_its_header_all_the_same(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "empty").mkdir()
    assert inside("predict", "run", "empty").stdout == "path,label,probability,error\n"


def test_strange_file_names_survive_json(strange: Path) -> None:
    done = raw("predict", "run", "strange", "--json", cwd=strange.parent)
    assert done.returncode == 0
    assert done.stdout.isascii()
    lines = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert {os.fsencode(line["path"]) for line in lines} == {b"strange/" + n for n in STRANGE}


def test_strange_file_names_are_spelled_out_where_they_are_quarantined(strange: Path) -> None:
    for path in strange.iterdir():
        path.write_bytes(b"no picture " + os.fsencode(path.name))
    class_picture(0, 1).save(strange / "fine.png")
    done = raw("extract", "strange", "--name", "s", *TINY_FLAGS, cwd=strange.parent)
    assert done.returncode == 3
    # One line each, and nothing that could steer a terminal.
    assert done.stdout.count(b"  quarantined ") == len(STRANGE)
    assert b"\x1b" not in done.stdout
    assert b"\x07" not in done.stdout
    assert b"quarantined new\\nline.png: open: " in done.stdout


# Streams


@pytest.mark.parametrize("folders", [1, 40])
def test_a_reader_that_leaves_ends_predict_without_a_word(workspace: Path, folders: int) -> None:
    # One folder fits into every buffer, forty do not.
    process = subprocess.Popen(
        [sys.executable, "-m", "featpipe", "predict", "run", *["photos"] * folders],
        cwd=workspace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "", "FEATPIPE_CACHE": ""},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"path,label,probability,error\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    # 0 where all was written before the reader left.
    assert process.wait(60) in (0, 1, 141)


def without_reader(*args: str, cwd: Path) -> tuple[int, bytes]:
    """Exit code and stderr of a command whose stdout nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "featpipe", *args],
        stdout=writing,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "", "FEATPIPE_CACHE": ""},
        timeout=60,
        check=False,
    )
    os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.parametrize("args", [["cache", "list"], ["backbones", "vgg16"], ["weights", "list"]])
def test_a_reader_that_has_left_ends_a_command_without_a_word(
    workspace: Path, args: list[str]
) -> None:
    code, said = without_reader(*args, cwd=workspace)
    assert (code, said) == (1, b"")


def test_a_closed_stdout_is_no_reason_for_a_traceback(workspace: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -m featpipe cache list >&-"],
        stderr=subprocess.PIPE,
        cwd=workspace,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr


def test_quiet_says_nothing_but_the_result(featpipe: Run, own_workspace: Path) -> None:
    class_picture(0, 99).save(own_workspace / "photos" / "red" / "99.png")
    done = featpipe("extract", "photos", "--name", "more", "-q", *TINY_FLAGS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("more: 41 pictures: 1 computed")


def test_verbose_says_why_a_picture_is_quarantined(inside: Run, own_workspace: Path) -> None:
    (own_workspace / "photos" / "red" / "bad.png").write_bytes(b"no")
    done = inside("extract", "photos", "--name", "colours", "-v", *TINY_FLAGS)
    assert done.returncode == 3
    assert "quarantined 'red/bad.png': open: not a " in done.stderr


@pytest.mark.parametrize("env", [{"NO_COLOR": ""}, {"NO_COLOR": "", "FORCE_COLOR": "1"}])
def test_results_are_never_coloured(featpipe: Run, workspace: Path, env: dict[str, str]) -> None:
    done = featpipe("cache", "verify", cwd=workspace, env=env)
    assert done.stdout == f"{files_in(workspace / 'cache')} files checked, 0 damaged\n"
    assert "\x1b" not in done.stderr


# Where the cache is


def test_the_flag_goes_before_the_environment_before_the_default(
    featpipe: Run, tmp_path: Path
) -> None:
    for name in ("flag", "environment", "cache"):
        (tmp_path / name / "datasets").mkdir(parents=True)
        write_atomically(tmp_path / name / "datasets" / f"of-{name}.h5", b"")

    def seen(*args: str, **env: str) -> list[str]:
        return json_of(featpipe("cache", "list", "--json", *args, env=env))["datasets"]

    assert seen() == ["of-cache"]
    assert seen(FEATPIPE_CACHE="environment") == ["of-environment"]
    assert seen("--cache", "flag", FEATPIPE_CACHE="environment") == ["of-flag"]


# The small commands


def test_cache_list_sums_up_what_is_there(inside: Run, workspace: Path) -> None:
    done = inside("cache", "list", cwd=workspace)
    first, second, third = done.stdout.splitlines()
    size = r"[0-9.]+ KiB"
    assert re.fullmatch(
        rf"data set  colours: 40 pictures, 2 classes, 1 feature space, {size}", first
    )
    assert re.fullmatch(
        rf"store     vgg16-block1_pool-[0-9a-f]{{12}}: 40 rows, 1 segment, {size}, 16 px, "
        r"pooling none, 64 x 8 x 8 float16, of colours",
        second,
    )
    assert re.fullmatch(rf"in all    {size}", third)
    found = json_of(inside("cache", "list", "--json", cwd=workspace))
    assert found["datasets"] == ["colours"]
    (store,) = found["stores"]
    assert (store["rows"], store["segments"]) == (40, 1)
    assert store["bytes"] > 40 * 64 * 8 * 8 * 2


def test_cache_info_describes_a_data_set(inside: Run, workspace: Path) -> None:
    found = json_of(inside("cache", "info", "colours", "--json", cwd=workspace))
    assert found["dataset"] == "colours"
    assert found["source"] == str(workspace / "photos")
    assert (found["pictures"], found["quarantined"]) == (40, 0)
    assert found["classes"] == ["blue", "red"]
    assert sum(found["splits"].values()) == 40
    assert [name.rpartition("-")[0] for name in found["spaces"]] == ["vgg16-block1_pool"]
    said = inside("cache", "info", "colours", cwd=workspace).stdout
    assert re.search(r"^pictures +40$", said, re.M)


@pytest.mark.parametrize("flags", [[], ["--quick"]])
def test_cache_verify_of_a_whole_cache_finds_nothing(
    inside: Run, workspace: Path, flags: list[str]
) -> None:
    files = files_in(workspace / "cache")
    assert files >= 4, "a data set, a space.json, a segment and an index"
    done = inside("cache", "verify", *flags, cwd=workspace)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"{files} files checked, 0 damaged\n",
        "",
    )
    found = json_of(inside("cache", "verify", *flags, "--json", cwd=workspace))
    assert found == {"schema": 1, "files": files, "damages": []}


def test_doctor_says_what_is_here(featpipe: Run, tmp_path: Path) -> None:
    found = json_of(featpipe("doctor", "--json"))
    assert found["featpipe"] == __version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    assert found["precision"] in ("fp32", "bf16", "fp16")
    assert found["cache_free_gib"] > 0
    assert found["weights"] == "not here yet: fetched on first use"
    said = featpipe("doctor")
    assert (said.returncode, said.stderr) == (0, "")
    assert re.search(rf"^featpipe +{re.escape(__version__)}$", said.stdout, re.M)
    # Looking does not make a cache.
    assert list(tmp_path.iterdir()) == []


def test_weights_list_says_what_is_here(inside: Run, tmp_path: Path) -> None:
    own = tmp_path / "cache" / "weights" / "vgg16-IMAGENET1K_V1.safetensors"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"")
    rows = {
        (row["backbone"], row["weights"]): row["path"]
        for row in json_of(inside("weights", "list", "--json"))["weights"]
    }
    assert rows[("vgg16", "IMAGENET1K_V1")] == "cache/weights/vgg16-IMAGENET1K_V1.safetensors"
    assert rows[("vgg16", "IMAGENET1K_FEATURES")] is None
    lines = inside("weights", "list").stdout.splitlines()
    assert lines[2].split() == ["vgg16", "IMAGENET1K_V1", str(own.relative_to(tmp_path))]
    assert lines[3].split() == ["vgg16", "IMAGENET1K_FEATURES", "not", "here"]


def test_weights_fetch_checks_what_is_here_already(
    featpipe: Run, tmp_path: Path, shared: Path
) -> None:
    files = sorted((shared / "weights").glob("vgg16*v1*.safetensors"))
    if not files:
        pytest.skip("NO WEIGHTS among the sample data")
    own = tmp_path / "cache" / "weights" / "vgg16-IMAGENET1K_V1.safetensors"
    own.parent.mkdir(parents=True)
    shutil.copyfile(files[0], own)
    found = json_of(featpipe("weights", "fetch", "--json"))
    assert found["path"] == "cache/weights/vgg16-IMAGENET1K_V1.safetensors"
    assert found["sha256_of_tensors"].startswith("59f3df9a05b3")

    # One bit in the middle of the numbers.
    with open(own, "r+b") as file:
        file.seek(own.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    done = featpipe("weights", "fetch")
    assert (done.returncode, done.stdout) == (13, "")
    assert re.fullmatch(
        r"Error: expected weights IMAGENET1K_V1 of digest 59f3df9a05b3… in "
        r"cache/weights/vgg16-IMAGENET1K_V1\.safetensors, found [0-9a-f]{12}…: the file is "
        r"damaged or altered; delete it and run 'featpipe weights fetch'\n",
        done.stderr,
    )
