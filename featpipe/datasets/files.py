"""Data set files: the frozen list of samples, and what was seen of each file on disk.

One HDF5 file per data set: columns of equal length, and one JSON header. Paths are kept as the
bytes the file system gave, so no name is too strange to come back.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featpipe.base.disk import names_in, read_regular, write_atomically
from featpipe.base.errors import DamageError, NotFoundError, StorageError, other_version
from featpipe.base.hdf5 import read_number, read_text, write_text
from featpipe.base.ids import DIGEST_BYTES
from featpipe.base.names import SHARD_MARK, check_file_name
from featpipe.base.space import FeatureSpace

DATASET_VERSION = 1
SPLITS = ("train", "val", "test")
NO_SPLIT = -1
NO_LABEL = -1
OK, QUARANTINED = 0, 1

_UNSEALED = hashlib.sha256(b"featpipe data set").hexdigest().encode()
"""Stands where the digest of the file will, while that is taken: not one bit is left out."""
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
"""What h5py and a header of another form raise on bytes that are no data set file."""


@dataclass
class Dataset:
    """A named, frozen list of samples.

    Attributes
    ----------
    name : str
    source : dict
        What the list was read from (``spec``, ``root``, …): enough to read a picture again.
    classes : list of str
        Class names, sorted; labels index into it.
    paths : list of str
        Relative to the source's root; bytes that are not UTF-8 as surrogate escapes.
    label : ndarray of int64, shape (n,)
        Class index, -1 where unlabelled.
    split : ndarray of int8, shape (n,)
        Index into ``SPLITS``, -1 where there is none.
    image_sha256 : ndarray of uint8, shape (n, 32)
        Image ids; zero where the file could not even be read.
    status : ndarray of int8, shape (n,)
        0 usable, 1 quarantined.
    stat : ndarray of int64, shape (n, 3)
        Size, modification and change time (ns) when the id was taken; -1 where not to be trusted.
    reasons : dict
        Row → ``[stage, reason]`` for quarantined rows.
    spaces : list of str
        Canonical JSON of the feature spaces that hold every usable row.
    info : dict
        Split policy, decoder version, versions and time; for people and for cache decisions.
    """

    name: str
    source: dict[str, Any]
    classes: list[str]
    paths: list[str]
    label: np.ndarray
    split: np.ndarray
    image_sha256: np.ndarray
    status: np.ndarray
    stat: np.ndarray
    reasons: dict[int, list[str]] = field(default_factory=dict)
    spaces: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def usable(self) -> np.ndarray:
        """Which rows have features: (n,) bool."""
        usable: np.ndarray = self.status == OK
        return usable

    @property
    def split_names(self) -> list[str]:
        """The splits that have at least one usable row, in the order train, val, test."""
        here = set(self.split[self.usable].tolist())
        return [name for number, name in enumerate(SPLITS) if number in here]

    def in_split(self, split: str) -> np.ndarray:
        """Row numbers of the usable samples of a split (``all`` for every one).

        Raises
        ------
        NotFoundError
            The data set has no such split.
        """
        if split == "all":
            return np.flatnonzero(self.usable)
        if split not in self.split_names:
            found = ", ".join(self.split_names) or "none"
            raise NotFoundError(
                f"expected a split '{split}' in data set '{self.name}', found: {found}; "
                "name one of those, or 'all'"
            )
        return np.flatnonzero(self.usable & (self.split == SPLITS.index(split)))

    def describe(self) -> dict[str, Any]:
        """The data set in figures, ready for JSON."""
        splits = {name: len(self.in_split(name)) for name in self.split_names}
        return {
            "dataset": self.name,
            "source": self.source["spec"],
            "pictures": len(self),
            "quarantined": len(self) - int(self.usable.sum()),
            "splits": splits,
            "classes": self.classes,
            "spaces": [FeatureSpace.from_json(text).name for text in self.spaces],
            "sha256": self.digest(),
        }

    def digest(self) -> str:
        """SHA-256 (hex) of what the list means: ids, labels, splits, class names."""
        return hashlib.sha256(
            json.dumps([self.classes]).encode()
            + self.image_sha256.tobytes()
            + self.label.astype("<i8").tobytes()
            + self.split.tobytes()
            + self.status.tobytes()
        ).hexdigest()


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
    header = {
        "name": dataset.name,
        "source": dataset.source,
        "classes": dataset.classes,
        "reasons": {str(row): reason for row, reason in dataset.reasons.items()},
        "spaces": dataset.spaces,
        "info": dataset.info,
    }
    encoded = [os.fsencode(path) for path in dataset.paths]
    arrays = {name: np.asarray(getattr(dataset, name), kind) for name, kind in _COLUMNS.items()}
    arrays["path_bytes"] = np.frombuffer(b"".join(encoded), np.uint8)
    arrays["path_end"] = np.cumsum([len(path) for path in encoded], dtype=np.int64)
    arrays["header"] = np.frombuffer(json.dumps(header).encode("ascii"), np.uint8)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("earliest", "v108")) as file:
        file.attrs["format_version"] = DATASET_VERSION
        write_text(file, "sha256", _UNSEALED.decode())
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    unsealed = buffer.getvalue()
    return unsealed.replace(_UNSEALED, _digest(unsealed), 1)


def _decode(data: bytes) -> Dataset:
    with h5py.File(io.BytesIO(data), "r") as file:
        version = read_number(file, "format_version")
        if version != DATASET_VERSION:
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
            # Texts of any length lie in a heap; a damaged one HDF5 walks for ever.
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
    reasons = {int(row): reason for row, reason in header.pop("reasons").items()}
    dataset = Dataset(paths=paths, reasons=reasons, **header, **arrays)
    _check_content(dataset)
    return dataset


def _check_content(dataset: Dataset) -> None:
    """Refuse what is whole but cannot be meant: anyone can write a matching digest."""
    n = len(dataset.paths)
    shapes = {"label": (n,), "split": (n,), "status": (n,), "stat": (n, 3)}
    shapes["image_sha256"] = (n, DIGEST_BYTES)
    for name, shape in shapes.items():
        column = getattr(dataset, name)
        if column.shape != shape or column.dtype != _COLUMNS[name]:
            raise ValueError(f"'{name}' is {column.dtype} {column.shape}")
    for name, top in (("label", len(dataset.classes)), ("split", len(SPLITS)), ("status", 2)):
        column = getattr(dataset, name)
        if n and not (column.min() >= -(name != "status") and column.max() < top):
            raise ValueError(f"'{name}' has values without a meaning")
    for name in ("classes", "spaces"):
        items = getattr(dataset, name)
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise ValueError(f"'{name}' is no list of texts")
    source, weights = dataset.source, dataset.info.get("weights", {})
    if not all(isinstance(source.get(key, ""), str) for key in ("kind", "spec", "root")):
        raise ValueError("its source is not named")
    if not all(isinstance(name, str) for name in dict(weights).values()):
        raise ValueError("the weights of its features are not named")
    if set(dataset.reasons) != set(np.flatnonzero(~dataset.usable).tolist()):
        raise ValueError("its reasons are not those of its quarantined pictures")
    for reason in dataset.reasons.values():
        if not (isinstance(reason, list) and [type(text) for text in reason] == [str, str]):
            raise ValueError("a reason is not a stage and a text")


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
