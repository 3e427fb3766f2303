"""The only place that writes to the cache: whole files, atomically, or not at all.

A file is written under a temporary name in its final folder, fsynced, renamed, and the folder
is fsynced, in that order; a crash at any instant leaves either the old state or the new one.
The writer holds a lock on the temporary file until it has its name: the system drops it when
the writer dies, however it dies, so a temporary file without a lock is nobody's.
Every operation goes through :class:`Disk` so that a test can cut, fail or record it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from featpipe.base.errors import StorageError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-[0-9a-f]{32}")
_STALE_AFTER_S = 24 * 3600.0
"""Age after which another host's temporary file is taken to be a dead writer's."""


class Disk:
    """The operating system's calls, one method each: the seam tests put faults into."""

    def open(self, path: Path, mode: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def lock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target)

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


_disk = Disk()


@contextlib.contextmanager
def use_disk(disk: Disk) -> Iterator[None]:
    """Let every write of this process go through ``disk``: for tests of what a fault leaves."""
    global _disk
    before, _disk = _disk, disk
    try:
        yield
    finally:
        _disk = before


def write_atomically(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make ``target`` hold exactly ``data``, durably, replacing what was there.

    Raises
    ------
    StorageError
        The system refused (full, read-only, no permission). ``target`` is as it was before,
        or already new where only the last step failed: making the new name durable.
    """
    try:
        _make_folder(target.parent)
        remove_leftovers(target.parent)
        while not _is_written(target, data, mode):
            pass
        _disk.fsync_folder(target.parent)
    except OSError as error:
        raise _storage_error(error, target, len(data)) from error


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents so that a power loss cannot take them away again."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        _disk.mkdir(folder)
        _disk.fsync_folder(folder.parent)
    elif not names_in(folder):
        # Whoever made it may have been killed before it was sure to last.
        with contextlib.suppress(PermissionError):
            _disk.fsync_folder(folder.parent)


def _is_written(target: Path, data: bytes, mode: int) -> bool:
    """Write a new file and give it its name; not where another writer took it for a dead one's."""
    temporary = target.parent / f".tmp-{_host()}-{uuid.uuid4().hex}"
    fd = -1
    try:
        fd = _disk.open(temporary, mode)
        # Else it was cleared away between its making and its locking.
        if not _is_ours(fd):
            return False
        _write_all(fd, data)
        _disk.fsync(fd)
        _disk.rename(temporary, target)
        return True
    except FileExistsError:
        raise  # not ours
    except BaseException:
        # By its name: an interrupt may come once the file is made, and before ``fd`` is known.
        with contextlib.suppress(OSError):
            _disk.unlink(temporary)
        raise
    finally:
        if fd >= 0:
            _disk.close(fd)


def _is_ours(fd: int) -> bool:
    try:
        _disk.lock(fd)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks: there nobody clears what is not a day old.
        return True
    return os.fstat(fd).st_nlink > 0


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[_disk.write(fd, rest) :]


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


def is_regular(path: Path) -> bool:
    """Whether opening it gives a file's bytes; a pipe would be waited for.

    Raises
    ------
    OSError
        There is nothing, or it may not be asked.
    """
    return stat.S_ISREG(path.stat().st_mode)


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


def keep_as(source: Path, spare: Path) -> None:
    """Give a file a second name, replacing what lay there: it outlives a new ``source``.

    Raises
    ------
    StorageError
    """
    try:
        # The old spare goes only once what stands in for it is sure to last.
        _disk.fsync_folder(spare.parent)
        remove_file(spare)
        _disk.link(source, spare)
        _disk.fsync_folder(spare.parent)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"expected to keep {source} as {spare} while it is replaced, but: "
            f"{error.strerror}; name another folder"
        ) from error


def remove_file(path: Path) -> None:
    """Delete a file if it is there.

    Raises
    ------
    StorageError
    """
    try:
        _disk.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(
            f"expected to delete {path}, but: {error.strerror}; make its folder writable"
        ) from error


def move_aside(source: Path, target: Path) -> Path | None:
    """Move a file, keeping what may lie at ``target``; returns where it went.

    None where it is gone: somebody else was faster.

    Raises
    ------
    StorageError
    """
    place, number = target, 1
    while place.exists():
        number += 1
        place = target.with_name(f"{target.name}.{number}")
    try:
        _make_folder(place.parent)
        _disk.rename(source, place)
        _disk.fsync_folder(place.parent)
        _disk.fsync_folder(source.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(source):
            return None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"expected to move {source} to {place}, but: {reason}; make both folders writable"
        ) from error
    return place


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one being written, or left by a writer that died."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files of dead writers; those of live ones stay.

    A writer on this host is dead when nobody holds the lock on its file; one on another host
    when, besides, the file has not changed for a day: locks do not reach everywhere.

    Returns
    -------
    int
        Number of files removed.
    """
    removed = 0
    for name in names_in(folder):
        match = _TEMPORARY.fullmatch(name)
        if match:
            removed += _remove_abandoned(folder / name, here=match["host"] == _host())
    return removed


def _remove_abandoned(path: Path, *, here: bool) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        is_old = time.time() - os.fstat(fd).st_mtime > _STALE_AFTER_S
        try:
            # Shared, for that needs no right to write; the writer's own lock is exclusive.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            here = False
        if not (here or is_old):
            return False
        # Under the lock: whoever made the file and has yet to lock it must find it locked or gone.
        _disk.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"
