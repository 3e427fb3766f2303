"""Segments: what a good one holds, and every way of lying in one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import resource
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, StorageError
from featpipe.store import segments
from featpipe.store.segments import (
    build_segment,
    file_digest,
    read_segment,
    row_checksums,
    write_segment,
)

SPACE = small_space()
ROWS = np.arange(12, dtype=np.float16).reshape(3, 4)
IDS = image_ids("a", "b", "c")
PROVENANCE = {"torch": "2.x", "host": "node"}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A whole segment of three rows."""
    return write_segment(tmp_path, build_segment(SPACE, IDS, ROWS, PROVENANCE))


def test_any_hdf5_reader_opens_a_segment(good: Path) -> None:
    with h5py.File(good) as file:
        assert set(file) == {"features", "image_sha256", "crc32"}
        features = file["features"]
        assert features.dtype == np.float16
        assert np.array_equal(features[()], ROWS)
        assert features.chunks is None
        assert features.compression is None
        assert file["image_sha256"].dtype == np.uint8
        assert np.array_equal(file["image_sha256"][()], IDS)
        assert file["crc32"].dtype == np.uint32
        assert file["crc32"][()].tolist() == [zlib.crc32(row.tobytes()) for row in ROWS]


def test_a_segment_says_what_it_is(good: Path) -> None:
    with h5py.File(good) as file:
        attributes = {
            key: value.decode() if isinstance(value, bytes) else value
            for key, value in file.attrs.items()
        }
    assert attributes["format_version"] == 1
    assert attributes["space"] == SPACE.canonical_json
    assert attributes["space_id"] == SPACE.id
    assert json.loads(attributes["provenance"]) == PROVENANCE


def test_no_attribute_lies_in_the_global_heap(good: Path) -> None:
    # HDF5 2.0 walks a damaged heap for ever, inside C, where no interrupt reaches it; strings
    # of a fixed length lie in the attribute itself.
    with h5py.File(good) as file:
        kinds = {name: file.attrs.get_id(name).get_type() for name in file.attrs}
        text = {
            name: kind for name, kind in kinds.items() if isinstance(kind, h5py.h5t.TypeStringID)
        }
        assert len(text) == 3
        assert not [name for name, kind in text.items() if kind.is_variable_str()]


def test_reading_a_segment_gives_what_a_map_needs(good: Path) -> None:
    segment = read_segment(good, SPACE)
    assert segment.path == good
    assert np.array_equal(segment.ids, IDS)
    assert segment.crc32.tolist() == [zlib.crc32(row.tobytes()) for row in ROWS]
    raw = good.read_bytes()[segment.offset : segment.offset + ROWS.nbytes]
    assert raw == ROWS.tobytes()


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_rows_of_any_shape_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from(["float16", "float32"]))
    shape = data.draw(array_shapes(max_dims=3, max_side=4))
    n = data.draw(st.integers(1, 5))
    # Any bits, not-a-numbers with odd payloads included.
    raw = data.draw(arrays(np.uint8, (n, *shape, np.dtype(dtype).itemsize)))
    rows = raw.view(dtype)[..., 0]
    space = small_space(shape=shape, dtype=dtype)
    ids = image_ids(*range(n))
    path = write_segment(tmp_path_factory.mktemp("rows"), build_segment(space, ids, rows, {}))
    segment = read_segment(path, space)
    mapped = np.memmap(path, dtype, "r", segment.offset, rows.shape)
    assert mapped.tobytes() == rows.tobytes()
    assert np.array_equal(segment.ids, ids)
    assert segment.crc32.tolist() == [zlib.crc32(row.tobytes()) for row in rows]


def test_checksums_do_not_depend_on_the_layout_in_memory() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    expected = [zlib.crc32(row.tobytes()) for row in rows]
    assert row_checksums(rows).tolist() == expected
    assert row_checksums(np.asfortranarray(rows)).tolist() == expected
    assert row_checksums(np.repeat(rows, 2, axis=0)[::2]).tolist() == expected
    assert row_checksums(rows).dtype == np.uint32


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        (IDS, ROWS.astype(np.float32)),
        (IDS, ROWS[:, :3]),
        (IDS, ROWS.reshape(3, 2, 2)),
        (IDS[:2], ROWS),
    ],
)
def test_rows_that_do_not_fit_the_space_are_never_written(
    ids: np.ndarray, rows: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        build_segment(SPACE, ids, rows, {})


def test_a_name_is_the_digest_of_the_bytes(good: Path) -> None:
    assert good.name == hashlib.sha256(good.read_bytes()).hexdigest() + ".h5"
    assert file_digest(good) == good.stem


def test_a_segment_is_immutable(good: Path) -> None:
    assert good.stat().st_mode & 0o777 == 0o444


def test_a_damaged_file_of_the_same_name_is_no_reason_not_to_write(good: Path) -> None:
    data = good.read_bytes()
    good.chmod(0o644)
    good.write_bytes(data[:-1] + b"x")
    assert write_segment(good.parent, data) == good
    assert good.read_bytes() == data


def test_the_same_rows_are_the_same_file_and_are_written_once(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a file that is there was written again")

    data = build_segment(SPACE, IDS, ROWS, PROVENANCE)
    monkeypatch.setattr(segments, "write_atomically", never)
    assert write_segment(good.parent, data) == good


# Hostile files. Each starts from a file that is accepted and changes one thing.


def craft(path: Path, change: Callable[[h5py.File], None]) -> Path:
    with h5py.File(path, "w") as file:
        with h5py.File(io.BytesIO(build_segment(SPACE, IDS, ROWS, {}))) as template:
            for name, value in template.attrs.items():
                file.attrs[name] = value
            for name, dataset in template.items():
                file.create_dataset(name, data=dataset[()])
        change(file)
    return path


def replace(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Keep the values unless ``data`` is given, and store them in another way."""

    def change(file: h5py.File) -> None:
        data = file[name][()]
        del file[name]
        file.create_dataset(name, **{"data": data, **options})

    return change


def without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def linked(name: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.move(name, "moved")
        file[name] = link

    return change


def external_storage(file: h5py.File) -> None:
    folder = Path(file.filename).parent
    (folder / "raw").write_bytes(ROWS.tobytes())
    del file["features"]
    file.create_dataset(
        "features", ROWS.shape, ROWS.dtype, external=[(str(folder / "raw"), 0, ROWS.nbytes)]
    )


def virtual(file: h5py.File) -> None:
    file.move("features", "moved")
    layout = h5py.VirtualLayout(ROWS.shape, ROWS.dtype)
    layout[:] = h5py.VirtualSource(".", "moved", ROWS.shape)
    file.create_virtual_dataset("features", layout)


def group(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features")


def named_type(file: h5py.File) -> None:
    del file["features"]
    file["features"] = np.dtype("float16")


def declared_only(file: h5py.File) -> None:
    # Space that was promised and never allocated: reading gives zeros that nobody computed.
    del file["features"]
    file.create_dataset("features", (10**12, 4), np.float16)


def null_space(file: h5py.File) -> None:
    del file["features"]
    file["features"] = h5py.Empty("float16")


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if value is None:
            del file.attrs[name]
        elif isinstance(file.attrs[name], bytes):
            file.attrs[name] = np.bytes_(value)
        else:
            file.attrs[name] = value

    return change


PLAIN = "not one plain, contiguous block"
HOSTILE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external storage": (external_storage, PLAIN),
    "virtual": (virtual, PLAIN),
    "group": (group, "'features' is not a data set"),
    "named type": (named_type, "'features' is not a data set"),
    "declared only": (declared_only, "declares 8000000000000 bytes, more than the file holds"),
    "null space": (null_space, "expected a whole segment"),
    "scalar": (replace("features", data=np.float16(1)), r"features are float16 \(\)"),
    "narrow rows": (replace("features", data=ROWS[:, :3]), r"features are float16 \(3, 3\)"),
    "another rank": (replace("features", data=ROWS.reshape(3, 2, 2)), "features are float16"),
    "another dtype": (replace("features", data=ROWS.astype("f4")), "features are float32"),
    "another kind": (replace("features", data=ROWS.astype("i2")), "features are int16"),
    "another byte order": (replace("features", data=ROWS.astype(">f2")), PLAIN),
    "strings": (replace("features", data=np.array([b"x"] * 3)), PLAIN),
    "fewer ids": (replace("image_sha256", data=IDS[:2]), "image ids are uint8"),
    "short ids": (replace("image_sha256", data=IDS[:, :31].copy()), "image ids are uint8"),
    "signed ids": (replace("image_sha256", data=IDS.view(np.int8)), "image ids are int8"),
    "fewer checksums": (replace("crc32", data=np.zeros(2, np.uint32)), "checksums are uint32"),
    "wide checksums": (replace("crc32", data=np.zeros(3, np.uint64)), "checksums are uint64"),
    "newer format": (attribute("format_version", 2), "format version 2; this featpipe reads 1"),
    "no format": (attribute("format_version", None), "expected a whole segment"),
    "odd format": (attribute("format_version", "one"), "expected a whole segment"),
    "many formats": (attribute("format_version", [1, 1]), "expected a whole segment"),
    "no space": (attribute("space", None), "expected a whole segment"),
    "no space id": (attribute("space_id", None), "expected a whole segment"),
    "another space id": (attribute("space_id", "00" * 32), "another feature space"),
    "another space": (attribute("space", small_space(view=1).canonical_json), "another feature"),
}
for _name in ("features", "image_sha256", "crc32"):
    HOSTILE |= {
        f"no {_name}": (without(_name), f"'{_name}' is missing"),
        f"soft link {_name}": (linked(_name, h5py.SoftLink("/moved")), f"'{_name}' is missing or"),
        f"external link {_name}": (
            linked(_name, h5py.ExternalLink("other.h5", f"/{_name}")),
            f"'{_name}' is missing or a link",
        ),
        f"chunked {_name}": (replace(_name, chunks=True), PLAIN),
        f"compressed {_name}": (replace(_name, compression="gzip"), PLAIN),
        f"filtered {_name}": (replace(_name, fletcher32=True), PLAIN),
    }


def test_the_file_the_hostile_ones_start_from_is_accepted(tmp_path: Path) -> None:
    # Without this, every refusal below could have another reason.
    segment = read_segment(craft(tmp_path / "x.h5", lambda file: None), SPACE)
    assert np.array_equal(segment.ids, IDS)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path: Path, case: str) -> None:
    change, message = HOSTILE[case]
    # The target of the external links is a good segment: following them would succeed.
    craft(tmp_path / "other.h5", lambda file: None)
    path = craft(tmp_path / "x.h5", change)
    with pytest.raises(DamageError, match=message) as caught:
        read_segment(path, SPACE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_segment_of_another_space_is_refused(good: Path) -> None:
    with pytest.raises(DamageError, match="belongs to another feature space than tiny-block1_pool"):
        read_segment(good, small_space(view=1))


def test_a_file_cut_anywhere_is_refused(good: Path, tmp_path: Path) -> None:
    data = good.read_bytes()
    cut = tmp_path / "cut.h5"
    for size in [0, 1, 7, 8, 100, *range(512, len(data), 997), len(data) - 1]:
        cut.write_bytes(data[:size])
        with pytest.raises(DamageError, match="expected a whole segment"):
            read_segment(cut, SPACE)


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_bytes(b"PK\3\4" * 1000)
    with pytest.raises(DamageError, match="file signature not found"):
        read_segment(tmp_path / "x.h5", SPACE)


def test_a_file_that_may_not_be_read_is_a_storage_error(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(segments.h5py, "File", refuse)
    with pytest.raises(StorageError, match=r"expected to read .*Permission denied"):
        read_segment(good, SPACE)


def test_too_many_open_files_is_no_damage(good: Path) -> None:
    # The advice for damage is to remove the file: wrong for EMFILE, EIO, ENOMEM, ESTALE.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(StorageError, match="Too many open files"):
            read_segment(good, SPACE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_reading_takes_no_lock(good: Path) -> None:
    # Readers and writers never wait for each other; many network file systems cannot lock.
    with open(good, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert len(read_segment(good, SPACE).ids) == 3
