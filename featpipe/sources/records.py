"""The common form of all sources: records in a fixed order, and how to read their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
    unused_columns : tuple of str
        Columns of a list that are none of ``path``, ``label`` and ``split``.
    """

    kind: str
    spec: str
    root: Path | None
    records: list[Record] = field(repr=False)
    read_record: Callable[[str], bytes] | None = None
    ignored: int = 0
    unused_columns: tuple[str, ...] = ()
