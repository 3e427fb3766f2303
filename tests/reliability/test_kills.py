"""Killed at any instant, and ended by a signal at any instant: what was finished is there."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from support.command import Run
from support.runs import load_head
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset
from featpipe.store.feature_store import FeatureStore
from featpipe.store.verification import verify

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="what a process does is read from /proc"
)

OPTIONS: dict[str, Any] = {
    "weights": "random:0",
    "tap": "block1_pool",
    "pool": "avg",
    "size": 16,
    "precision": "fp32",
    "device": "cpu",
    "batch_size": 4,
    "workers": 1,
}
FLAGS = [word for k, v in OPTIONS.items() for word in (f"--{k.replace('_', '-')}", str(v))]

# Every batch is a segment at once, and a disk that dawdles before each call and takes a third of
# what it is given: kills find files in every state.
DAWDLING = """
import time
from featpipe.base import disk
from featpipe.cli import main
from featpipe.engine import writer

writer.COMMIT_BYTES = 1

class Dawdling(disk.Disk):
    def __getattribute__(self, name):
        time.sleep(0.002)
        return super().__getattribute__(name)

    def write(self, fd, data):
        return super().write(fd, data[: 1 + len(data) // 3])

with disk.use_disk(Dawdling()):
    main()
"""
# Notes the id of each row that is finished, and takes some time for each batch.
NOTING = """
import time
from featpipe.cli import main
from featpipe.engine.writer import SegmentWriter

add, poll = SegmentWriter.add, SegmentWriter.poll
notes = open("finished.txt", "a", buffering=1)

def noting(self, store, image_id, row):
    add(self, store, image_id, row)
    notes.write(image_id.hex() + "\\n")

def slowly(self):
    time.sleep(0.02)
    poll(self)

SegmentWriter.add, SegmentWriter.poll = noting, slowly
main()
"""


def paint(folder: Path, numbers: range) -> None:
    """Small pictures of two classes; equal numbers, equal pictures."""
    for number in numbers:
        place = folder / "ab"[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 128, (20, 20, 3), np.uint8)
        pixels[..., number % 2] += 100
        Image.fromarray(pixels).save(place / f"{number:05d}.bmp")


class Job:
    """The command line in a process group of its own."""

    def __init__(self, folder: Path, starter: str, command: Sequence[str]) -> None:
        self.command = command
        env = {**os.environ, "FEATPIPE_CACHE": "", "PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", starter, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
        )
        self.started = time.monotonic()

    def is_running(self) -> bool:
        return self.process.poll() is None

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def catches(self, number: signal.Signals) -> bool:
        """Whether the process has a handler for a signal now."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
        return bool(int(mask, 16) >> (number - 1) & 1)

    def end(self, seconds: float = 60) -> tuple[int, str, str]:
        """Exit code, stdout and stderr; nobody of its group lives on."""
        try:
            stdout, stderr = self.process.communicate(timeout=seconds)
            deadline = time.monotonic() + 10
            while self.someone_lives():
                assert time.monotonic() < deadline, "a process of its group lives on"
                time.sleep(0.01)
        finally:
            self.send(signal.SIGKILL)
            self.process.communicate()
        return self.process.returncode, stdout, stderr

    def someone_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True


def stored_rows(cache: Path) -> dict[tuple[str, bytes], bytes]:
    """Every row of every segment by its store and image id, read without featpipe."""
    found: dict[tuple[str, bytes], bytes] = {}
    for path in cache.glob("spaces/*/segments/[0-9a-f]*.h5"):
        with h5py.File(path) as file:
            ids, rows = file["image_sha256"][:], file["features"][:]
        for image_id, row in zip(ids, rows, strict=True):
            key = path.parents[1].name, image_id.tobytes()
            kept = found.setdefault(key, row.tobytes())
            assert kept == row.tobytes(), f"two different rows of {image_id.tobytes().hex()}"
    return found


def temporary_files(folder: Path) -> list[Path]:
    # An old head's tensors are kept beside a new one until the next is saved: they are no waste
    # where saving was cut short.
    return [*folder.rglob(".tmp-*")]


def assert_promised_rows_are_there(cache: Path, name: str) -> None:
    """A data set that can be read promises rows: all of them are in the store."""
    if (cache / "datasets" / f"{name}.h5").exists():
        dataset = load_dataset(cache, name)
        for text in dataset.spaces:
            space = FeatureSpace.from_json(text)
            ids = dataset.image_sha256[dataset.covered_by(space)]
            assert FeatureStore(cache, space).contains(ids).all()


# 1 Killed at any instant


class Soak:
    """One cache and one run folder that jobs are killed over, again and again."""

    # Views of all: which pictures are in train changes while the folder grows.
    VIEWS = ("--views", "2", "--views-of", "all")
    EXTRACT = ("extract", "pictures", "--name", "soak", *FLAGS, *VIEWS, "-q")

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.cache, self.run = folder, folder / "cache", folder / "run"
        self.rng = rng
        self.pictures = 0
        self.seed = 0
        self.seeds = {0}
        self.longest = {"extract": 2.5, "train-head": 2.5}
        self.grow(8)

    def grow(self, count: int) -> None:
        paint(self.folder / "pictures", range(self.pictures, self.pictures + count))
        self.pictures += count

    def train(self) -> tuple[str, ...]:
        """Replace the head by one of another seed."""
        self.seed += 1
        self.seeds.add(self.seed)
        words = f"train-head soak --head logistic --C 1 --out run --overwrite --seed {self.seed} -q"
        return tuple(words.split())

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever a file is made, named or deleted where jobs write."""
        folders = [self.cache / "datasets", self.run, *self.cache.glob("spaces/*")]
        folders += [folder / "segments" for folder in folders[2:]]
        return tuple(folder.stat().st_mtime_ns for folder in folders if folder.is_dir())

    def kill_some(self, together: int) -> list[str]:
        """Start jobs, kill each at an instant of its own; what was killed, for people."""
        commands = [self.EXTRACT] * together
        if (self.cache / "datasets" / "soak.h5").exists() and self.rng.random() < 0.4:
            commands[0] = self.train()
        jobs = [Job(self.folder, DAWDLING, command) for command in commands]
        aims = [self._aim(job) for job in jobs]
        killed = []
        while jobs:
            for job, is_due in [*zip(jobs, aims, strict=True)]:
                was_running = job.is_running()
                if was_running and not is_due():
                    continue
                job.send(signal.SIGKILL)
                code, _, said = job.end()
                lived = time.monotonic() - job.started
                kind = job.command[0]
                if code == -signal.SIGKILL:
                    killed.append(f"{kind} after {lived:.2f} s")
                else:
                    assert code == 0, f"{kind} ended by itself with {code}: {said}"
                    self.longest[kind] = 0.7 * self.longest[kind] + 0.3 * lived
                place = jobs.index(job)
                del jobs[place], aims[place]
            time.sleep(0.001)
        return killed

    def _aim(self, job: Job) -> Callable[[], bool]:
        """At a time of chance, or shortly after a chosen change in the folders."""
        if self.rng.random() < 0.4:
            due = job.started + self.rng.uniform(0, self.longest[job.command[0]])
            return lambda: time.monotonic() >= due
        changes = self.rng.randint(1, 6)
        delay = self.rng.choice((0.0, self.rng.uniform(0, 0.03)))
        last, due_at = self.stamp(), float("inf")

        def is_due() -> bool:
            nonlocal changes, last, due_at
            now = self.stamp()
            changes -= now != last
            last = now
            if changes <= 0:
                due_at = min(due_at, time.monotonic() + delay)
            return time.monotonic() >= due_at

        return is_due

    def check(self) -> None:
        """What must hold after every kill."""
        assert_promised_rows_are_there(self.cache, "soak")
        if (self.run / "head.json").exists():
            # The head from before, or one of those just trained; never none and never half of one.
            found = load_head(self.run).info["seed"]
            assert found in self.seeds - {0}, f"the head of seed {found} is back"
            self.seeds = {found}
        else:
            assert 0 in self.seeds, "there was a head, and now there is none"


def test_kills_at_any_instant_cost_nothing_that_was_finished(
    tmp_path: Path, featpipe: Run, tally: NewTally, scale: Scale
) -> None:
    rng = random.Random(os.urandom(8))
    t = tally("1 Killed at any instant", "command line killed, its cache used on")
    soak = Soak(tmp_path, rng)
    wanted, kills, verified = scale(2, 320), 0, 0
    for _ in range(3 * wanted):
        killed: list[str] = []
        with t.case(f"after {kills} kills"):
            killed = soak.kill_some(2)
            soak.check()
        # One case is one kill; a job that was done before it was killed is none.
        t.cases += max(len(killed), 1) - 1
        kills += len(killed)
        soak.grow(rng.randint(1, 6))
        # Without a row there is not yet a store.
        if kills >= verified + 10 and [*soak.cache.glob("spaces/*/segments/*.h5")]:
            verified = kills
            with t.case(f"cache verify after {kills} kills"):
                looked = featpipe("cache", "verify")
                assert looked.returncode == 0, looked.stdout + looked.stderr
        if kills >= wanted:
            break
    assert kills >= wanted, f"only {kills} of {wanted} jobs could be killed"
    with t.case("run to the end after all kills"):
        _finish_and_compare(soak, featpipe)


def _finish_and_compare(soak: Soak, featpipe: Run) -> None:
    last = featpipe(*soak.EXTRACT)
    assert last.returncode == 0, last.stderr
    trained = featpipe(*soak.train())
    assert trained.returncode == 0, trained.stderr
    assert load_head(soak.run).info["seed"] == soak.seed
    looked = featpipe("cache", "verify")
    assert looked.returncode == 0, looked.stdout
    assert temporary_files(soak.folder) == []

    # The same pictures once more, elsewhere and undisturbed.
    alone = soak.folder / "alone"
    views = {"views": 2, "views_of": "all"}
    api.extract(soak.folder / "pictures", name="soak", cache=alone, **OPTIONS, **views)
    expected = stored_rows(alone)
    assert len(expected) == 3 * soak.pictures
    assert stored_rows(soak.cache) == expected
    assert load_dataset(soak.cache, "soak").digest() == load_dataset(alone, "soak").digest()


# 9 Signals


@pytest.fixture
def place(workspace: Path, tmp_path: Path) -> Path:
    """A folder with pictures, a cache and a head to use, change and evaluate."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    return tmp_path


COMMANDS = {
    "extract": ("extract", "pictures", "--name", "noted", *FLAGS),
    "train-head": tuple("train-head colours --out new --overwrite --epochs 3 --device cpu".split()),
    "evaluate": ("evaluate", "run"),
    "predict": ("predict", "run", "photos", "pictures"),
    "cache verify": ("cache", "verify"),
}
TIDY_END = "Error: interrupted; what was finished is kept, the same command goes on from there\n"
EARLY_END = "Error: interrupted; nothing was begun, run the same command again\n"


def test_a_signal_at_any_instant_ends_tidily_and_keeps_what_was_finished(
    place: Path, tally: NewTally, scale: Scale
) -> None:
    rng = random.Random(os.urandom(8))
    t = tally("9 Signals", "SIGINT or SIGTERM to the command line")
    pictures = 0
    longest = dict.fromkeys(COMMANDS, 2.0)
    tidy = {signal.SIGINT: 0, signal.SIGTERM: 0}
    for number in range(scale(3, 120)):
        kind = "extract" if number % 2 == 0 else rng.choice([*COMMANDS])
        caught = signal.SIGINT if rng.random() < 0.5 else signal.SIGTERM
        if kind == "extract":
            paint(place / "pictures", range(pictures, pictures + 40))
            pictures += 40
        # From its start on, or from where it has come to set its handlers: imports take a while.
        prepared = rng.random() < 0.8
        delay = rng.uniform(0.0, longest[kind])
        with t.case(f"{caught.name} to {kind} after {delay:.3f} s, prepared: {prepared}"):
            lived, is_tidy = _interrupt(place, kind, caught, delay, prepared)
            tidy[caught] += is_tidy
            longest[kind] = 0.8 * longest[kind] + 0.2 * max(1.0, lived)
    # Otherwise they came too early or too late, and nothing was tried.
    assert not scale(0, 1) or min(tidy.values()) >= 10, tidy


def _interrupt(
    place: Path, kind: str, number: signal.Signals, delay: float, prepared: bool
) -> tuple[float, bool]:
    """Start a command, send a signal, look at how it ended: seconds it lived, whether tidily."""
    job = Job(place, NOTING, (*COMMANDS[kind], "-q"))
    while prepared and job.is_running() and not job.catches(signal.SIGTERM):
        time.sleep(0.001)
    started = time.monotonic()
    notes = place / "finished.txt"
    size = notes.stat().st_size if notes.exists() else 0
    if prepared and kind == "extract" and delay < 1:
        # The first rows are finished, the last ones are not.
        while job.is_running() and not (notes.exists() and notes.stat().st_size > size):
            time.sleep(0.001)
        delay = min(delay, 0.2)
    time.sleep(delay)
    # SIGTERM, for Python itself catches SIGINT from its first milliseconds on.
    is_prepared = job.catches(signal.SIGTERM)
    before = time.monotonic()
    job.send(number)
    code, result, said = job.end(10)
    took = time.monotonic() - before
    assert took < 10
    if code == 128 + number:
        assert said in (TIDY_END, EARLY_END) or not is_prepared, said
    elif code == 0:
        # It was done, or nearly: who has much before him must not shrug the signal off.
        assert result, "it says it is done, but gave no result"
        # Python swallows an interrupt that comes while it is still reading its own site files.
        assert took < 2 or not is_prepared, f"it went on for {took:.1f} s"
    else:
        # Before Python has come to set a handler, and after it has taken it away again.
        assert not is_prepared or result, f"exit code {code}: {said}"
        assert code in (-number, 1), f"exit code {code}: {said}"
    cache = place / "cache"
    assert verify(cache)[1] == []
    left = temporary_files(place)
    for path in left:
        path.unlink()
    assert not left, f"left lying: {left}"
    assert_promised_rows_are_there(cache, "noted")
    load_head(place / "run")
    if kind == "extract" and notes.exists():
        noted = {bytes.fromhex(line) for line in notes.read_text().split()}
        lost = noted - {image_id for _, image_id in stored_rows(cache)}
        assert not lost, f"{len(lost)} finished rows were not committed"
    return time.monotonic() - started, said == TIDY_END
