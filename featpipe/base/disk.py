"""The only place that writes to the cache: whole files, atomically, or not at all.

A file is written under a temporary name in its final folder, fsynced, renamed, and the folder
is fsynced, in that order; a crash at any instant leaves either the old state or the new one.
The writer locks the temporary file until it is renamed. The operating system releases the lock
when the writer ends for any reason, so an unlocked temporary file is abandoned.
Every write operation goes through :class:`Disk`, so that a test can interrupt, fail or record it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import re
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from featpipe.base.errors import StorageError

_TEMPORARY = re.compile(r"\.tmp-(?P<host>.+)-[0-9a-f]{32}")
_REMOVED = ".removed-"
"""How the name of a folder begins that is being deleted."""
_NO_PERMISSION = (errno.EROFS, errno.EACCES, errno.EPERM)
_COLLECTED_BYTES = 2**20
"""Bytes that are written at once where they come in small pieces."""
_STALE_AFTER_S = 24 * 3600.0
"""Age after which another host's unlocked temporary file counts as abandoned."""


class Disk:
    """The operating system's calls, one method each, so that tests can inject faults."""

    def open(self, path: Path, mode: int) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)

    def lock(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def share_lock(self, fd: int, *, wait: bool) -> None:
        fcntl.flock(fd, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))

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

    def rmdir(self, folder: Path) -> None:
        folder.rmdir()

    def fsync_folder(self, folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_disk = Disk()


@contextlib.contextmanager
def use_disk(disk: Disk) -> Iterator[None]:
    """Send every write of this process through ``disk``; tests use it to inject faults."""
    global _disk
    previous, _disk = _disk, disk
    try:
        yield
    finally:
        _disk = previous


def write_atomically(target: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make ``target`` hold exactly ``data``, durably, replacing what was there.

    Raises
    ------
    StorageError
        The system refused the write (disk full, read-only, no permission). ``target`` is
        unchanged, or already new if only the last step failed: the fsync of its folder.
    """
    with writing_atomically(target, size=len(data), mode=mode) as stream:
        stream.write(data)


@contextlib.contextmanager
def writing_atomically(
    target: Path, *, size: int = 0, mode: int = 0o644
) -> Iterator[TemporaryStream]:
    """Open a file that becomes ``target``, durably, when the block ends without an error.

    Parameters
    ----------
    target : Path
    size : int
        Room that will be needed, bytes, for messages; 0 where nobody knows.
    mode : int
        Permissions.

    Raises
    ------
    StorageError
        As :func:`write_atomically`.
    """
    stream: TemporaryStream | None = None
    try:
        _make_folder(target.parent)
        remove_leftovers(target.parent)
        while stream is None:
            temporary = target.parent / f".tmp-{_host()}-{uuid.uuid4().hex}"
            with _temporary_file(temporary, mode) as fd:
                if not _lock_temporary(fd):
                    continue
                stream = TemporaryStream(fd, temporary)
                yield stream
                stream.drain()
                _disk.fsync(fd)
                _disk.rename(temporary, target)
        _disk.fsync_folder(target.parent)
    except StorageError:
        raise
    except OSError as error:
        needed = max(size, stream.size if stream is not None else 0)
        raise _storage_error(error, target, needed) from error


@contextlib.contextmanager
def _temporary_file(path: Path, mode: int) -> Iterator[int]:
    """Open a new file; it is deleted if an error ends the block."""
    fd = -1
    try:
        fd = _disk.open(path, mode)
        yield fd
    except FileExistsError:
        raise  # another writer's file has this name: do not delete it
    except BaseException:
        # Delete by name: an interrupt may arrive after the file exists but before ``fd`` is set.
        with contextlib.suppress(OSError):
            _disk.unlink(path)
        raise
    finally:
        if fd >= 0:
            _disk.close(fd)


class TemporaryStream(io.RawIOBase):
    """The bytes of a file that is being written, from first to last; small ones are collected.

    Attributes
    ----------
    size : int
        Bytes so far.
    path : Path
        Where they can be read once they are drained, until the file gets its final name.
    """

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__()
        self.size, self.path = 0, path
        self._fd, self._collected = fd, bytearray()

    def writable(self) -> bool:
        """Whether bytes can be written."""
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    def write(self, data: Any) -> int:
        """Write bytes, or anything that has a buffer of them."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        self.size += len(view)
        if len(self._collected) + len(view) < _COLLECTED_BYTES:
            self._collected += view
        else:
            self.drain()
            _write_all(self._fd, view)
        return len(view)

    def drain(self) -> None:
        """Hand what was collected to the system."""
        collected, self._collected = bytes(self._collected), bytearray()
        _write_all(self._fd, memoryview(collected))


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents durably: a power loss does not remove them."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        _disk.mkdir(folder)
        _disk.fsync_folder(folder.parent)
    elif not names_in(folder):
        # The process that created it may have been killed before it fsynced the parent folder.
        with contextlib.suppress(PermissionError):
            _disk.fsync_folder(folder.parent)


def _lock_temporary(fd: int) -> bool:
    """Lock a new temporary file; False if another process is deleting or has deleted it."""
    try:
        _disk.lock(fd)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems have no locks; there, only old files count as abandoned.
        return True
    return os.fstat(fd).st_nlink > 0


def _write_all(fd: int, rest: memoryview) -> None:
    while rest:
        rest = rest[_disk.write(fd, rest) :]


def _storage_error(error: OSError, target: Path, size: int) -> StorageError:
    need = f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = f"make room for at least {need} and run the same command again; nothing is lost"
    elif error.errno in _NO_PERMISSION:
        advice = "make the folder writable, or name another one with --cache or --out"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        advice = "a file lies where a folder is needed; name another folder"
    else:
        advice = "check the disk and run the same command again; what was stored before is whole"
    return StorageError(f"expected to write {need} to {target}, but: {reason}; {advice}")


def names_in(folder: Path) -> list[str]:
    """Sorted names of a folder's entries; empty if the folder does not exist.

    Raises
    ------
    StorageError
        The folder cannot be listed; ``Path.glob`` would report it as empty.
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

    Programs can set the modification time but not the change time. So the change time also
    reveals a replacement by a file of the same size and modification time.
    """
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def is_regular(path: Path) -> bool:
    """Whether ``path`` is a regular file; opening a pipe would block.

    Raises
    ------
    OSError
        The path does not exist or may not be examined.
    """
    return stat.S_ISREG(path.stat().st_mode)


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file to read it.

    Raises
    ------
    OSError
        The file cannot be opened, or is a folder, a device or a pipe; reading a pipe could block.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        kind = os.fstat(fd).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        yield file


def read_regular(path: Path, *, offset: int = 0, length: int | None = None) -> bytes:
    """The bytes of a regular file, or ``length`` of them from ``offset`` on.

    Raises
    ------
    OSError
        The file cannot be read, ends before it holds ``length`` bytes, or is a folder, a device or
        a pipe; reading a pipe could block.
    """
    with open_regular(path) as file:
        file.seek(offset)
        data = file.read(length)
        if length is not None and len(data) < length:
            raise OSError(errno.EIO, "the file ends too early", str(path))
        return data


def keep_as(source: Path, spare: Path) -> None:
    """Hard-link ``source`` as ``spare``, so that its content survives a new ``source``.

    An existing ``spare`` is replaced.

    Raises
    ------
    StorageError
        The file system refused a step, for example because it has no hard links.
    """
    try:
        # Make the name of ``source`` durable before the old spare is deleted.
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
    """Delete a file if it exists.

    Raises
    ------
    StorageError
        The file cannot be deleted.
    """
    try:
        _disk.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(
            f"expected to delete {path}, but: {error.strerror}; make its folder writable"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make what changed in a folder durable; nothing is done if the folder does not exist.

    Raises
    ------
    StorageError
    """
    try:
        _disk.fsync_folder(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(
            f"expected to make {folder} durable, but: {error.strerror}; check the disk and run "
            "the same command again"
        ) from error


def remove_tree(folder: Path) -> None:
    """Delete a folder with all that is in it; links in it are deleted, not followed.

    It is renamed first: other processes find all of it or nothing. If the process dies in
    between, :func:`remove_remains` deletes the rest.

    Raises
    ------
    StorageError
        The file system refused a step.
    """
    doomed = folder.with_name(f"{_REMOVED}{uuid.uuid4().hex}")
    try:
        _disk.rename(folder, doomed)
        _disk.fsync_folder(folder.parent)
        _delete(doomed)
    except OSError as error:
        raise _not_deleted(error, folder) from error


def remove_remains(parent: Path) -> None:
    """Delete what an interrupted :func:`remove_tree` left in a folder; raises as it does."""
    for name in names_in(parent):
        if name.startswith(_REMOVED):
            try:
                _delete(parent / name)
            except OSError as error:
                raise _not_deleted(error, parent / name) from error


def _delete(folder: Path) -> None:
    for name in names_in(folder):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            _delete(path)
        else:
            _disk.unlink(path)
    _disk.rmdir(folder)


def _not_deleted(error: OSError, folder: Path) -> StorageError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return StorageError(
        f"expected to delete {folder}, but: {reason}; make it and its parent folder writable, "
        "and run 'featpipe cache gc'"
    )


@contextlib.contextmanager
def shared_lock(path: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that others may share, but that excludes :func:`exclusive_lock`.

    Where the lock file may not be created, or the file system has no locks, nothing is held.

    Parameters
    ----------
    path : Path
        The lock file; made if it is missing.
    on_wait : callable
        Called before waiting for a process that holds the lock exclusively.

    Raises
    ------
    StorageError
        The lock file cannot be made for another reason than a missing permission.
    """
    try:
        fd = _open_lock(path)
    except OSError as error:
        if error.errno not in _NO_PERMISSION:
            raise _storage_error(error, path, 0) from error
        fd = -1
    try:
        if fd >= 0:
            _share(fd, on_wait)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _share(fd: int, on_wait: Callable[[], None]) -> None:
    try:
        _disk.share_lock(fd, wait=False)
    except BlockingIOError:
        on_wait()
        with contextlib.suppress(OSError):
            _disk.share_lock(fd, wait=True)
    except OSError:
        pass  # A file system without locks; there, nobody gets the exclusive lock either.


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold a lock alone.

    Raises
    ------
    BlockingIOError
        Another process holds it, or this process does elsewhere.
    StorageError
        The lock file cannot be made, or the file system has no locks.
    """
    try:
        fd = _open_lock(path)
    except OSError as error:
        raise _storage_error(error, path, 0) from error
    try:
        try:
            _disk.lock(fd)
        except BlockingIOError:
            raise
        except OSError as error:
            raise StorageError(
                f"expected a file system with locks below {path.parent}, but: {error.strerror}; "
                "without them nobody can tell whether the cache is in use"
            ) from error
        yield
    finally:
        os.close(fd)


def _open_lock(path: Path) -> int:
    """Open a lock file, for writing where that is allowed: network file systems ask for it."""
    flags = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags | os.O_RDWR)
        except FileNotFoundError:
            _make_folder(path.parent)
            with contextlib.suppress(FileExistsError):
                _disk.close(_disk.open(path, 0o666))
        except OSError as error:
            if error.errno not in _NO_PERMISSION:
                raise
            return os.open(path, flags | os.O_RDONLY)


def move_aside(source: Path, target: Path) -> Path | None:
    """Move a file or folder to ``target``, or to ``<target>.2``, … if that exists.

    Returns
    -------
    Path or None
        The new path; None if another process has already moved or deleted ``source``.

    Raises
    ------
    StorageError
        The file system refused the move.
    """
    destination, number = target, 1
    while destination.exists():
        number += 1
        destination = target.with_name(f"{target.name}.{number}")
    try:
        _make_folder(destination.parent)
        _disk.rename(source, destination)
        _disk.fsync_folder(destination.parent)
        _disk.fsync_folder(source.parent)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(source):
            return None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(
            f"expected to move {source} to {destination}, but: {reason}; make both folders writable"
        ) from error
    return destination


def is_temporary(name: str) -> bool:
    """Whether this is the name of a temporary file, in use or abandoned."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> int:
    """Delete abandoned temporary files of a folder; files of running writers stay.

    A temporary file of this host is abandoned if no process holds its lock. A file of another
    host, or on a file system without locks, must also be unchanged for a day, because its
    writer's lock may not be visible here.

    Returns
    -------
    int
        Number of files removed.
    """
    removed = 0
    for name in names_in(folder):
        match = _TEMPORARY.fullmatch(name)
        if match:
            removed += _remove_abandoned(folder / name, lock_suffices=match["host"] == _host())
    return removed


def _remove_abandoned(path: Path, *, lock_suffices: bool) -> bool:
    """Delete a temporary file if it is unlocked and, unless ``lock_suffices``, also old."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        is_old = time.time() - os.fstat(fd).st_mtime > _STALE_AFTER_S
        try:
            # A shared lock needs no write permission and conflicts with the writer's exclusive one.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            lock_suffices = False
        if not (lock_suffices or is_old):
            return False
        # Delete while holding the lock: a writer that has not locked its new file yet then
        # finds it locked or deleted, and starts again with another file.
        _disk.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"
