"""Whole files or nothing: the order of system calls, and each of them failing in turn."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faulty_disk import FaultyDisk, PowerLoss

from featpipe.base import disk as disk_module
from featpipe.base.disk import Disk, is_temporary, remove_leftovers, use_disk, write_atomically
from featpipe.base.errors import StorageError

OLD, NEW = b"the old state", b"the new state, longer"
STEPS = ["open", "lock", "write", "fsync", "rename", "close", "fsync_folder"]
DECISIVE = ["open", "write", "fsync", "rename"]
"""Steps whose failure leaves the old state: a file system may have no locks."""


def write(target: Path, data: bytes, disk: Disk, **options: Any) -> None:
    with use_disk(disk):
        write_atomically(target, data, **options)


@pytest.fixture(autouse=True)
def neighbour(tmp_path: Path) -> None:
    """An empty folder is made to last first; most writes go where others went before."""
    (tmp_path / "neighbour").write_bytes(b"")


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
    return {path.name for path in folder.iterdir()} - {"neighbour"}


def test_a_file_is_durable_before_it_gets_its_name(target: Path) -> None:
    disk = FaultyDisk()
    write(target, NEW, disk)
    assert disk.calls == STEPS
    assert target.read_bytes() == NEW
    temporary, _ = disk.arguments[0]
    assert temporary.parent == target.parent, "a rename across file systems is no rename"
    assert temporary.name.startswith(".tmp-")
    assert disk.arguments[STEPS.index("rename")] == (temporary, target)
    assert disk.arguments[STEPS.index("fsync_folder")] == (target.parent,)
    assert names(target.parent) == {target.name}


def test_short_writes_are_continued(tmp_path: Path) -> None:
    disk = FaultyDisk(bytes_a_write=3)
    write(tmp_path / "file", b"0123456789", disk)
    assert (tmp_path / "file").read_bytes() == b"0123456789"
    assert disk.calls.count("write") == 4


def test_no_bytes_are_a_file_too(tmp_path: Path) -> None:
    write_atomically(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


def test_two_writes_never_share_a_temporary_name(tmp_path: Path) -> None:
    first, second = FaultyDisk(), FaultyDisk()
    write(tmp_path / "file", OLD, first)
    write(tmp_path / "file", NEW, second)
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
    write(tmp_path / "a" / "b" / "file", NEW, disk)
    synced = [a[0] for c, a in zip(disk.calls, disk.arguments, strict=True) if c == "fsync_folder"]
    # A folder's own entry lives in its parent.
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert disk.calls[:5] == ["mkdir", "fsync_folder"] * 2 + ["open"]


def test_an_empty_folder_is_made_to_last_before_anything_is_in_it(tmp_path: Path) -> None:
    # Whoever made it may have been killed before its name was durable.
    (tmp_path / "a").mkdir()
    disk = FaultyDisk()
    write(tmp_path / "a" / "file", NEW, disk)
    assert disk.calls == ["fsync_folder", *STEPS]
    assert disk.arguments[0] == (tmp_path,)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected to write"):
        write(tmp_path / "a" / "b" / "file", NEW, FaultyDisk(fail_at=2))
    assert names(tmp_path / "a") == set()


@pytest.mark.parametrize("step", DECISIVE)
def test_a_failure_before_the_end_changes_nothing(target: Path, step: str) -> None:
    before, disk = state(target), FaultyDisk(fail_at=STEPS.index(step))
    with pytest.raises(StorageError, match="expected to write") as caught:
        write(target, NEW, disk)
    assert disk.calls[STEPS.index(step)] == step, "the fault was never reached"
    assert isinstance(caught.value.__cause__, OSError)
    assert state(target) == before
    assert names(target.parent) <= {target.name}, "a temporary file was left"


def test_where_there_are_no_locks_files_are_written_all_the_same(target: Path) -> None:
    disk = FaultyDisk(fail_at=1, fail_with=OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)))
    write(target, NEW, disk)
    assert disk.calls == STEPS
    assert target.read_bytes() == NEW


def test_a_file_that_was_cleared_away_before_it_was_locked_is_made_again(target: Path) -> None:
    class Cleared(FaultyDisk):
        def lock(self, fd: int) -> None:
            if "lock" not in self.calls:
                self.arguments[0][0].unlink()
            super().lock(fd)

    disk = Cleared()
    write(target, NEW, disk)
    assert disk.calls == ["open", "lock", "close", *STEPS]
    assert target.read_bytes() == NEW
    assert names(target.parent) == {target.name}


def test_a_file_that_another_writer_is_looking_at_is_left_to_it(target: Path) -> None:
    class Looked(FaultyDisk):
        def lock(self, fd: int) -> None:
            if "lock" not in self.calls:
                with self.arguments[0][0].open("rb") as other:
                    fcntl.flock(other, fcntl.LOCK_SH)
                    super().lock(fd)
            super().lock(fd)

    disk = Looked()
    write(target, NEW, disk)
    assert disk.calls == ["open", "lock", "close", *STEPS]
    assert target.read_bytes() == NEW


def test_a_file_whose_name_may_not_last_is_reported_though_it_is_whole(target: Path) -> None:
    disk = FaultyDisk(fail_at=STEPS.index("fsync_folder"))
    with pytest.raises(StorageError, match="Input/output error"):
        write(target, NEW, disk)
    assert disk.calls == STEPS
    assert target.read_bytes() == NEW
    assert names(target.parent) == {target.name}


def test_a_failed_cleaning_up_does_not_hide_the_reason(tmp_path: Path) -> None:
    class Stuck(FaultyDisk):
        def unlink(self, path: Path) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(StorageError, match="No space left"):
        disk = Stuck(fail_at=STEPS.index("write"), fail_with=OSError(errno.ENOSPC, "full"))
        write(tmp_path / "file", NEW, disk)


@pytest.mark.parametrize("step", DECISIVE)
def test_an_interruption_leaves_the_old_state_and_nothing_else(target: Path, step: str) -> None:
    before = state(target)
    disk = FaultyDisk(fail_at=STEPS.index(step), fail_with=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(target, NEW, disk)
    assert state(target) == before
    assert names(target.parent) <= {target.name}


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_an_interruption_right_after_a_call_leaves_no_temporary_file(
    target: Path, step: int
) -> None:
    before = state(target)
    with pytest.raises(KeyboardInterrupt):
        write(target, NEW, FaultyDisk(interrupt_after=step))
    assert state(target) == (NEW if step >= STEPS.index("rename") else before)
    assert names(target.parent) <= {target.name}


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_power_loss_leaves_a_whole_file_and_writing_again_works(target: Path, step: int) -> None:
    before = state(target)
    with pytest.raises(PowerLoss):
        write(target, NEW, FaultyDisk(lose_power_after=step))
    renamed = step >= STEPS.index("rename")
    assert state(target) == (NEW if renamed else before)
    left = names(target.parent) - {target.name}
    assert len(left) == (0 if renamed else 1), "the fault model no longer cuts"
    write_atomically(target, NEW)
    assert target.read_bytes() == NEW
    assert names(target.parent) == {target.name}, "the dead writer's file was not cleared away"


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
    disk = FaultyDisk(fail_at=STEPS.index("write"), fail_with=OSError(number, os.strerror(number)))
    with pytest.raises(StorageError, match=advice) as caught:
        write(tmp_path / "file", bytes(3 * 2**20), disk)
    assert str(tmp_path / "file") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(OLD)
    with pytest.raises(StorageError, match="expected to write"):
        write_atomically(tmp_path / "cache" / "spaces" / "file", NEW)
    assert (tmp_path / "cache").read_bytes() == OLD


def leftover(folder: Path, host: str | None = None, number: int = 0) -> Path:
    """A temporary file as a writer that was killed leaves it: with nobody's lock on it."""
    path = folder / f".tmp-{disk_module._host() if host is None else host}-{number:032x}"
    path.write_bytes(NEW)
    return path


@contextlib.contextmanager
def live_writer(folder: Path) -> Iterator[Path]:
    """The temporary file of another process that is writing it."""
    code = """
import sys, time
from pathlib import Path
from featpipe.base.disk import Disk, use_disk, write_atomically
class Paused(Disk):
    def fsync(self, fd):
        print("writing", flush=True)
        sys.stdin.read()
        super().fsync(fd)
with use_disk(Paused()):
    write_atomically(Path(sys.argv[1]) / "other", b"whole", mode=0o444)
"""
    before = names(folder)
    writer = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    (name,) = names(folder) - before
    assert is_temporary(name)
    try:
        yield folder / name
    finally:
        writer.communicate()
    assert writer.returncode == 0
    assert (folder / "other").read_bytes() == b"whole"


def test_dead_writers_files_go_and_live_ones_stay(tmp_path: Path) -> None:
    with live_writer(tmp_path) as live:
        dead = leftover(tmp_path)
        assert remove_leftovers(tmp_path) == 1
        assert live.exists()
        assert not dead.exists()
        # Any write clears its folder, and none disturbs another that is under way.
        dead = leftover(tmp_path)
        write_atomically(tmp_path / "file", NEW)
        assert names(tmp_path) == {"file", live.name}
    assert names(tmp_path) == {"file", "other"}


def test_a_file_that_is_made_but_not_yet_locked_is_locked_or_gone_never_taken_away_later(
    tmp_path: Path,
) -> None:
    # The clearer takes the file for nobody's; before it deletes it, its maker asks for the lock.
    outcomes: list[str] = []

    class Clearing(Disk):
        def unlink(self, path: Path) -> None:
            fd = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                outcomes.append("ours")
            except BlockingIOError:
                outcomes.append("refused")
            finally:
                os.close(fd)
            super().unlink(path)

    leftover(tmp_path)
    with use_disk(Clearing()):
        assert remove_leftovers(tmp_path) == 1
    assert outcomes == ["refused"]


def test_a_killed_writers_file_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(PowerLoss):
        write(tmp_path / "file", NEW, FaultyDisk(lose_power_after=STEPS.index("write")))
    (name,) = names(tmp_path)
    assert is_temporary(name)
    assert remove_leftovers(tmp_path) == 1


# A host name with the separator in it must not confuse the parts of the name.
@pytest.mark.parametrize("host", ["node", "gpu-01.lab", "we ird/-7-", ""])
def test_any_host_name_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(disk_module.socket, "gethostname", lambda: host)
    with pytest.raises(PowerLoss):
        write(tmp_path / "file", NEW, FaultyDisk(lose_power_after=STEPS.index("write")))
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == set()


def test_another_hosts_files_go_after_a_day(tmp_path: Path) -> None:
    # Locks do not reach across every network file system: only the age of the file tells.
    fresh, old = (leftover(tmp_path, "elsewhere", number) for number in (1, 2))
    os.utime(old, (0, old.stat().st_mtime - 25 * 3600))
    os.utime(fresh, (0, fresh.stat().st_mtime - 23 * 3600))
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == {fresh.name}


def test_where_there_are_no_locks_files_go_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no locks")

    monkeypatch.setattr(disk_module.fcntl, "flock", refuse)
    fresh, old = (leftover(tmp_path, number=number) for number in (1, 2))
    os.utime(old, (0, old.stat().st_mtime - 25 * 3600))
    assert remove_leftovers(tmp_path) == 1
    assert names(tmp_path) == {fresh.name}


def test_what_no_writer_made_is_left_alone(tmp_path: Path) -> None:
    host = disk_module._host()
    kept = {".tmp-", ".tmp-notes", f".tmp-{host}-nothexed", f"tmp-{host}-{0:032x}"}
    for name in kept:
        (tmp_path / name).write_bytes(OLD)
    # Nor is a pipe or a link of such a name followed or waited for.
    pipe, link = f".tmp-{host}-{1:032x}", f".tmp-{host}-{2:032x}"
    (tmp_path / link).symlink_to("/dev/zero")
    assert remove_leftovers(tmp_path) == 0
    os.mkfifo(tmp_path / pipe)
    remove_leftovers(tmp_path)
    assert kept | {link} <= names(tmp_path)


def test_a_leftover_that_cannot_be_removed_is_not_counted(tmp_path: Path) -> None:
    leftover(tmp_path)
    with use_disk(FaultyDisk(fail_at=0)):
        assert remove_leftovers(tmp_path) == 0
    assert remove_leftovers(tmp_path) == 1
