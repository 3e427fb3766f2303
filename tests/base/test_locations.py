"""One way to the bytes of a picture, wherever they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featpipe.base.locations import Encoded, File, Location, Slice, fingerprint, read


@pytest.fixture
def archive(tmp_path: Path) -> str:
    path = tmp_path / "archive"
    path.write_bytes(b"0123456789")
    return str(path)


def test_bytes_are_read_from_a_file_a_part_of_one_and_memory(archive: str) -> None:
    assert read(File(archive)) == b"0123456789"
    assert read(Slice(archive, 3, 4)) == b"3456"
    assert read(Slice(archive, 10, 0)) == b""
    assert read(Encoded(b"png")) == b"png"


def test_a_slice_beyond_the_end_is_an_error_not_fewer_bytes(archive: str) -> None:
    with pytest.raises(OSError, match="the file ends too early"):
        read(Slice(archive, 8, 3))


@pytest.mark.parametrize("kind", [File, lambda path: Slice(path, 0, 1)])
def test_pipes_are_not_waited_for(kind: type[File], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read(kind(str(tmp_path / "pipe")))


@pytest.mark.parametrize("kind", [File, lambda path: Slice(path, 0, 1)])
def test_the_fingerprint_is_that_of_the_file(kind: type[File], archive: str) -> None:
    location: Location = kind(archive)
    before = fingerprint(location)
    assert before is not None and before == fingerprint(location)
    Path(archive).write_bytes(b"other")
    assert fingerprint(location) != before
    os.unlink(archive)
    assert fingerprint(location) is None


def test_what_is_in_memory_has_no_fingerprint() -> None:
    assert fingerprint(Encoded(b"png")) is None
