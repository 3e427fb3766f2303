"""The common form of all sources: records in a fixed order, and where their bytes are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from featpipe.base.locations import File, Location

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
        Relative to the source's root, with ``/`` between folders; a unique name where records are
        not files.
    label : str or None
        Class name; None where unlabelled.
    split : {"train", "val", "test"} or None
        None where the source defines no splits.
    """

    path: str
    label: str | None = None
    split: str | None = None


Locate = Callable[[str], Location]
"""From a record's path to where its bytes are."""


@dataclass(frozen=True)
class Source:
    """A list of records, and where their bytes are.

    Attributes
    ----------
    kind : str
        A key of :data:`featpipe.sources.OPENERS`.
    spec : str
        The command line's argument DATA, as the user gave it.
    root : Path or None
        Folder that the records are in; None where they are in none.
    records : list of Record
    locate : callable
        Where the bytes of the record of that path are. It opens no picture that is a file.
    ignored : int
        Number of files ignored because their names show that they are no images.
    unused_columns : tuple of str
        Columns of a list that are none of ``path``, ``label`` and ``split``.
    """

    kind: str
    spec: str
    root: Path | None
    records: list[Record] = field(repr=False)
    locate: Locate = field(repr=False)
    ignored: int = 0
    unused_columns: tuple[str, ...] = ()


def locate_below(root: str | os.PathLike[str]) -> Locate:
    """For records that are files below a folder."""
    return lambda path: File(os.path.join(root, path))
