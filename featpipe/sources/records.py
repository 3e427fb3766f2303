"""What every source gives: records in a fixed order, and a way to their bytes."""

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
"""How people spell the three splits."""


@dataclass(frozen=True)
class Record:
    """One picture of a source.

    Attributes
    ----------
    path : str
        Relative to the source's root, with ``/`` between folders; a plain name for other records.
    label : str or None
    split : {"train", "val", "test"} or None
    """

    path: str
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """A list of records and where their bytes are.

    Attributes
    ----------
    kind : {"folder", "list", "digits"}
    spec : str
        DATA as the user gave it.
    root : Path or None
        Folder the records' paths are relative to; None where records are not files.
    records : list of Record
    read_record : callable or None
        Path to bytes, for records that are not files.
    ignored : int
        Files passed over because their names say they are no pictures.
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
            bare = sum(record.split is None for record in self.records)
            raise DataError(
                f"expected a split for every picture or for none, found {bare} of "
                f"{len(self.records)} without one in {self.spec}"
            )
