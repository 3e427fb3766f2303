"""Where the bytes of one picture are: in a file, in a part of one, or in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from featpipe.base.disk import file_fingerprint, read_regular


@dataclass(frozen=True, slots=True)
class File:
    """A picture that is a file of its own."""

    path: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A picture that is a part of a file, such as a member of an archive; ``length`` in bytes."""

    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture that is no part of any file as it is; ``data`` are the bytes that identify it."""

    data: bytes


Location = File | Slice | Encoded


def read(location: Location) -> bytes:
    """The picture's bytes.

    Raises
    ------
    OSError
        The file cannot be read, is no regular file, or ends before the slice does.
    """
    if isinstance(location, Encoded):
        return location.data
    if isinstance(location, File):
        return read_regular(Path(location.path))
    return read_regular(Path(location.path), offset=location.offset, length=location.length)


def fingerprint(location: Location) -> tuple[int, int, int] | None:
    """What is equal while the file of a picture has not changed.

    See :func:`featpipe.base.disk.file_fingerprint`. None where there is no file to look at: such a
    picture is known by its bytes alone.
    """
    if isinstance(location, Encoded):
        return None
    try:
        return file_fingerprint(os.stat(location.path))
    except OSError:
        return None
