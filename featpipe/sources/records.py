"""The common form of all sources: records in a fixed order, and how to read their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from featpipe.base.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Accepted spellings of the three splits."""


@dataclass(frozen=True)
class Record:
    """One image of a source.

    Attributes
    ----------
    path : str
        Relative to the source's root, with ``/`` between folders; a unique name where the source
        has no root.
    label : str or None
        Class name; None where unlabelled.
    split : {"train", "val", "test"} or None
        None where the source defines no splits.
    """

    path: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """A list of records, and where to read their bytes.

    Attributes
    ----------
    kind : {"folder", "list", "digits"}
    spec : str
        The command line's argument DATA, as the user gave it.
    root : Path or None
        Folder that the records' paths are relative to; None where records are not files.
    records : list of Record
    read_record : callable or None
        Returns the bytes for a record's path; None where records are files.
    ignored : int
        Number of files ignored because their names show that they are no images.
    """

    kind: str
    spec: str
    root: Path | None
    records: list[Record] = field(repr=False)
    read_record: Callable[[str], bytes] | None = None
    ignored: int = 0

    def __post_init__(self) -> None:
        splits = {record.split for record in self.records}
        if None in splits and len(splits) > 1:
            without_split = sum(record.split is None for record in self.records)
            raise DataError(
                f"expected a split for every picture or for none, found {without_split} of "
                f"{len(self.records)} without one in {self.spec}"
            )
