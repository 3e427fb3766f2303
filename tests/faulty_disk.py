"""A disk that records every call, fails at one, or loses power right after one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featpipe.disk import Disk


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

    def lock(self, fd: int) -> None:
        self._step("lock", super().lock, fd)

    def write(self, fd: int, data: memoryview) -> int:
        return self._step("write", super().write, fd, data[: self._bytes_a_write])

    def fsync(self, fd: int) -> None:
        self._step("fsync", super().fsync, fd)

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

    def fsync_folder(self, folder: Path) -> None:
        self._step("fsync_folder", super().fsync_folder, folder)
