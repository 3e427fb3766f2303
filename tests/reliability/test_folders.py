"""Promise 10: folders, files and caches as they may be met; each ends as the table says.

Everything here goes through the command line: what counts is the exit code and the one line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from support.command import TINY_FLAGS, Run, json_of
from support.runs import JSON_NAME
from support.samples import class_picture
from support.tally import NewTally, Scale

from featpipe.backbones.catalog import get_backbone
from featpipe.datasets.files import load_dataset
from featpipe.engine.writer import SegmentWriter

PROMISE = "10 Bad input"
EXTRACT = ["extract", "photos", "--name", "x", *TINY_FLAGS]


def refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    """It ended with this exit code, nothing on stdout, and one error that begins so."""
    assert (done.returncode, done.stdout) == (code, ""), (done.stdout, done.stderr)
    last = done.stderr.splitlines()[-1]
    assert last.isprintable()
    assert re.match(f"Error: {message}", last), last
    assert done.stderr.count("Error: ") == 1
    assert "Traceback" not in done.stderr


def pictures(folder: Path, **counts: int) -> Path:
    """So many pictures in each folder, named by number; two underscores part folders."""
    for number, (name, count) in enumerate(counts.items()):
        inner = folder / name.replace("__", "/")
        inner.mkdir(parents=True, exist_ok=True)
        for seed in range(count):
            class_picture(number, 100 * number + seed).save(inner / f"{seed:02d}.png")
    return folder


# What the pictures are, and how they are labelled.


def test_folders_without_a_picture_say_what_is_expected(
    inside: Run, tmp_path: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "folders without a picture")
    photos = tmp_path / "photos"
    for label, names in {
        "empty": [],
        "hidden": [".a.png", ".hidden/b.png"],
        "empty classes": ["cat/", "dog/"],
        "no pictures": ["notes.txt", "cat/list.csv"],
    }.items():
        with t.case(label):
            shutil.rmtree(photos, ignore_errors=True)
            photos.mkdir()
            for name in names:
                (photos / name).parent.mkdir(exist_ok=True)
                if name.endswith("/"):
                    (photos / name).mkdir()
                else:
                    (photos / name).write_bytes(b"")
            done = inside(*EXTRACT)
            refused(done, 1, r"expected pictures in photos, found none \(\d other files\); ")
            assert not (tmp_path / "cache").exists()


def test_labels_that_teach_nothing_are_named(
    inside: Run, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "labels no head can be trained on")
    photos = tmp_path / "photos"
    one = "expected at least two classes in the train split of 'x', found 'a'; "
    few = "expected pictures to train on and to validate with in data set 'x', found too few; "
    none = "expected labelled pictures in data set 'x', found none; put them "
    cases: list[tuple[str, dict[str, int], str | None]] = [
        ("one class", {"a": 6}, one),
        ("a class with one picture", {"a": 12, "b": 1}, None),
        ("a split without labels", {"train__a": 3, "train__b": 3, "val": 2}, few),
        ("some without labels", {"a": 8, "b": 8, ".": 3}, None),
        ("no labels", {".": 3}, none),
        ("train without labels", {"train": 3, "val__a": 2, "val__b": 2}, few),
        ("three pictures", {"a": 2, "b": 1}, None),
    ]
    for label, counts, message in cases[: scale(2, 7)]:
        with t.case(label):
            shutil.rmtree(photos, ignore_errors=True)
            pictures(photos, **counts)
            done = inside(*EXTRACT)
            assert done.returncode == 0, done.stderr
            done = inside("train-head", "x", "--epochs", "2", "--out", "run", "--overwrite")
            if message is not None:
                refused(done, 1, f"({message})")
            elif done.returncode:
                # Chance, by content, decides where a class's one picture goes.
                refused(done, done.returncode, f"({one}|{few}|expected a split 'train' )")
                assert done.returncode in (1, 10)


def test_pictures_that_are_none_end_no_job(inside: Run, tmp_path: Path, tally: NewTally) -> None:
    t = tally(PROMISE, "pictures that cannot be opened")
    photos = pictures(tmp_path / "photos", a=2, b=2)
    (photos / "a" / "zero.png").write_bytes(b"")
    (photos / "a" / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "a" / "loop.png").symlink_to(photos / "a" / "loop.png")
    (photos / "b" / "again").symlink_to(photos)
    os.mkfifo(photos / "a" / "pipe.png")
    (photos / "a" / "null.png").symlink_to("/dev/null")
    (photos / "a" / "endless.png").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.chdir(photos):  # a socket's whole path may be too long for its name
        listener.bind("b/socket.png")
    with t.case("all of them"):
        done = inside(*EXTRACT, "--json")
        assert done.returncode == 3, done.stderr
        why = {b["path"]: b["reason"] for b in json_of(done)["bad"]}
        assert {path: reason for path, reason in why.items() if "zero" not in path} == {
            "a/gone.png": "No such file or directory",
            "a/loop.png": "Too many levels of symbolic links",
            "a/pipe.png": "not a regular file",
            "a/null.png": "not a regular file",
            "a/endless.png": "not a regular file",
            "b/socket.png": "not a regular file",
        }
        assert "a/zero.png" in why
        assert json_of(done)["images"] == 11, "the folder that holds itself was gone round"
    listener.close()
    for path in ("a/pipe.png", "a/null.png", "b/socket.png"):
        with t.case(f"{path} as data"):
            refused(
                inside("extract", photos / path, "--name", "x", *TINY_FLAGS),
                2,
                "expected an image folder or a list ending in ",
            )
    for suffix in ("csv", "jsonl", "toml"):
        with t.case(f"a pipe as .{suffix}"):
            os.mkfifo(tmp_path / f"pipe.{suffix}")
            given = tmp_path / f"pipe.{suffix}"
            command = ["run", given] if suffix == "toml" else ["extract", given, "--name", "x"]
            refused(inside(*command), 74, r"expected to read .*, but: not a regular file")


def test_a_folder_of_unreadable_pictures_is_extracted_and_trains_no_head(
    inside: Run, tmp_path: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "every picture unreadable")
    for label in ("a", "b"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / label / f"{number}.png").write_bytes(b"no" * number)
    with t.case("extract"):
        assert inside(*EXTRACT).returncode == 3
    with t.case("--strict"):
        done = inside(*EXTRACT, "--strict")
        refused(done, 1, r"expected at most 0 % of 6 pictures to be unreadable, found \d so far, ")
    with t.case("train-head"):
        refused(inside("train-head", "x"), 1, "expected labelled pictures in data set 'x', found ")


@pytest.fixture
def large_weights(tmp_path: Path) -> Path:
    """Weights of the first block whose features no float16 can hold."""
    shapes = list(get_backbone("vgg16").tensor_shapes.items())[:4]
    tensors = {name: np.full(shape, 1e5, np.float32) for name, shape in shapes}
    save_file(tensors, tmp_path / "large.safetensors")
    return tmp_path / "large.safetensors"


def test_features_too_large_for_float16_name_the_tap_and_the_way_out(
    inside: Run, tmp_path: Path, large_weights: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "features that overflow, or are no numbers")
    pictures(tmp_path / "photos", a=2, b=2)
    command = [*EXTRACT, "--weights", large_weights]
    with t.case("float16"):
        refused(
            inside(*command),
            1,
            "expected finite float16 features at block1_pool, found infinite ones or NaN; store "
            "them with --dtype float32$",
        )
        assert not [*tmp_path.glob("cache/datasets/*"), *tmp_path.glob("cache/spaces/*/segments/*")]
    with t.case("what it proposes"):
        done = inside(*command, "--dtype", "float32")
        assert done.returncode == 0, done.stderr
    with t.case("no numbers"):
        shapes = list(get_backbone("vgg16").tensor_shapes.items())[:4]
        nan = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes}
        save_file(nan, large_weights)
        refused(
            inside(*command, "--dtype", "float32"),
            1,
            "(expected finite float32 features at block1_pool, found infinite ones or NaN; check "
            "the weights|expected .*finite)",
        )


# What changes while it is read.


@pytest.fixture
def at_first_batch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Do something once, after the first batch: most pictures have not been read then."""

    def arrange(act: Callable[[], object]) -> None:
        poll = SegmentWriter.poll
        waiting = [act]

        def first_act(self: SegmentWriter) -> None:
            if waiting:
                waiting.pop()()
            poll(self)

        monkeypatch.setattr(SegmentWriter, "poll", first_act)

    return arrange


ONE_BY_ONE = ["--batch-size", "1", "--workers", "1"]


def test_what_vanishes_or_changes_meanwhile_ends_no_job_and_is_read_next_time(
    inside: Run,
    tmp_path: Path,
    tally: NewTally,
    scale: Scale,
    at_first_batch: Callable[[Callable[[], object]], None],
) -> None:
    t = tally(PROMISE, "pictures and folders that change during the run")
    photos = tmp_path / "photos"
    last = photos / "b" / "11.png"

    def into_a_folder() -> None:
        last.unlink()
        last.mkdir()

    def into_a_pipe() -> None:
        last.unlink()
        os.mkfifo(last)

    def into_another() -> None:
        class_picture(2, 999).save(last)

    def cut_short() -> None:
        os.truncate(last, 100)

    changes: dict[str, tuple[Callable[[], object], int]] = {
        "all is deleted": (lambda: shutil.rmtree(photos), 3),
        "a folder is renamed": (lambda: (photos / "b").rename(photos / "c"), 3),
        "a picture becomes a pipe": (into_a_pipe, 3),
        "a picture becomes another": (into_another, 0),
        "a folder is deleted": (lambda: shutil.rmtree(photos / "b"), 3),
        "a picture is deleted": (last.unlink, 3),
        "a picture is renamed": (lambda: last.rename(photos / "b" / "99.png"), 3),
        "a picture becomes a folder": (into_a_folder, 3),
        "a picture is cut short": (cut_short, 3),
    }
    for label, (change, code) in list(changes.items())[: scale(2, 9)]:
        with t.case(label):
            shutil.rmtree(photos, ignore_errors=True)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            pictures(photos, a=12, b=12)
            at_first_batch(change)
            done = inside(*EXTRACT, *ONE_BY_ONE, "--json")
            assert done.returncode == code, done.stderr
            found = json_of(done)
            assert found["images"] == 24
            assert found["quarantined"] == len(found["bad"]) > 0 or code == 0
            assert "worker" not in {bad["stage"] for bad in found["bad"]}, "it ended a decoder"
            # Put right, the same command takes every picture in, as it is now.
            shutil.rmtree(photos, ignore_errors=True)
            pictures(photos, a=12, b=12)
            done = inside(*EXTRACT, "--json")
            assert (done.returncode, json_of(done)["quarantined"]) == (0, 0)
            dataset = load_dataset(tmp_path / "cache", "x")
            for path, image_id in zip(dataset.paths, dataset.image_sha256, strict=True):
                assert hashlib.sha256((photos / path).read_bytes()).digest() == image_id.tobytes()


# Caches that cannot be written, and those of another time.


@pytest.fixture
def read_only(own_workspace: Path) -> Iterator[Path]:
    """The workspace with a cache on a file system that takes no write, not even from root."""
    cache = own_workspace / "cache"
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("NO READ-ONLY FILE SYSTEM can be made here: only root may mount one")
    if subprocess.run([mount, "--bind", cache, cache], capture_output=True, check=False).returncode:
        pytest.skip("NO READ-ONLY FILE SYSTEM can be made here: mounting is not allowed")
    try:
        subprocess.run([mount, "-o", "remount,bind,ro", cache], capture_output=True, check=True)
        yield own_workspace
    finally:
        # Lazily, for this process may still have rows of it mapped.
        subprocess.run(["umount", "-l", cache], capture_output=True, check=True)


def test_a_read_only_cache_can_be_read_and_says_that_it_is_read_only(
    inside: Run, read_only: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "commands on a cache that is read-only")
    reading: list[list[str]] = [
        ["cache", "list"],
        ["cache", "info", "colours"],
        ["cache", "verify"],
        ["cache", "repair"],
        ["cache", "gc", "--grace", "0"],
        ["train-head", "colours", "--epochs", "2", "--out", "elsewhere"],
        ["evaluate", "run"],
        ["predict", "run", "photos/red/00.png", "photos/blue/01.png"],
        ["extract", "photos", "--name", "colours", "--dry-run", *TINY_FLAGS],
        ["doctor"],
        ["weights", "list"],
    ]
    for command in reading:
        with t.case(" ".join(command[:2])):
            done = inside(*command)
            assert done.returncode == 0, done.stderr
    with t.case("cache remove"):
        reason = r"expected to delete .*colours\.h5, but: Read-only file system; make its folder w"
        refused(inside("cache", "remove", "colours", "--yes"), 74, reason)
    class_picture(2, 77).save(read_only / "new.png")
    writing = [
        ["extract", "photos", "--name", "colours", *TINY_FLAGS],
        ["extract", "photos", "--name", "other", *TINY_FLAGS],
        ["predict", "run", "new.png"],
        ["train-head", "colours", "--epochs", "2", "--out", "cache/run"],
    ]
    for command in writing:
        with t.case(f"{' '.join(command)} writes"):
            refused(
                inside(*command),
                74,
                r"expected to write [\d.]+ [KM]iB to .*, but: Read-only file system; make the "
                "folder writable, or name another one with --cache or --out$",
            )


def _newer_space(root: Path) -> None:
    (path,) = root.glob("cache/spaces/*/space.json")
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def _newer_head(root: Path) -> None:
    path = root / "run" / JSON_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def _newer_h5(pattern: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (path,) = root.glob(pattern)
        path.chmod(0o644)
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 99

    return change


NEWER: dict[str, tuple[Callable[[Path], None], list[list[str]]]] = {
    "space.json": (_newer_space, [["cache", "list"]]),
    "segment": (
        _newer_h5("cache/spaces/*/segments/*.h5"),
        [["train-head", "colours", "--epochs", "2", "--out", "new"], ["evaluate", "run"]],
    ),
    "data set": (
        _newer_h5("cache/datasets/colours.h5"),
        [["cache", "info", "colours"], ["train-head", "colours"], [*EXTRACT[:3], "colours"]],
    ),
    "head": (_newer_head, [["evaluate", "run"], ["predict", "run", "photos/red/00.png"]]),
}


@pytest.mark.parametrize("kind", NEWER)
def test_what_a_newer_featpipe_wrote_is_refused_and_left_alone(
    kind: str, inside: Run, own_workspace: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "files of a newer format")
    change, commands = NEWER[kind]
    change(own_workspace)
    for path in own_workspace.glob("cache/spaces/*/index.npz"):
        path.unlink()  # it is derived, and would hide a segment
    for command in commands:
        with t.case(f"{kind}: {' '.join(command[:2])}"):
            flags = TINY_FLAGS if command[0] == "extract" else []
            before = {p: p.read_bytes() for p in own_workspace.glob("cache/**/*") if p.is_file()}
            done = inside(*command, *flags)
            assert (done.returncode, done.stdout) == (13, ""), (done.stdout, done.stderr)
            assert re.search(r"99; this featpipe reads [123]\b", done.stderr)
            assert all(path.read_bytes() == was for path, was in before.items())


# Names, and folders inside one another.


def test_a_data_set_name_is_a_plain_word_or_is_refused(
    inside: Run, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "names of data sets")
    pictures(tmp_path / "photos", a=1)
    odd = [
        "",
        ".",
        "..",
        "a/b",
        "/x",
        "a b",
        "ä",
        "a\nb",
        "\x1b[31m",
        "-x",
        "a" * 101,
        ".x",
        "\udcff",
    ]
    for name in ["x.shard-1-of-2", "a:b", *odd[: scale(4, 99)]]:
        for command in (["extract", "photos", f"--name={name}"], ["cache", "info", "--", name]):
            if name.startswith("x.shard") and command[0] == "cache":
                continue
            with t.case(f"{command[0]} {name!a}"):
                refused(inside(*command), 2, "expected a data set name ")
    assert not (tmp_path / "cache").exists()
    for name in ["a" * 100, "a..b", "0", "a.h5", "CON"][: scale(1, 5)]:
        with t.case(f"{name!r} is one"):
            done = inside("extract", "photos", f"--name={name}", "--dry-run", *TINY_FLAGS)
            assert done.returncode == 0, done.stderr


def test_cache_and_runs_inside_the_pictures_are_never_taken_for_pictures(
    inside: Run, tmp_path: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "folders inside one another")
    photos = pictures(tmp_path / "photos", a=6, b=6)
    inner = ["--cache", "photos/cache"]
    for number in (1, 2):
        with t.case(f"a cache inside the pictures, run {number}"):
            done = inside(*EXTRACT, *inner, "--json")
            assert done.returncode == 0, done.stderr
            assert (json_of(done)["images"], json_of(done)["classes"]) == (12, ["a", "b"])
    with t.case("a run inside the pictures"):
        command = ["train-head", "x", "--epochs", "2", "--out", "photos/a/run", *inner]
        assert inside(*command).returncode == 0
        assert inside(*command, "--overwrite").returncode == 0
        assert inside("evaluate", "photos/a/run", *inner).returncode in (0, 10)
        done = inside(*EXTRACT, *inner, "--json")
        assert (done.returncode, json_of(done)["images"]) == (0, 12)
    for data in ("photos/cache", "photos/cache/spaces", "photos/cache/datasets"):
        with t.case(f"{data} as data"):
            done = inside("extract", data, "--name", "y", *TINY_FLAGS, *inner)
            refused(done, 1, f"expected pictures in {data}, found none ")
    with t.case("it is whole all the same"):
        assert inside("cache", "verify", *inner).returncode == 0
    assert stat.S_ISDIR(photos.stat().st_mode)


# Memory.

PEAK = """
import sys
from featpipe.cli import main
try:
    main()
finally:
    lines = open("/proc/self/status").read().splitlines()
    print(next(l for l in lines if l.startswith("VmHWM")), file=sys.stderr)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "memory of the job by the number of pictures")
    few, many = scale(300, 1000), scale(1000, 10_000)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    flags = ["--weights", "random:0", "--tap", "block1_pool", "--pool", "avg", "--size", "2"]
    flags += ["--precision", "fp32", "--device", "cpu", "--resize", "squash", "--workers", "1"]
    peaks: list[int] = []
    for start, count in ((0, few), (few, many)):
        for number in range(start, count):
            pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:05d}.bmp")
        command = ["extract", "photos", "--name", "x", *flags, "--json", "--quiet"]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *command, "--cache", f"cache{count}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        assert json_of(done)["computed"] == count
        peaks.append(int(re.findall(r"VmHWM:\s+(\d+) kB", done.stderr)[0]))
    per_thousand = (peaks[1] - peaks[0]) / (many - few) * 1000 / 1024
    with t.case(f"{few} and {many} pictures: {per_thousand:.1f} MiB more a thousand"):
        # Path, digest and one row of 64 numbers are under 1 KiB each; Python doubles that.
        assert per_thousand < 8, peaks
