"""Exports that are cut, on disks that fail or lose power: a file is whole or has no name."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.crash import no_temporary_files, undisturbed
from support.faulty_disk import (
    FaultyDisk,
    JournalDisk,
    PowerLoss,
    PowerLossModel,
)
from support.samples import in_splits, small_space, stored_set
from support.tally import NewTally, Scale

import featpipe
from featpipe.base.disk import use_disk
from featpipe.base.errors import CheckError, DamageError, StorageError
from featpipe.exports import model_files, npz

PIECES = 700
"""Bytes a write takes, so that every file is written in several."""


@pytest.fixture
def rows(cache: Path) -> Callable[[Path], None]:
    """Writes the features of a data set to a file."""
    stored_set(cache, in_splits(train=20, val=4, test=4), spaces=[small_space(shape=(40,))])

    def export(out: Path) -> None:
        featpipe.export("set", cache=cache, format="npz", out=out, overwrite=True)

    return export


class Quick(model_files.TorchFile):
    """A format that is written in no time: what is tested is how bytes get to the disk."""

    def encode(self, model: Any, example: Any, facts: Any, *, dense: bool) -> bytes:
        self.model = model
        return b"a network\n" * 500

    def open(self, data: bytes) -> Any:
        return model_files.answer_of(self.model)


@pytest.fixture
def head(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Writes a network and its card."""
    monkeypatch.setitem(model_files.FILES, "torch", Quick())

    def export(out: Path) -> None:
        featpipe.export(
            workspace / "run", cache=workspace / "cache", format="torch", out=out, overwrite=True
        )

    return export


@pytest.fixture(params=["rows", "head"])
def export(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    found: Callable[[Path], None] = request.getfixturevalue(request.param)
    return found


def calls_of(export: Callable[[Path], None], out: Path) -> int:
    disk = FaultyDisk(bytes_a_write=PIECES, syncs=False)
    with use_disk(disk):
        export(out)
    return len(disk.calls)


@pytest.mark.parametrize("over", ["nothing", "another file"])
def test_killed_after_each_call_leaves_a_whole_file_or_none(
    over: str, export: Callable[[Path], None], tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally("1 Killed at any instant", "each call of an export")
    undisturbed(lambda: export(tmp_path / "whole" / "file"))
    whole = (tmp_path / "whole" / "file").read_bytes()
    earlier = b"an earlier file" if over == "another file" else None

    def prepared(name: str) -> Path:
        out = tmp_path / name / "file"
        if earlier is not None:
            out.parent.mkdir()
            out.write_bytes(earlier)
        return out

    count = calls_of(export, prepared("counted"))
    for number in range(0, count, scale(3, 1)):
        with t.case(f"call {number} of {count}"):
            out = prepared(str(number))
            disk = FaultyDisk(lose_power_after=number, bytes_a_write=PIECES, syncs=False)
            with pytest.raises(PowerLoss), use_disk(disk):
                export(out)
            assert (out.read_bytes() if out.exists() else None) in (earlier, whole)
            if out.exists() and out.read_bytes() == whole:
                assert_described(out)
            undisturbed(lambda out=out: export(out))
            assert out.read_bytes() == whole
            no_temporary_files(out.parent)


def assert_described(out: Path) -> None:
    """A network that has its name has its card: the card is written first."""
    cards = list(out.parent.glob("*README.md"))
    if out.read_bytes().startswith(b"a network"):
        assert hashlib.sha256(out.read_bytes()).hexdigest() in cards[0].read_text("utf-8")


def test_each_failing_call_is_a_storage_error(
    export: Callable[[Path], None], tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally("3 Disk full and write errors", "each call to the disk failing: export")
    out = tmp_path / "there" / "file"
    undisturbed(lambda: export(out))
    count = calls_of(export, out)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for number in range(0, count, scale(3, 1)):
        with t.case(f"call {number} of {count}"):
            # What was there before stays, unless the file was complete already.
            out.write_bytes(b"an earlier file")
            disk = FaultyDisk(fail_at=number, fail_with=full, bytes_a_write=PIECES, syncs=False)
            try:
                with use_disk(disk):
                    export(out)
            except StorageError as error:
                assert "No space left on device; make room" in str(error)
            else:
                # No lock and no removal of leftovers is needed for a whole file.
                assert disk.calls[number] in ("lock", "unlink", "close", "fsync_folder")
            found = out.read_bytes()
            assert found == b"an earlier file" or len(found) > PIECES
            no_temporary_files(out.parent)


def test_power_loss_leaves_a_whole_file_or_none(
    rows: Callable[[Path], None], tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    t = tally("2 Power loss", "states of a disk on which rows were exported")
    root = tmp_path / "root"
    root.mkdir()
    # Readers leave an index in the cache.
    undisturbed(lambda: rows(tmp_path / "before"))
    journal = JournalDisk(root, forgets=(), bytes_a_write=PIECES)
    with use_disk(journal):
        rows(root / "there" / "file")
    whole = (root / "there" / "file").read_bytes()
    rng = random.Random(0)
    for number in range(scale(40, 400)):
        length = rng.randrange(len(journal.operations) + 1)
        with t.case(f"state {number}, after call {length}"):
            model = PowerLossModel(journal.start, journal.operations[:length])
            left = model.after_power_loss(rng)
            assert left.get("there/file") in (None, whole)
            if length == len(journal.operations):
                assert left["there/file"] == whole


def test_a_damaged_row_is_not_exported(own_workspace: Path) -> None:
    (segment,) = own_workspace.glob("cache/spaces/*/segments/*.h5")
    data = bytearray(segment.read_bytes())
    data[-1] ^= 1
    segment.chmod(0o644)
    segment.write_bytes(data)
    out = own_workspace / "x.npz"
    with pytest.raises(DamageError, match="expected checksum"):
        featpipe.export("colours", cache=own_workspace / "cache", format="npz", out=out)
    assert not out.exists()
    no_temporary_files(own_workspace)


def test_what_is_read_back_otherwise_is_not_kept(
    rows: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "read_digest", lambda path: "0" * 64)
    with pytest.raises(CheckError, match="expected the rows that were written"):
        rows(tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    no_temporary_files(tmp_path)
