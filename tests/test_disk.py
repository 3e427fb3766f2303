"""Whole files or nothing: the order of system calls, and each of them failing in turn."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featpipe import disk as disk_module
from featpipe.disk import Disk, remove_leftovers, write_atomically
from featpipe.errors import StorageError

OLD, NEW = b"the old state", b"the new state, longer"
STEPS = ["open", "write", "fsync", "close", "rename", "fsync_folder"]


class PowerLoss(BaseException):
    """Nothing may run after it, so nothing may catch it."""


class FaultyDisk(Disk):
    """Records every call; fails at one, or loses power right after one."""

    def __init__(
        self,
        *,
        fail_at: int = -1,
        fail_with: BaseException | None = None,
        lose_power_after: int = -1,
        bytes_a_write: int = 2**30,
    ) -> None:
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._fail_at = fail_at
        self._fail_with = fail_with or OSError(errno.EIO, os.strerror(errno.EIO))
        self._lose_power_after = lose_power_after
        self._bytes_a_write = bytes_a_write
        self._dead = False

    def _step(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        self.arguments.append(arguments)
        # The kernel closes a dead or failing process's file all the same; so do we.
        if name == "close":
            call(*arguments)
        if self._dead:
            raise PowerLoss
        if number == self._fail_at:
            raise self._fail_with
        result = None if name == "close" else call(*arguments)
        if number == self._lose_power_after:
            self._dead = True
            if name == "open":
                os.close(result)
            raise PowerLoss
        return result

    def open(self, path: Path, mode: int) -> int:
        return self._step("open", super().open, path, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return self._step("write", super().write, fd, data[: self._bytes_a_write])

    def fsync(self, fd: int) -> None:
        self._step("fsync", super().fsync, fd)

    def close(self, fd: int) -> None:
        self._step("close", super().close, fd)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", super().rename, source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink", super().unlink, path)

    def mkdir(self, folder: Path) -> None:
        self._step("mkdir", super().mkdir, folder)

    def fsync_folder(self, folder: Path) -> None:
        self._step("fsync_folder", super().fsync_folder, folder)


@pytest.fixture(params=[None, OLD], ids=["new", "replacing"])
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file that is not there yet, and one that is."""
    path = tmp_path / "file.h5"
    if request.param is not None:
        path.write_bytes(request.param)
    return path


def state(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_durable_before_it_gets_its_name(target: Path) -> None:
    disk = FaultyDisk()
    write_atomically(target, NEW, disk=disk)
    assert disk.calls == STEPS
    assert target.read_bytes() == NEW
    temporary, _ = disk.arguments[0]
    assert temporary.parent == target.parent, "a rename across file systems is no rename"
    assert temporary.name.startswith(".tmp-")
    assert disk.arguments[4] == (temporary, target)
    assert disk.arguments[5] == (target.parent,)
    assert names(target.parent) == {target.name}


def test_short_writes_are_continued(tmp_path: Path) -> None:
    disk = FaultyDisk(bytes_a_write=3)
    write_atomically(tmp_path / "file", b"0123456789", disk=disk)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert disk.calls.count("write") == 4


def test_no_bytes_are_a_file_too(tmp_path: Path) -> None:
    write_atomically(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_two_writes_never_share_a_temporary_name(tmp_path: Path) -> None:
    first, second = FaultyDisk(), FaultyDisk()
    write_atomically(tmp_path / "file", OLD, disk=first)
    write_atomically(tmp_path / "file", NEW, disk=second)
    assert first.arguments[0][0] != second.arguments[0][0]


def test_an_existing_temporary_file_is_never_written_into(tmp_path: Path) -> None:
    (tmp_path / ".tmp-x").write_bytes(OLD)
    with pytest.raises(FileExistsError):
        Disk().open(tmp_path / ".tmp-x", 0o644)


@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_the_mode_is_what_was_asked_for(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", NEW, mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_new_folders_are_made_durable_from_the_top(tmp_path: Path) -> None:
    disk = FaultyDisk()
    write_atomically(tmp_path / "a" / "b" / "file", NEW, disk=disk)
    synced = [a[0] for c, a in zip(disk.calls, disk.arguments, strict=True) if c == "fsync_folder"]
    # A folder's own entry lives in its parent.
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert disk.calls[:5] == ["mkdir", "fsync_folder"] * 2 + ["open"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected to write"):
        write_atomically(tmp_path / "a" / "b" / "file", NEW, disk=FaultyDisk(fail_at=2))
    assert names(tmp_path / "a") == set()


@pytest.mark.parametrize("step", range(5), ids=STEPS[:5])
def test_a_failure_before_the_end_changes_nothing(target: Path, step: int) -> None:
    before, disk = state(target), FaultyDisk(fail_at=step)
    with pytest.raises(StorageError, match="expected to write") as caught:
        write_atomically(target, NEW, disk=disk)
    assert disk.calls[step] == STEPS[step], "the fault was never reached"
    assert isinstance(caught.value.__cause__, OSError)
    assert state(target) == before
    assert names(target.parent) <= {target.name}, "a temporary file was left"


def test_a_file_whose_name_may_not_last_is_reported_though_it_is_whole(target: Path) -> None:
    disk = FaultyDisk(fail_at=5)
    with pytest.raises(StorageError, match="Input/output error"):
        write_atomically(target, NEW, disk=disk)
    assert disk.calls == STEPS
    assert target.read_bytes() == NEW
    assert names(target.parent) == {target.name}


def test_a_failed_cleaning_up_does_not_hide_the_reason(tmp_path: Path) -> None:
    class Stuck(FaultyDisk):
        def unlink(self, path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(StorageError, match="No space left"):
        disk = Stuck(fail_at=1, fail_with=OSError(errno.ENOSPC, "full"))
        write_atomically(tmp_path / "file", NEW, disk=disk)


@pytest.mark.parametrize("step", range(5), ids=STEPS[:5])
def test_an_interruption_leaves_the_old_state_and_nothing_else(target: Path, step: int) -> None:
    before = state(target)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, NEW, disk=FaultyDisk(fail_at=step, fail_with=KeyboardInterrupt()))
    assert state(target) == before
    assert names(target.parent) <= {target.name}


@pytest.mark.parametrize("step", range(6), ids=STEPS)
def test_power_loss_leaves_a_whole_file_and_writing_again_works(target: Path, step: int) -> None:
    before = state(target)
    with pytest.raises(PowerLoss):
        write_atomically(target, NEW, disk=FaultyDisk(lose_power_after=step))
    renamed = step >= STEPS.index("rename")
    assert state(target) == (NEW if renamed else before)
    left = names(target.parent) - {target.name}
    assert len(left) == (0 if renamed else 1), "the fault model no longer cuts"
    write_atomically(target, NEW)
    assert target.read_bytes() == NEW
    assert names(target.parent) == {target.name} | left


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, r"No space left on device; make room for at least 3\.0 MiB"),
        (errno.EDQUOT, "make room"),
        (errno.EFBIG, "make room"),
        (errno.EROFS, "make the folder writable"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "check the disk"),
    ],
)
def test_the_message_says_what_to_do(tmp_path: Path, number: int, advice: str) -> None:
    disk = FaultyDisk(fail_at=1, fail_with=OSError(number, os.strerror(number)))
    with pytest.raises(StorageError, match=advice) as caught:
        write_atomically(tmp_path / "file", bytes(3 * 2**20), disk=disk)
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(OLD)
    with pytest.raises(StorageError, match="expected to write"):
        write_atomically(tmp_path / "cache" / "spaces" / "file", NEW)
    assert (tmp_path / "cache").read_bytes() == OLD


def leftover(folder: Path) -> Path:
    """A temporary file as a writer that lost power leaves it, named after this process."""
    with pytest.raises(PowerLoss):
        write_atomically(folder / "file", NEW, disk=FaultyDisk(lose_power_after=1))
    (path,) = folder.glob(".tmp-*")
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


# A host name with the separator in it must not confuse the parts of the name.
@pytest.mark.parametrize("host", ["node", "gpu-01.lab", "we ird/-7-"])
def test_dead_writers_files_go_and_live_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(disk_module.socket, "gethostname", lambda: host)
    live = leftover(tmp_path)
    assert f"-{os.getpid()}-" in live.name
    dead = tmp_path / live.name.replace(f"-{os.getpid()}-", f"-{dead_pid()}-")
    dead.write_bytes(NEW)
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == {live.name}


def test_a_process_of_another_user_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = leftover(tmp_path)

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(disk_module.os, "kill", refuse)
    assert remove_leftovers(tmp_path) == 0
    assert path.exists()


def test_another_hosts_files_go_after_a_day(tmp_path: Path) -> None:
    # Its process numbers mean nothing here: only the age of the file tells.
    fresh, old = (tmp_path / f".tmp-elsewhere-{os.getpid()}-{x * 8}" for x in "ab")
    for path in (fresh, old):
        path.write_bytes(NEW)
    os.utime(old, (0, old.stat().st_mtime - 25 * 3600))
    os.utime(fresh, (0, fresh.stat().st_mtime - 23 * 3600))
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == {fresh.name}


def test_what_no_writer_made_is_left_alone(tmp_path: Path) -> None:
    kept = {".tmp-", ".tmp-notes", f".tmp-host-{dead_pid()}-nothexed", "tmp-host-1-deadbeef"}
    for name in kept:
        (tmp_path / name).write_bytes(OLD)
    assert remove_leftovers(tmp_path) == 0
    assert names(tmp_path) == kept


def test_a_leftover_that_cannot_be_removed_is_not_counted(tmp_path: Path) -> None:
    live = leftover(tmp_path)
    live.rename(tmp_path / live.name.replace(f"-{os.getpid()}-", f"-{dead_pid()}-"))
    assert remove_leftovers(tmp_path, disk=FaultyDisk(fail_at=0)) == 0
    assert remove_leftovers(tmp_path) == 1


def test_an_impossible_process_number_is_a_dead_writers(tmp_path: Path) -> None:
    live = leftover(tmp_path)
    path = live.rename(tmp_path / live.name.replace(f"-{os.getpid()}-", f"-{10**20}-"))
    assert remove_leftovers(tmp_path) == 1
    assert not path.exists()
