"""The only place that writes to the cache: whole files, atomically, or not at all.

A file is written under a temporary name in its final folder, fsynced, renamed, and the folder
is fsynced, in that order; a crash at any instant leaves either the old state or the new one.
Every operation goes through :class:`Disk` so that a test can cut, fail or record it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
import uuid
from pathlib import Path

from featpipe.errors import StorageError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{8}$")
_STALE_AFTER_S = 24 * 3600.0
"""Age after which another host's temporary file is taken to be a dead writer's."""


class Disk:
    """The operating system's calls, one method each: the seam tests put faults into."""

    def open(self, path: Path, mode: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def mkdir(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)

    def fsync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


DISK = Disk()


def write_atomically(target: Path, data: bytes, *, mode: int = 0o644, disk: Disk = DISK) -> None:
    """Make ``target`` hold exactly ``data``, durably, replacing what was there.

    Raises
    ------
    StorageError
        The system refused (full, read-only, no permission). ``target`` is as it was before,
        or already new where only the last step failed: making the new name durable.
    """
    temporary = target.parent / f".tmp-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        _make_folder(target.parent, disk)
        try:
            _write_whole(temporary, data, mode, disk)
            disk.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.unlink(temporary)
            raise
        disk.fsync_folder(target.parent)
    except OSError as error:
        raise _storage_error(error, target, len(data)) from error


def _make_folder(folder: Path, disk: Disk) -> None:
    """Create a folder and its parents so that a power loss cannot take them away again."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, disk)
    disk.mkdir(folder)
    disk.fsync_folder(folder.parent)


def _write_whole(path: Path, data: bytes, mode: int, disk: Disk) -> None:
    fd = disk.open(path, mode)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[disk.write(fd, rest) :]
        disk.fsync(fd)
    finally:
        disk.close(fd)


def _storage_error(error: OSError, target: Path, size: int) -> StorageError:
    need = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = f"make room for at least {need} and run the same command again; nothing is lost"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        advice = "make the folder writable, or name another one with --cache or --out"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        advice = "a file lies where a folder is needed; name another folder"
    else:
        advice = "check the disk and run the same command again; what was stored before is whole"
    return StorageError(f"expected to write {need} to {target}, but: {reason}; {advice}")


def names_in(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; none where there is no such folder.

    Raises
    ------
    StorageError
        The folder cannot be listed; ``Path.glob`` would call it empty.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"expected to list {folder}, but: {error.strerror}") from error


def file_fingerprint(status: os.stat_result) -> tuple[int, int, int]:
    """Size, modification time and change time (ns): equal while a file has not changed.

    The change time is in it because no program can set it back: copying another file of the
    same size and time over this one leaves everything else as it was.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def read_regular(path: Path) -> bytes:
    """The bytes of a regular file; a pipe or a device is refused instead of waited for.

    Raises
    ------
    OSError
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return file.read()


def move_aside(source: Path, target: Path, *, disk: Disk = DISK) -> Path:
    """Move a file, keeping what may lie at ``target``; returns where it went.

    Raises
    ------
    StorageError
    """
    place, number = target, 1
    while place.exists():
        number += 1
        place = target.with_name(f"{target.name}.{number}")
    try:
        _make_folder(place.parent, disk)
        disk.rename(source, place)
        disk.fsync_folder(place.parent)
        disk.fsync_folder(source.parent)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"expected to move {source} to {place}, but: {reason}; make both folders writable"
        ) from error
    return place


def remove_leftovers(folder: Path, *, disk: Disk = DISK) -> int:
    """Delete temporary files of dead writers; those of live ones stay.

    A writer on this host is dead when its process is gone; one on another host when its file
    has not changed for a day.

    Returns
    -------
    int
        Number of files removed.
    """
    removed = 0
    for path in folder.glob(".tmp-*"):
        match = _TEMPORARY.search(path.name)
        if match and not _writer_lives(path, match["host"], int(match["pid"])):
            with contextlib.suppress(OSError):
                disk.unlink(path)
                removed += 1
    return removed


def _writer_lives(path: Path, host: str, pid: int) -> bool:
    if host != _host():
        try:
            return time.time() - path.stat().st_mtime < _STALE_AFTER_S
        except OSError:
            return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"
