"""Score maps in a folder: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.command import Run
from support.faulty_disk import FaultyDisk, PowerLoss
from support.library import predict
from support.tally import NewTally, Scale

from featpipe.base.disk import use_disk
from featpipe.base.errors import StorageError

Predict = Callable[[], list[Any]]


@pytest.fixture
def maps_of_two(own_workspace: Path) -> Predict:
    """Predict two pictures, whose rows are cached, with maps."""
    photos = [own_workspace / "photos" / label / "00.png" for label in ("red", "blue")]
    options = {"cache": own_workspace / "cache", "device": "cpu", "workers": 1}

    def go() -> list[Any]:
        run, folder = own_workspace / "run", own_workspace / "maps"
        return list(predict(run, photos, maps=folder, **options))

    return go


def whole_maps(folder: Path) -> dict[str, bytes]:
    """The maps of a folder by name; each must be a whole picture."""
    found = {}
    for path in folder.glob("[!.]*") if folder.is_dir() else ():
        with Image.open(path) as image:
            image.load()
        found[path.name] = path.read_bytes()
    return found


@pytest.mark.parametrize("how", ["failing", "the last"])
def test_each_call_to_the_disk_leaves_whole_maps(
    own_workspace: Path, maps_of_two: Predict, tally: NewTally, scale: Scale, how: str
) -> None:
    folder = own_workspace / "maps"
    disk = FaultyDisk(syncs=False)
    with use_disk(disk):
        maps_of_two()
    expected = whole_maps(folder)
    assert len(expected) == 2
    promise = "3 Disk full and write errors" if how == "failing" else "1 Killed at any instant"
    t = tally(promise, f"each call to the disk {how}: predict --maps")
    numbers = range(len(disk.calls))
    for number in random.Random(0).sample(numbers, min(len(numbers), scale(4, len(numbers)))):
        for path in folder.iterdir():
            path.unlink()
        with t.case(f"{how} {number}: {disk.calls[number]}"):
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if how == "failing":
                faulty = FaultyDisk(syncs=False, fail_at=number, fail_with=full)
            else:
                faulty = FaultyDisk(syncs=False, lose_power_after=number)
            with use_disk(faulty):
                with contextlib.suppress(StorageError, PowerLoss):
                    maps_of_two()
            left = whole_maps(folder)
            assert left.items() <= expected.items()
            assert {str(p.map.name) for p in maps_of_two()} == set(expected)
            assert whole_maps(folder) == expected
            assert not [*folder.glob(".tmp-*")]


def test_names_of_folders_for_maps_that_cannot_be(
    own_workspace: Path, inside: Run, tally: NewTally
) -> None:
    t = tally("10 Bad input", "folders for score maps that cannot be")
    flags = ("--cache", "cache", "--device", "cpu", "--workers", 1, "-q")
    for name, code in (
        ("a" * 300, 74),
        ("photos/red/00.png", 2),
        ("photos/red/00.png/x", 74),
        ("/dev/null", 2),
        ("", 2),
        ("a\0b", 2),
    ):
        with t.case(repr(name[:20])):
            done = inside("predict", "run", "photos/red/01.png", "--maps", name, *flags)
            assert done.returncode == code, done.stderr
            said = done.stderr.strip().splitlines()
            assert "Traceback" not in done.stderr and said
