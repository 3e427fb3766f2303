"""Tensors are written as the library safetensors writes them, and read without trust."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from safetensors.numpy import load, save
from support.faulty_disk import FaultyDisk

from featpipe.base import tensor_files
from featpipe.base.disk import use_disk
from featpipe.base.errors import StorageError
from featpipe.base.tensor_files import file_sha256, read_tensors, write_tensors

DTYPES = "u1 u2 u4 u8 i1 i2 i4 i8 f2 f4 f8 ?".split()
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: of_numpy.arrays(dtype, of_numpy.array_shapes(min_dims=0, min_side=0, max_side=5))
)
TENSORS = st.dictionaries(st.text(min_size=1, max_size=8).filter(str.isprintable), ARRAYS)


@given(tensors=TENSORS, block=st.integers(1, 64))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_bytes_are_those_of_safetensors(
    tensors: dict[str, np.ndarray], block: int, tmp_path: Path
) -> None:
    tensors.pop("__metadata__", None)
    before, tensor_files.BLOCK_BYTES = tensor_files.BLOCK_BYTES, block
    try:
        path = tmp_path / "file.safetensors"
        digest = write_tensors(path, tensors)
        expected = save({name: np.asarray(t, order="C") for name, t in tensors.items()})
        assert path.read_bytes() == expected
        assert digest == hashlib.sha256(expected).hexdigest() == file_sha256(path)
        found = read_tensors(path)
    finally:
        tensor_files.BLOCK_BYTES = before
    assert found.sha256 == digest
    assert {n: (t.dtype, t.shape, t.tobytes()) for n, t in found.tensors.items()} == {
        n: (t.dtype, t.shape, t.tobytes()) for n, t in tensors.items()
    }


def test_other_strides_and_byte_orders_are_stored_alike(tmp_path: Path) -> None:
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    given = {"turned": rows.T, "every other": rows[:, ::2], "big-endian": rows.astype(">f4")}
    write_tensors(tmp_path / "file", given)
    for name, tensor in load((tmp_path / "file").read_bytes()).items():
        assert np.array_equal(tensor, given[name])


def test_what_the_format_lacks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected numbers that safetensors has, found <U1"):
        write_tensors(tmp_path / "file", {"text": np.array(["a"])})
    assert [*tmp_path.iterdir()] == []


def test_writing_and_reading_take_the_memory_of_one_copy(tmp_path: Path) -> None:
    tensors = {name: np.zeros(2**22, np.float32) for name in "abc"}
    size = sum(t.nbytes for t in tensors.values())
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "file", tensors)
        assert tracemalloc.get_traced_memory()[1] < 0.1 * size
        tracemalloc.reset_peak()
        found = read_tensors(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()
    assert all(t.flags.writeable and t.flags.owndata for t in found.tensors.values())


def header_of(document: Any) -> bytes:
    text = json.dumps(document).encode()
    return len(text).to_bytes(8, "little") + text


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        (2**63).to_bytes(8, "little"),
        (100).to_bytes(8, "little") + b"{}",
        header_of([]),
        header_of({"a": 3}),
        (3).to_bytes(8, "little") + b"{a}",
        (10**5).to_bytes(8, "little") + b"[" * 10**5,
        header_of({"a": {**ONE, "dtype": "BF16"}}) + bytes(8),
        header_of({"a": {**ONE, "dtype": ["F32"]}}) + bytes(8),
        header_of({"a": {**ONE, "shape": [-2]}}) + bytes(8),
        header_of({"a": {**ONE, "shape": [True, 2]}}) + bytes(8),
        header_of({"a": {**ONE, "shape": [2.0]}}) + bytes(8),
        header_of({"a": {**ONE, "shape": [2**40]}}) + bytes(8),
        header_of({"a": {**ONE, "data_offsets": [0, 2**50], "shape": [2**48]}}) + bytes(8),
        header_of({"a": {**ONE, "data_offsets": [0]}}) + bytes(8),
        header_of({"a": {**ONE, "data_offsets": ["0", "8"]}}) + bytes(8),
        header_of({"a": {**ONE, "data_offsets": [4, 12]}}) + bytes(12),
        header_of({"a": ONE, "b": ONE}) + bytes(16),
        header_of({"a": ONE}) + bytes(7),
        header_of({"a": ONE}) + bytes(9),
        header_of({}) + bytes(1),
    ],
)
def test_what_is_no_file_of_tensors_is_refused_before_memory_is_taken(
    data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="expected"):
            read_tensors(tmp_path / "file")
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_metadata_of_other_writers_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(save({"a": np.arange(3.0)}, {"made": "elsewhere"}))
    assert read_tensors(tmp_path / "file").tensors["a"].tolist() == [0, 1, 2]


def test_a_folder_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "nothing"):
        for read in (read_tensors, file_sha256):
            with pytest.raises(OSError, match=f"{name}|directory"):
                read(tmp_path / name)


def test_a_file_that_another_process_deleted_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The lock of a new file is refused once: another process looks whether it is abandoned.
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", 16)
    disk = FaultyDisk(fail_at=1, fail_with=BlockingIOError())
    (tmp_path / "neighbour").write_bytes(b"")
    with use_disk(disk):
        digest = write_tensors(tmp_path / "file", {"a": np.arange(20.0)})
    assert disk.calls.count("open") == 2
    assert digest == file_sha256(tmp_path / "file")


def test_a_full_disk_names_the_room_that_all_blocks_need(tmp_path: Path) -> None:
    (tmp_path / "neighbour").write_bytes(b"")
    full = OSError(28, os.strerror(28))
    with use_disk(FaultyDisk(fail_at=2, fail_with=full)), pytest.raises(StorageError) as caught:
        write_tensors(tmp_path / "file", {"a": np.zeros(2**20, np.float32)})
    assert "expected to write 4.0 MiB to" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["neighbour"]
