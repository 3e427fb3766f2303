"""Promise 5: any number of processes may extract into one cache at once."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from support.command import TINY_FLAGS, Run
from support.samples import class_picture
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base.disk import is_temporary
from featpipe.base.errors import InUseError
from featpipe.datasets.files import list_datasets, load_dataset
from featpipe.datasets.named_rows import NamedRows
from featpipe.integrations.arrays import open_features
from featpipe.specs.garbage import GarbageSpec
from featpipe.stages.maintain import collect_garbage, verify
from featpipe.stages.removal import find_removal, remove
from featpipe.store.feature_store import FeatureStore, list_stores
from featpipe.store.segments import read_segment, whole_rows

PROMISE = "5 Many writers"
FLAGS = [*TINY_FLAGS, "--batch-size", "4", "--workers", "1"]
OPTIONS = {
    flag.removeprefix("--"): value
    for flag, value in zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
}

# The command line on a disk that dawdles before each call and takes a third of what it is given,
# every batch a segment at once. It waits at the door until all are there.
WRITER = """
import os, sys, time
from featpipe.base import disk
from featpipe.cli import main
from featpipe.engine import writer
from featpipe.engine import extractor as runner
import torch, torchvision

writer.COMMIT_BYTES = 1

class Dawdling(disk.Disk):
    def write(self, fd, data):
        time.sleep(0.003)
        return super().write(fd, data[: max(1000, len(data) // 3)])
    def rename(self, source, target):
        time.sleep(0.01)
        super().rename(source, target)

door = sys.argv.pop(1)
open(door + "." + str(os.getpid()), "w").close()
while not os.path.exists(door):
    time.sleep(0.005)
with disk.use_disk(Dawdling()):
    main()
"""


@contextlib.contextmanager
def at_once(
    folder: Path, commands: Sequence[Sequence[str]], locking: Sequence[str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that begin together; whatever a test does, none outlives it."""
    door = folder / f"door{time.monotonic_ns()}"
    started = []
    for number, command in enumerate(commands):
        env = {
            **os.environ,
            "FEATPIPE_CACHE": str(folder / "cache"),
            "HDF5_USE_FILE_LOCKING": locking[number % len(locking)],
            "NO_COLOR": "1",
        }
        with open(folder / f"{door.name}.stderr{number}", "w") as stderr:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER, str(door), *command],
                    cwd=folder,
                    env=env,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    text=True,
                )
            )
    try:
        deadline = time.monotonic() + 200
        while len(list(folder.glob(f"{door.name}.[0-9]*"))) < len(commands):
            assert time.monotonic() < deadline, "they did not start"
            assert all(p.poll() is None for p in started), "one ended before it began"
            time.sleep(0.01)
        door.touch()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def said(folder: Path) -> str:
    """The last line of everyone's stderr."""
    texts = [path.read_text().strip() for path in sorted(folder.glob("door*.stderr*"))]
    return "\n".join(text.split("\n")[-1] for text in texts if text)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one``, ``two`` and ``three``: neighbours share half of their pictures; ``all`` has each."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("one", "two", "three")):
        for label in (0, 2):
            for seed in range(number * 6, number * 6 + 12):
                picture = class_picture(label, seed)
                for place in (name, "all"):
                    path = folder / place / "ab "[label] / f"{seed}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(path)
    return folder


@pytest.fixture(scope="module")
def alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of one undisturbed process that extracted all pictures."""
    cache = tmp_path_factory.mktemp("alone") / "cache"
    api.extract(pictures / "all", name="all", cache=cache, **OPTIONS)
    return cache


def rows_of(cache: Path, ids: np.ndarray) -> bytes:
    """What a reader is given of these pictures."""
    (store,) = list_stores(cache)
    return FeatureStore(cache, store.space).rows(ids)[:].tobytes()


def assert_as_alone(cache: Path, alone: Path, name: str, folder: Path) -> None:
    if folder.name not in list_datasets(alone):
        api.extract(folder, name=folder.name, cache=alone, **OPTIONS)
    mine, its = load_dataset(cache, name), load_dataset(alone, folder.name)
    assert mine.digest() == its.digest()
    assert mine.paths == its.paths
    assert rows_of(cache, mine.image_sha256) == rows_of(alone, its.image_sha256)


def assert_tidy(cache: Path) -> None:
    assert verify(cache)[1] == []
    left = [path for path in cache.rglob("*") if is_temporary(path.name)]
    assert left == []


def extraction(folder: Path, name: str, *more: str) -> list[str]:
    return ["extract", str(folder), "--name", name, *FLAGS, *more]


def every_stored_row_is_right(cache: Path, alone: Path) -> None:
    """Also the copies that no index leads to."""
    ids = load_dataset(alone, "all").image_sha256
    right = {image.tobytes(): rows_of(alone, image[None]) for image in ids}
    (store,) = list_stores(cache)
    found = set()
    for path in sorted(store.segments_folder.glob("*.h5")):
        segment = read_segment(path, store.space)
        for image, row in zip(segment.ids, whole_rows(segment, store.space), strict=True):
            assert row is not None
            assert row.tobytes() == right[image.tobytes()]
            found.add(image.tobytes())
    assert found == set(right), "rows are missing"


@pytest.mark.timeout(3600)
def test_writers_at_once_end_with_the_union(
    pictures: Path, alone: Path, tmp_path: Path, tally: NewTally, scale: Scale, featpipe: Run
) -> None:
    t = tally(PROMISE, "processes that extract into one cache at once")
    reading = tally(PROMISE, "readers beside them: open_features, cache verify, train-head")
    one, two, three, whole = (pictures / name for name in ("one", "two", "three", "all"))
    rounds: list[list[tuple[list[str], str, Path]]] = [
        [  # parts of a list, and the same pictures under another name
            (extraction(whole, "parts", "--shard", "1/2"), "", whole),
            (extraction(whole, "parts", "--shard", "2/2"), "parts", whole),
            (extraction(whole, "whole"), "whole", whole),
        ],
        [  # the same pictures, under as many names
            (extraction(whole, f"same{number}"), f"same{number}", whole) for number in range(4)
        ],
        [  # different and overlapping ones
            (extraction(one, "one"), "one", one),
            (extraction(two, "two"), "two", two),
            (extraction(three, "three"), "three", three),
            (extraction(whole, "whole"), "whole", whole),
        ],
        [  # parts alone: whoever is last merges
            (extraction(whole, "parts", "--shard", f"{number}/4"), "parts", whole)
            for number in (1, 2, 3, 4)
        ],
        [  # the same data set: each writes the same
            (extraction(whole, "whole"), "whole", whole)
        ]
        * 4,
    ]
    for number in range(scale(1, 10)):
        folder = tmp_path / f"round{number}"
        folder.mkdir()
        cache = folder / "cache"
        # The short form has both settings side by side, which must not matter either.
        locking = ["TRUE", "FALSE"] if scale(1, 0) else [("TRUE", "FALSE")[number % 2]]
        writers = rounds[number // 2 % len(rounds)]
        # What readers have before the first writer begins.
        api.extract(one, name="before", cache=cache, **OPTIONS)
        with at_once(folder, [command for command, _, _ in writers], locking) as processes:
            seen = 0
            while any(process.poll() is None for process in processes):
                with reading.case(f"round {number}, look {seen}"):
                    read(cache, alone, seen, folder)
                seen += 1
            codes = [process.wait() for process in processes]
        for (command, name, source), code in zip(writers, codes, strict=True):
            with t.case(f"round {number}, locking {locking}: {command}"):
                assert code == 0, f"exit code {code}: {said(folder)}"
                if name:
                    assert_as_alone(cache, alone, name, source)
        with t.case(f"round {number}, the cache"):
            assert_tidy(cache)
            every_stored_row_is_right(cache, alone)
        if scale(0, 1):
            with t.case(f"round {number}, nothing is left to do"):
                again = api.extract(whole, name="again", cache=cache, **OPTIONS)
                assert (again.computed, again.quarantined) == (0, 0)
                done = featpipe("cache", "verify", "--cache", cache)
                assert done.returncode == 0, done.stdout


def read(cache: Path, alone: Path, number: int, folder: Path) -> None:
    """What a reader does beside the writers; what it is given is right or not given."""
    match number % 4:
        case 0 | 2:
            X, y = open_features("before", split="all", cache=cache)
            mine = load_dataset(cache, "before")
            assert len(X) == len(y) == len(mine)
            assert np.asarray(X).tobytes() == rows_of(alone, mine.image_sha256)
        case 1:
            assert verify(cache)[1] == []
        case 3:
            trained = api.train_head(
                "before", cache=cache, out=folder / f"run{number}", epochs=2, device="cpu"
            )
            assert (trained.head / "head.json").exists()


# A process that replaces one data set again and again: the rows of the former one are garbage,
# some of them are wanted again, and each time it looks at all rows that it was promised.
REPLACER = """
import itertools, sys, time
import numpy as np
from featpipe import api
from featpipe.engine import writer
from featpipe.integrations.arrays import open_features

writer.COMMIT_BYTES = 1
pictures, cache, rounds = sys.argv[1:4]
options = dict(word.split("=") for word in sys.argv[4:])
print("ready", flush=True)
for _, name in zip(range(int(rounds)), itertools.cycle(("one", "two", "three"))):
    X, y = open_features("before", split="all", cache=cache)
    api.extract(f"{pictures}/{name}", name="changing", cache=cache, batch_size=4, **options)
    Z, _ = open_features("changing", split="all", cache=cache)
    # Here a collection may come between the look-up and the reading.
    time.sleep(0.02)
    assert np.isfinite(np.asarray(X)).all() and len(np.asarray(Z)) == 24
"""


@pytest.mark.timeout(3600)
def test_garbage_is_collected_beside_an_extraction_and_readers(
    pictures: Path, alone: Path, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "collections of garbage beside extractions and readers")
    cache = tmp_path / "cache"
    api.extract(pictures / "one", name="before", cache=cache, **OPTIONS)
    api.extract(pictures / "all", name="garbage", cache=cache, **OPTIONS)
    remove(cache, find_removal(cache, "garbage"))
    words = [str(pictures), str(cache), str(scale(3, 60)), "workers=1"]
    words += [f"{name}={value}" for name, value in OPTIONS.items()]
    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", REPLACER, *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        refused = rows = 0
        while process.poll() is None:
            with t.case("collection"):
                try:
                    found = collect_garbage(cache, GarbageSpec(grace=0.0))
                    rows += sum(store.rows for store in found)
                except InUseError:
                    refused += 1
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    assert refused and rows, "the two never met"
    collect_garbage(cache, GarbageSpec(grace=0.0))
    assert_tidy(cache)
    assert_as_alone(cache, alone, "before", pictures / "one")
    (store,) = list_stores(cache)
    named = NamedRows.of_cache(cache).of_space(store.space)
    assert len(store.index.ids) == len(named), "garbage stayed, or a row that is named went"
