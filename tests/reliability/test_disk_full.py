"""A disk that is full or fails: exit code 74, one line that says so, and nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from support.command import TINY_FLAGS, Run
from support.crash import (
    assert_collected,
    assert_nothing_named_is_lost,
    assert_space_is_there_or_not_listed,
    cache_with_garbage,
    collect,
    remove_again,
    remove_space,
    undisturbed,
)
from support.crash import extract as fill
from support.faulty_disk import FaultyDisk, tree_of
from support.samples import class_picture
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base.disk import use_disk
from featpipe.base.errors import StorageError
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.engine import writer
from featpipe.store.lease import LOCK_NAME
from featpipe.store.verification import Damage, verify

PROMISE = "3 Disk full and write errors"
DERIVED = "index.npz"
"""Made again whenever it is missing: what cannot be written of it is not told."""

PIXELS_BYTES = 2 * 16 * 16 * 3
"""Shared memory of one decoding worker: it counts as a file."""

NEAR = 64
"""Sizes of the same files may differ by this from run to run: times and paths are in them."""


def names_a_file(said: str, reason: str) -> bool:
    """Whether an error names what was to be written and how much that is."""
    return (
        re.fullmatch(rf"(Error: )?expected to write [\d.]+ [KM]iB to \S+, but: {reason}; .+", said)
        is not None
    )


def stored_rows(cache: Path) -> dict[bytes, bytes]:
    """Every row of every segment by image id, read without featpipe."""
    found: dict[bytes, bytes] = {}
    for path in cache.glob("spaces/*/segments/[0-9a-f]*.h5"):
        with h5py.File(path) as file:
            ids, rows = file["image_sha256"][:], file["features"][:]
        for image_id, row in zip(ids, rows, strict=True):
            assert found.setdefault(image_id.tobytes(), row.tobytes()) == row.tobytes()
    return found


def assert_nothing_half(folder: Path) -> None:
    """No temporary file, and no damage; a store that was about to be made is neither."""
    assert [*folder.rglob(".tmp-*")] == []
    if (folder / "cache" / "spaces").is_dir():
        assert [d.problem for d in verify(folder / "cache")[1] if not _is_empty_store(d)] == []


def _is_empty_store(found: Damage) -> bool:
    """Whether what is called damaged is a folder made for a store whose first file failed."""
    return found.path.name == "space.json" and [*found.path.parent.rglob("*.*")] == []


# Every size limit: writing past it fails as on a full disk.


@dataclass(frozen=True)
class Work:
    """A command, what it needs, and what it gives, whenever and in how many runs it was made."""

    words: tuple[str, ...]
    outcome: Callable[[Path], object]
    prepare: Callable[[Path], None] = lambda folder: None
    check: Callable[[Path], None] = assert_nothing_half


def extracted(folder: Path) -> object:
    return stored_rows(folder / "cache"), load_dataset(folder / "cache", "x").digest()


def trained(folder: Path) -> object:
    return json.loads((folder / "new" / "head.json").read_text())["tensors_sha256"]


def evaluated(folder: Path) -> object:
    found = json.loads((folder / "run" / "metrics.json").read_text())
    assert "</html>" in (folder / "run" / "report.html").read_text()
    return {**found, "seconds": 0}


def second_head(folder: Path) -> None:
    """Another head of the same data set, and what the earlier attempts of a command left."""
    shutil.copytree(folder / "run", folder / "other", dirs_exist_ok=True)
    (folder / "fixes.csv").write_text("path,label\nred/00.png,blue\n")


def compared(folder: Path) -> object:
    found = json.loads((folder / "compared" / "comparison.json").read_text())
    assert "</html>" in (folder / "compared" / "comparison.html").read_text()
    return {**found, "seconds": 0}


def audited(folder: Path) -> object:
    found = json.loads((folder / "audited" / "audit.json").read_text())
    assert "</html>" in (folder / "audited" / "audit.html").read_text()
    return {**found, "seconds": 0}, (folder / "audited" / "fixes.csv").read_text()


def relabelled(folder: Path) -> object:
    named = load_dataset(folder / "cache", "colours-relabelled")
    return (folder / "colours-relabelled.csv").read_text(), named.label.tolist()


def exported_rows(folder: Path) -> object:
    return (folder / "there" / "c.npz").read_bytes()


def exported_head(folder: Path) -> object:
    digest = hashlib.sha256((folder / "there" / "model.pt2").read_bytes()).hexdigest()
    assert digest in (folder / "there" / "README.md").read_text("utf-8")
    return True


def predicted(folder: Path) -> object:
    return (folder / "stdout").read_text()


def repaired(folder: Path) -> object:
    assert_nothing_half(folder)
    return stored_rows(folder / "cache")


def damage(folder: Path) -> None:
    (path,) = folder.glob("cache/spaces/*/segments/*.h5")
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def assert_no_worse(folder: Path) -> None:
    """A repair that failed has moved nothing away; one that succeeded has lost the bad row only."""
    assert [*folder.rglob(".tmp-*")] == []
    damages = verify(folder / "cache")[1]
    assert len(damages) <= 1
    assert len(stored_rows(folder / "cache")) == 39 + len(damages)


def make_garbage(folder: Path) -> None:
    """Let the data set name every other picture alone."""
    whole = load_dataset(folder / "cache", "colours")
    columns = ("label", "split", "image_sha256", "status", "stat")
    half = {name: getattr(whole, name)[::2] for name in columns}
    save_dataset(folder / "cache", dataclasses.replace(whole, paths=whole.paths[::2], **half))


def assert_named_rows(folder: Path) -> None:
    assert_nothing_half(folder)
    named = load_dataset(folder / "cache", "colours").image_sha256
    assert {row.tobytes() for row in named} <= stored_rows(folder / "cache").keys()


def assert_listed_or_not(folder: Path) -> None:
    assert_nothing_half(folder)
    assert len(stored_rows(folder / "cache")) == 40


def removed(folder: Path) -> object:
    assert_nothing_half(folder)
    return stored_rows(folder / "cache"), load_dataset(folder / "cache", "colours").spaces


WORKS = {
    "extract": Work(
        ("extract", "photos", "--name", "x", *TINY_FLAGS),
        extracted,
        prepare=lambda folder: shutil.rmtree(folder / "cache"),
    ),
    "train-head": Work(
        tuple("train-head colours --head logistic --C 1 --out new --overwrite".split()), trained
    ),
    "evaluate": Work(("evaluate", "run"), evaluated),
    "compare": Work(
        ("compare", "run", "other", "--out", "compared"), compared, prepare=second_head
    ),
    "audit": Work(("audit", "colours", "--out", "audited", "--overwrite"), audited),
    "relabel": Work(
        ("relabel", "colours", "fixes.csv", "--overwrite"), relabelled, prepare=second_head
    ),
    "predict": Work(("predict", "run", "photos"), predicted),
    "export of rows": Work(
        tuple("export colours --format npz --out there/c.npz --overwrite".split()), exported_rows
    ),
    "export of a head": Work(
        tuple("export run --format torch --out there/model.pt2 --overwrite".split()), exported_head
    ),
    "cache repair": Work(("cache", "repair"), repaired, damage, assert_no_worse),
    "cache gc": Work(
        ("cache", "gc", "--grace", "0"), repaired, make_garbage, check=assert_named_rows
    ),
    "cache remove": Work(
        ("cache", "remove", "SPACE", "--yes"), removed, check=assert_listed_or_not
    ),
}


def as_process(words: tuple[str, ...], folder: Path, limit: int | None = None) -> tuple[int, str]:
    """Exit code and stderr of a command; its stdout goes into a file."""

    def small_files_only() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    with open(folder / "stdout", "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "featpipe", *words, "-q"],
            cwd=folder,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FEATPIPE_CACHE": "", "PYTHONUNBUFFERED": ""},
            preexec_fn=small_files_only,
            timeout=240,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.fixture
def go(inside: Run) -> Callable[..., tuple[int, str]]:
    """As ``as_process``, in this process: fast, but stdout is no file."""

    def run(words: tuple[str, ...], folder: Path, limit: int | None = None) -> tuple[int, str]:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            done = inside(*words, "-q", cwd=folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        (folder / "stdout").write_text(done.stdout)
        return done.returncode, done.stderr

    return run


def files_of(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_size, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("kind", WORKS)
def test_every_limit_of_file_size_ends_with_74_or_is_large_enough(
    kind: str, workspace: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    full = bool(scale(0, 1))
    work = WORKS[kind]
    (space,) = (workspace / "cache" / "spaces").iterdir()
    words = tuple(word.replace("SPACE", space.name) for word in work.words)
    work = dataclasses.replace(work, words=words)
    t = tally(PROMISE, f"limits of file size: {kind}")
    # What goes to stdout must be a file, and memory that is refused ends the process.
    run = as_process if full or kind == "predict" else go

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(workspace, folder)
        work.prepare(folder)
        return folder

    undisturbed = fresh("undisturbed")
    before = files_of(undisturbed)
    code, said = run(work.words, undisturbed)
    assert (code, said) == (0, "")
    expected = work.outcome(undisturbed)
    new = {path for path, seen in files_of(undisturbed).items() if before.get(path) != seen}
    # Set aside under another name, but not written.
    new = {path for path in new if "aside" not in path.parts and path.stat().st_size}
    if run is go:
        new.discard(undisturbed / "stdout")
    sizes = {path.stat().st_size for path in new if path.name != DERIVED}
    if kind in ("extract", "predict"):
        sizes |= {PIXELS_BYTES}
    largest = max(sizes, default=0)
    limits = {round(10 ** (k * 6.5 / 23)) for k in range(24)} | {largest + NEAR, 2**30}
    limits |= {size + change for size in sizes for change in (-NEAR, -1, 0, 1)}
    chosen = sorted(limits)
    if not full:
        # In this process too little memory for the workers cannot end as it does for users.
        chosen = [limit for limit in chosen if run is as_process or limit > PIXELS_BYTES]
        chosen = random.sample([limit for limit in chosen if limit < largest], 1)
    for limit in chosen:
        with t.case(f"limit of {limit} bytes"):
            folder = fresh(f"limit-{limit}")
            code, said = run(work.words, folder, limit)
            _check_end(kind, code, said, limit, largest)
            work.check(folder)
            code, said = go(work.words, folder) if kind != "predict" else run(work.words, folder)
            assert (code, said) == (0, ""), "going on without the limit"
            assert work.outcome(folder) == expected
            assert [*folder.rglob(".tmp-*")] == []
            shutil.rmtree(folder)


def _check_end(kind: str, code: int, said: str, limit: int, largest: int) -> None:
    if limit < NEAR:
        # A library tells that it cannot make a semaphore, a file of 32 bytes.
        said = "".join(line for line in said.splitlines(True) if line.startswith("Error:"))
    if code == 0:
        assert limit >= largest - NEAR, "it says it is done, but that cannot be"
        assert said == ""
        return
    assert code == 74, f"exit code {code}: {said}"
    assert limit < largest + NEAR, f"the limit is large enough: {said}"
    assert said.count("\n") == 1, said
    # Memory shared with a worker and what stdout goes to have no name that we know.
    nameless = "Error: expected reading and writing to work, but: [Errno 27] File too large; "
    is_nameless = kind == "predict" or (kind == "extract" and limit < PIXELS_BYTES)
    said_so = said.startswith(nameless) or "KiB of shared memory for decoding, but: File" in said
    assert names_a_file(said.rstrip("\n"), "File too large") or (is_nameless and said_so), said


# Every call to the disk, failing.


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Six pictures."""
    for label in (0, 1):
        (tmp_path / "few" / str(label)).mkdir(parents=True)
        for seed in range(3):
            class_picture(label, seed).save(tmp_path / "few" / str(label) / f"{seed}.png")
    return tmp_path / "few"


OPTIONS: dict[str, Any] = {
    "weights": "random:0",
    "tap": "block1_pool",
    "pool": "avg",
    "size": 16,
    "precision": "fp32",
    "device": "cpu",
    "batch_size": 3,
    "workers": 1,
}
REFUSALS = (errno.ENOSPC, errno.EIO, errno.EROFS)


@pytest.mark.parametrize("start", ["a new cache", "a cache with rows"])
def test_every_call_of_an_extraction_that_fails_is_told_and_costs_nothing(
    start: str,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: NewTally,
    scale: Scale,
) -> None:
    # Every batch is a segment.
    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)
    t = tally(PROMISE, f"each call to the disk failing, into {start}")
    (tmp_path / "start").mkdir()
    if start == "a cache with rows":
        api.extract(few / "0", name="x", cache=tmp_path / "start" / "cache", **OPTIONS)

    def extract(cache: Path) -> None:
        api.extract(few, name="x", cache=cache, **OPTIONS)

    whole = FaultyDisk()
    shutil.copytree(tmp_path / "start", tmp_path / "whole")
    with use_disk(whole):
        extract(tmp_path / "whole" / "cache")
    expected = extracted(tmp_path / "whole")
    assert {"open", "lock", "write", "fsync", "rename", "close", "fsync_folder"} <= {*whole.calls}
    files = _files_of_calls(whole)
    assert (DERIVED in files) == (start == "a cache with rows")
    step = scale(len(whole.calls) // 2, 1)
    for number in range(random.randrange(step), len(whole.calls), step):
        for code in REFUSALS if step == 1 else (random.choice(REFUSALS),):
            call = whole.calls[number]
            reason = os.strerror(code)
            with t.case(f"{call} number {number}: {reason}"):
                folder = tmp_path / f"{number}-{code}"
                shutil.copytree(tmp_path / "start", folder)
                disk = FaultyDisk(fail_at=number, fail_with=OSError(code, reason))
                error: StorageError | None = None
                try:
                    with use_disk(disk):
                        extract(folder / "cache")
                except StorageError as caught:
                    error = caught
                assert len(disk.calls) > number, "it never came to that call"
                if error is None:
                    # A file system may have no locks, and the index can be made again. Who may
                    # not make a lock file may still read what is there.
                    is_lock = call in ("lock", "share_lock")
                    is_lock |= files[number] == LOCK_NAME and code == errno.EROFS
                    # Nor its folder: that comes before any file is opened.
                    is_lock |= "open" not in whole.calls[:number] and code == errno.EROFS
                    assert is_lock or files[number] == DERIVED, "nothing was told"
                else:
                    assert error.exit_code == 74
                    assert "\n" not in str(error)
                    assert names_a_file(str(error), reason), str(error)
                    assert str(folder / "cache") in str(error)
                assert_nothing_half(folder)
                extract(folder / "cache")
                assert_nothing_half(folder)
                assert extracted(folder) == expected
                shutil.rmtree(folder)


def _files_of_calls(disk: FaultyDisk) -> list[str]:
    """The name of the file each call was made for; of the one before, where a folder is made."""
    calls = [*zip(disk.calls, disk.arguments, strict=True)]
    names = iter([arguments[1].name for call, arguments in calls if call == "rename"])
    name = "a folder"
    found = []
    for call, arguments in calls:
        if call == "open":
            name = LOCK_NAME if arguments[0].name == LOCK_NAME else next(names)
        found.append(name if call != "mkdir" else "a folder")
    return found


@pytest.mark.parametrize("kind", ["cache gc", "cache remove"])
def test_every_call_that_fails_while_rows_are_taken_away_is_told_and_costs_nothing(
    kind: str, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    is_gc = kind == "cache gc"
    start = tmp_path / "start"
    cache_with_garbage(start) if is_gc else undisturbed(lambda: fill(start, 4))
    do = collect if is_gc else remove_space
    whole = FaultyDisk(syncs=False)
    shutil.copytree(start, tmp_path / "whole")
    with use_disk(whole):
        do(tmp_path / "whole")
    files = _files_of_calls(whole)
    t = tally(PROMISE, f"each call to the disk failing: {kind}")
    step = scale(len(whole.calls) // 4, 1)
    for number in range(random.randrange(step), len(whole.calls), step):
        for code in REFUSALS if step == 1 else (random.choice(REFUSALS),):
            call, reason = whole.calls[number], os.strerror(code)
            cache = tmp_path / f"{number}-{code}"
            shutil.copytree(start, cache)
            with t.case(f"{call} number {number}: {reason}"):
                disk = FaultyDisk(fail_at=number, fail_with=OSError(code, reason), syncs=False)
                with use_disk(disk):
                    try:
                        do(cache)
                    except StorageError as error:
                        assert reason in str(error) and "\n" not in str(error)
                        assert str(cache) in str(error)
                    else:
                        # The index can be made again, and a file system may have no locks.
                        assert call == "lock" or files[number] == DERIVED, "nothing was told"
                if is_gc:
                    assert_nothing_named_is_lost(cache)
                    undisturbed(lambda cache=cache: collect(cache))
                    assert_collected(cache)
                else:
                    assert_space_is_there_or_not_listed(cache)
                    remove_again(cache)
                    assert tree_of(cache) == tree_of(tmp_path / "whole")
            shutil.rmtree(cache)


# A file system that is really full.


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """``mounted("size=64k")``: an empty file system of that size; again: it has another one."""
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(options: str) -> Path:
        again = ["-o", "remount"] if place.is_mount() else []
        words = ["mount", "-t", "tmpfs", *again, "-o", options, "tmpfs", str(place)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"NO FULL DISK: mounting is not permitted here ({done.stderr.strip()})")
        return place

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("NO FULL DISK: only root may mount a small file system to fill")
    yield mount
    while place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_file_system_ends_with_74_and_room_lets_it_go_on(
    mounted: Any, few: Path, tmp_path: Path, go: Any, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "a file system with so much room, or for so many files")
    flags = [word for k, v in OPTIONS.items() for word in (f"--{k.replace('_', '-')}", str(v))]
    words = ("extract", str(few), "--name", "x", *flags)
    (tmp_path / "roomy").mkdir()
    assert go(words, tmp_path / "roomy") == (0, "")
    expected = extracted(tmp_path / "roomy")
    run = as_process if scale(0, 1) else go
    rooms = [f"size={4 * k}k" for k in range(1, 16)] + [f"nr_inodes={k}" for k in range(2, 16)]
    done = 0
    for room in random.sample(rooms, scale(2, len(rooms))):
        with t.case(room):
            folder = mounted(room)
            # Nothing but the cache takes room there.
            outside = tmp_path / "outside"
            outside.mkdir(exist_ok=True)
            here = (*words, "--cache", str(folder / "cache"))
            try:
                code, said = run(here, outside)
                done += code == 0
                if code != 0:
                    assert code == 74, f"exit code {code}: {said}"
                    assert said.count("\n") == 1, said
                    assert names_a_file(said.rstrip("\n"), "No space left on device"), said
                assert_nothing_half(folder)
                mounted("size=4m,nr_inodes=1000")
                assert go(here, outside) == (0, "")
                assert_nothing_half(folder)
                assert extracted(folder) == expected
            finally:
                subprocess.run(["umount", str(folder)], check=True)
    assert not scale(0, 1) or 0 < done < len(rooms), "no room was too small, or none sufficed"
