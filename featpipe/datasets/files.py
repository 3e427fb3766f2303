"""Data set files: one HDF5 file per data set, replaced atomically.

A file holds columns of equal length and one JSON header. Paths are kept as the bytes that the
file system gave, so every name comes back unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.base.dataset_names import SHARD_MARK, check_file_name
from featpipe.base.disk import names_in, read_regular, write_atomically
from featpipe.base.errors import DamageError, NotFoundError, Reason, StorageError, other_version
from featpipe.base.hdf5 import read_number, read_text, write_text
from featpipe.base.ids import DIGEST_BYTES
from featpipe.datasets.dataset import SPLITS, Dataset, DatasetInfo, SourceInfo, Status

DATASET_VERSION = 2
"""Format of a data set with features that cover some splits alone. All others are written as 1,
which earlier versions read."""

_UNSEALED = hashlib.sha256(b"featpipe data set").hexdigest().encode()
"""Placeholder that the digest of the file is computed with; the digest then replaces it."""
_COLUMNS: dict[str, type[np.generic]] = {
    "label": np.int64,
    "split": np.int8,
    "image_sha256": np.uint8,
    "status": np.int8,
    "stat": np.int64,
}
_DECODING_ERRORS = (
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
)
"""What h5py and the JSON header raise if the bytes are no data set file."""


def dataset_path(cache: Path, name: str) -> Path:
    """Where a data set's file lies.

    Raises
    ------
    UsageError
        The name could leave the folder, or is not a plain file name.
    """
    check_file_name(name)
    return cache / "datasets" / f"{name}.h5"


def list_datasets(cache: Path, *, with_shards: bool = False) -> list[str]:
    """Names of the data sets of a cache, sorted; parts of sharded ones only if wanted."""
    files = names_in(cache / "datasets")
    names = sorted(name.removesuffix(".h5") for name in files if name.endswith(".h5"))
    return [name for name in names if with_shards or SHARD_MARK not in name]


def save_dataset(cache: Path, dataset: Dataset) -> Path:
    """Replace the data set's file atomically."""
    path = dataset_path(cache, dataset.name)
    write_atomically(path, _encode(dataset))
    return path


def load_dataset(cache: Path, name: str) -> Dataset:
    """Read a data set.

    Raises
    ------
    NotFoundError
        There is no such data set.
    DamageError
        The file is not a whole data set file of a known version, or it is another's.
    """
    path = dataset_path(cache, name)
    try:
        data = read_regular(path)
    except FileNotFoundError:
        known = ", ".join(list_datasets(cache)) or "none"
        raise NotFoundError(
            f"expected a data set '{name}' in {cache}, found: {known}; "
            f"make it with 'featpipe extract DATA --name {name}', or name another --cache"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {path}, but: {error.strerror}") from error
    try:
        dataset = _decode(data)
    except _DECODING_ERRORS as error:
        found = str(error).split("\n")[0] or type(error).__name__
        raise DamageError(
            f"expected a whole data set file in {path}, found: {found}; "
            "remove it and run the same 'featpipe extract' again: no features are lost"
        ) from error
    if dataset.name != name:
        raise DamageError(
            f"expected the data set '{name}' in {path}, found {dataset.name!r}; "
            "rename the file back to its own name"
        )
    return dataset


def _encode(dataset: Dataset) -> bytes:
    version = DATASET_VERSION if dataset.info.covers else 1
    return _pack(_header(dataset), _columns(dataset), version)


def _header(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "source": dataclasses.asdict(dataset.source),
        "classes": dataset.classes,
        "reasons": {str(row): list(reason) for row, reason in dataset.reasons.items()},
        "spaces": dataset.spaces,
        "info": dataset.info.as_json(),
    }


def _columns(dataset: Dataset) -> dict[str, np.ndarray]:
    encoded = [os.fsencode(path) for path in dataset.paths]
    columns = {name: np.asarray(getattr(dataset, name), kind) for name, kind in _COLUMNS.items()}
    columns["path_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
    columns["path_end"] = np.cumsum([len(path) for path in encoded], dtype=np.int64)
    return columns


def _pack(header: dict[str, Any], columns: dict[str, np.ndarray], version: int = 1) -> bytes:
    """Bytes of a data set file."""
    text = np.frombuffer(json.dumps(header).encode("ascii"), np.uint8)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v108")) as file:
        file.attrs["format_version"] = version
        write_text(file, "sha256", _UNSEALED.decode())
        for name, column in {**columns, "header": text}.items():
            file.create_dataset(name, data=column)
    unsealed = buffer.getvalue()
    return unsealed.replace(_UNSEALED, _digest(unsealed), 1)


def _decode(data: bytes) -> Dataset:
    with h5py.File(io.BytesIO(data), "r") as file:
        version = read_number(file, "format_version")
        if version not in (1, DATASET_VERSION):
            raise ValueError(other_version("format version", version, DATASET_VERSION))
        arrays = {}
        for name in (*_COLUMNS, "path_bytes", "path_end", "header"):
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"'{name}' is missing or a link")
            column = file[name]
            if not isinstance(column, h5py.Dataset):
                raise ValueError(f"'{name}' is not a data set")
            if column.is_virtual or column.external or column.chunks:
                raise ValueError(f"'{name}' is not one plain block")
            # HDF5 keeps texts of variable length in a heap, and loops for ever in a damaged one.
            if column.dtype.kind not in "iu":
                raise ValueError(f"'{name}' is {column.dtype}")
            if math.prod(column.shape) * column.dtype.itemsize > len(data):
                raise ValueError(f"'{name}' declares more than the file holds")
            arrays[name] = column[()]
        seal = read_text(file, "sha256").encode()
        if _digest(data.replace(seal, _UNSEALED, 1)) != seal:
            raise ValueError("its bytes do not have the digest in it")
    header = json.loads(arrays.pop("header").tobytes())
    blob, ends = arrays.pop("path_bytes").tobytes(), arrays.pop("path_end").tolist()
    paths = [os.fsdecode(blob[a:b]) for a, b in zip([0, *ends][:-1], ends, strict=True)]
    reasons = {int(row): _reason(reason) for row, reason in header.pop("reasons").items()}
    source = SourceInfo.from_json(header.pop("source"))
    info = DatasetInfo.from_json(header.pop("info"))
    dataset = Dataset(paths=paths, reasons=reasons, source=source, info=info, **header, **arrays)
    _check_content(dataset)
    return dataset


def _reason(value: Any) -> Reason:
    if not (isinstance(value, list) and [type(text) for text in value] == [str, str]):
        raise ValueError("a reason is not a stage and a text")
    return Reason(*value)


def _check_content(dataset: Dataset) -> None:
    """Refuse values without a meaning: a digest proves only that the bytes are unchanged."""
    n = len(dataset.paths)
    shapes = {"label": (n,), "split": (n,), "status": (n,), "stat": (n, 3)}
    shapes["image_sha256"] = (n, DIGEST_BYTES)
    for name, shape in shapes.items():
        column = getattr(dataset, name)
        if column.shape != shape or column.dtype != _COLUMNS[name]:
            raise ValueError(f"'{name}' is {column.dtype} {column.shape}")
    for name, top in (
        ("label", len(dataset.classes)),
        ("split", len(SPLITS)),
        ("status", Status.QUARANTINED + 1),
    ):
        column = getattr(dataset, name)
        if n and not (column.min() >= -(name != "status") and column.max() < top):
            raise ValueError(f"'{name}' has values without a meaning")
    for name in ("classes", "spaces"):
        items = getattr(dataset, name)
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"'{name}' is no list of texts")
    if set(dataset.reasons) != set(np.flatnonzero(~dataset.usable).tolist()):
        raise ValueError("its reasons are not those of its quarantined pictures")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
