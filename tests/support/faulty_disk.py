"""A disk that records every call, fails at one, or loses power right after one.

And the states that power loss may leave of what was done on it: :class:`JournalDisk`.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featpipe.base.disk import Disk, is_temporary


class PowerLoss(BaseException):
    """Nothing may run after it, so nothing may catch it."""


class FaultyDisk(Disk):
    """Records every call; fails at one, or loses power or is interrupted right after one."""

    def __init__(
        self,
        *,
        fail_at: int = -1,
        fail_with: BaseException | None = None,
        lose_power_after: int = -1,
        interrupt_after: int = -1,
        bytes_a_write: int = 2**30,
        syncs: bool = True,
    ) -> None:
        self.calls: list[str] = []
        self.arguments: list[tuple[Any, ...]] = []
        self._fail_at = fail_at
        self._fail_with = fail_with or OSError(errno.EIO, os.strerror(errno.EIO))
        self._lose_power_after = lose_power_after
        self._interrupt_after = interrupt_after
        self._bytes_a_write = bytes_a_write
        # What only this process looks at again need not wait for the real disk.
        self._syncs = syncs
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
        is_last = number == self._lose_power_after
        try:
            result = None if name == "close" else call(*arguments)
        except OSError:
            if not is_last:
                raise
            # A refusal is an answer too that nobody lives to see.
            self._dead = True
            raise PowerLoss from None
        if is_last:
            self._dead = True
            if name == "open":
                os.close(result)
            raise PowerLoss
        if number == self._interrupt_after:
            # Where a signal comes that waited for the call to end: nobody gets its result.
            raise KeyboardInterrupt
        return result

    def open(self, path: Path, mode: int) -> int:
        return self._step("open", super().open, path, mode)

    def lock(self, fd: int) -> None:
        self._step("lock", super().lock, fd)

    def share_lock(self, fd: int, *, wait: bool) -> None:
        self._step("share_lock", lambda fd: super(FaultyDisk, self).share_lock(fd, wait=wait), fd)

    def write(self, fd: int, data: memoryview) -> int:
        return self._step("write", super().write, fd, data[: self._bytes_a_write])

    def fsync(self, fd: int) -> None:
        self._step("fsync", super().fsync if self._syncs else _nothing, fd)

    def close(self, fd: int) -> None:
        self._step("close", super().close, fd)

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", super().rename, source, target)

    def link(self, source: Path, target: Path) -> None:
        self._step("link", super().link, source, target)

    def unlink(self, path: Path) -> None:
        self._step("unlink", super().unlink, path)

    def mkdir(self, folder: Path) -> None:
        self._step("mkdir", super().mkdir, folder)

    def rmdir(self, folder: Path) -> None:
        self._step("rmdir", super().rmdir, folder)

    def fsync_folder(self, folder: Path) -> None:
        self._step("fsync_folder", super().fsync_folder if self._syncs else _nothing, folder)


def _nothing(*_: Any) -> None:
    pass


Tree = dict[str, bytes | None]
"""Content of a folder: relative path to bytes, None for a folder."""


def tree_of(root: Path) -> Tree:
    """What lies in a folder."""
    return {
        str(path.relative_to(root)): None if path.is_dir() else path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def named(tree: Tree) -> Tree:
    """A tree without temporary files, whose names are never the same."""
    return {path: data for path, data in tree.items() if not is_temporary(Path(path).name)}


def build_tree(root: Path, tree: Tree) -> None:
    """Make a folder hold a tree."""
    root.mkdir(parents=True)
    for path, data in sorted(tree.items()):
        if data is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(data)


Operation = tuple[str, tuple[Any, ...]]


class JournalDisk(FaultyDisk):
    """Keeps what every call did below ``root``, in the order it was done.

    An operation is its name and arguments: relative paths, and a number for each open file.
    ``forgets`` names operations that are done but of which the journal, and so every state after
    a power loss, does not know: what a disk would be like that is not asked for them.
    """

    def __init__(self, root: Path, *, forgets: Sequence[str] = (), **options: Any) -> None:
        super().__init__(syncs=False, **options)
        self.root = root
        self.start = tree_of(root)
        self.operations: list[Operation] = []
        self._forgets = forgets
        self._number_of_fd: dict[int, int] = {}
        self._opened = 0

    def come_back(self) -> None:
        """The process that was cut is started again; what it did so far stays in the journal."""
        self._dead, self._lose_power_after = False, -1

    def forget_nothing(self) -> None:
        """From now on the journal knows of every operation."""
        self._forgets = ()

    def _step(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            is_new = name != "mkdir" or not arguments[0].exists()
            result = call(*arguments)
            if name not in ("lock", "share_lock", "close", *self._forgets) and is_new:
                self._note(name, arguments, result)
            return result

        return super()._step(name, call if name == "close" else noted, *arguments)

    def _note(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            self._opened += 1
            self._number_of_fd[result] = self._opened
            known: tuple[Any, ...] = (self._relative(arguments[0]), self._opened)
        elif name == "write":
            fd, data = arguments
            known = (self._number_of_fd[fd], bytes(data[:result]))
        elif name == "fsync":
            known = (self._number_of_fd[arguments[0]],)
        elif name == "fsync_folder" and not arguments[0].is_relative_to(self.root):
            return  # what lies above is as it was
        else:
            known = tuple(self._relative(path) for path in arguments)
        self.operations.append((name, known))

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.root))


@dataclass(eq=False)
class _File:
    """A file: what is surely on the disk, and the writes that may be."""

    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    pending: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(eq=False)
class _Change:
    """Entries of a folder that change together: name to file or folder, or None: it goes."""

    folder: _Folder
    entries: dict[str, Any]
    is_there: bool = False
    only_with: _Change | None = None


@dataclass(eq=False)
class _Folder:
    """A folder: its entries as programs see them, and as they are surely on the disk."""

    seen: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[_Change] = field(default_factory=list)


class PowerLossModel:
    """What a disk may hold when the power goes, by what POSIX promises and no more.

    Of what was written to a file since its last fsync, each write may be there, be missing, be
    cut short or be zeros. Of what changed in a folder since its last fsync, each change may be
    there or not. A rename inside one folder is one change; one into another folder is two, the
    file going from the old place only if it is at the new one, or the old folder was fsynced.
    """

    def __init__(self, start: Tree, operations: Sequence[Operation]) -> None:
        self._root = _Folder()
        self._files: dict[int, _File] = {}
        self._changes: list[_Change] = []
        for path, data in sorted(start.items()):
            node = _Folder() if data is None else _File(bytearray(data), len(data))
            folder, name = self._place(path)
            folder.seen[name] = folder.durable[name] = node
        for name, arguments in operations:
            getattr(self, f"_{name}")(*arguments)

    def seen(self) -> Tree:
        """What programs see while there is power."""
        tree: Tree = {}
        self._walk("", self._root, lambda f: f.seen, _everything, tree)
        return tree

    def after_power_loss(self, rng: random.Random) -> Tree:
        """One of the states that may be left."""
        kept = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        for change in self._changes:
            is_possible = change.only_with is None or change.only_with.is_there
            if change in change.folder.pending:
                change.is_there = is_possible and rng.random() < kept

        def entries(folder: _Folder) -> dict[str, Any]:
            found = dict(folder.durable)
            for change in folder.pending:
                if change.is_there:
                    found.update(change.entries)
            return found

        contents: dict[int, bytes] = {}

        def content(file: _File) -> bytes:
            # A file of two names has one content.
            if id(file) not in contents:
                contents[id(file)] = _lossy(file, rng)
            return contents[id(file)]

        tree: Tree = {}
        self._walk("", self._root, entries, content, tree)
        return tree

    def _walk(
        self,
        path: str,
        folder: _Folder,
        entries: Callable[[_Folder], dict[str, Any]],
        content: Callable[[_File], bytes],
        tree: Tree,
    ) -> None:
        for name, node in entries(folder).items():
            if isinstance(node, _Folder):
                tree[path + name] = None
                self._walk(f"{path}{name}/", node, entries, content, tree)
            elif node is not None:
                tree[path + name] = content(node)

    def _folder(self, path: str) -> _Folder:
        folder = self._root
        for part in Path(path).parts:
            folder = folder.seen[part]
        return folder

    def _place(self, path: str) -> tuple[_Folder, str]:
        return self._folder(str(Path(path).parent)), Path(path).name

    def _change(
        self, folder: _Folder, entries: dict[str, Any], only_with: _Change | None = None
    ) -> _Change:
        change = _Change(folder, entries, only_with=only_with)
        folder.seen.update(entries)
        folder.seen = {name: node for name, node in folder.seen.items() if node is not None}
        folder.pending.append(change)
        self._changes.append(change)
        return change

    def _open(self, path: str, number: int) -> None:
        self._files[number] = _File()
        folder, name = self._place(path)
        self._change(folder, {name: self._files[number]})

    def _write(self, number: int, data: bytes) -> None:
        file = self._files[number]
        file.pending.append((file.size, data))
        file.size += len(data)

    def _fsync(self, number: int) -> None:
        file = self._files[number]
        file.data = bytearray(_everything(file))
        file.pending = []

    def _rename(self, source: str, target: str) -> None:
        (old, old_name), (new, new_name) = self._place(source), self._place(target)
        node = old.seen[old_name]
        if old is new:
            self._change(new, {new_name: node, old_name: None})
        else:
            arrival = self._change(new, {new_name: node})
            self._change(old, {old_name: None}, only_with=arrival)

    def _link(self, source: str, target: str) -> None:
        (old, old_name), (new, new_name) = self._place(source), self._place(target)
        self._change(new, {new_name: old.seen[old_name]})

    def _unlink(self, path: str) -> None:
        folder, name = self._place(path)
        self._change(folder, {name: None})

    def _mkdir(self, path: str) -> None:
        folder, name = self._place(path)
        self._change(folder, {name: _Folder()})

    def _rmdir(self, path: str) -> None:
        self._unlink(path)

    def _fsync_folder(self, path: str) -> None:
        folder = self._folder(path)
        for change in folder.pending:
            change.is_there = True
            folder.durable.update(change.entries)
        folder.pending = []


def _everything(file: _File) -> bytes:
    data = bytearray(file.data)
    for offset, written in file.pending:
        _put(data, offset, written)
    return bytes(data)


def _lossy(file: _File, rng: random.Random) -> bytes:
    data = bytearray(file.data)
    whole = rng.choice((0.0, 0.5, 1.0))
    for offset, written in file.pending:
        fate = "there" if rng.random() < whole else rng.choice(("missing", "cut", "zeros"))
        if fate == "cut":
            written = written[: rng.randrange(len(written))]
        if fate == "zeros":
            written = bytes(len(written))
        if fate != "missing":
            _put(data, offset, written)
    return bytes(data)


def _put(data: bytearray, offset: int, written: bytes) -> None:
    # Before what was written to a later place lies nothing, which reads as zeros.
    data.extend(bytes(max(0, offset + len(written) - len(data))))
    data[offset : offset + len(written)] = written
