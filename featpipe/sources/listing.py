"""A list of pictures: CSV, TSV or JSON lines with ``path,label[,split]``."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featpipe.errors import DataError, StorageError
from featpipe.sources.records import SPLIT_NAMES, Record, Source

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")


def open_list(path: Path, *, root: Path | None = None) -> Source:
    """Read a list of pictures.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.tsv`` with a header line, or ``.jsonl``, in UTF-8 (other bytes in
        paths survive). Columns: ``path``; ``label`` and ``split`` may be absent or empty.
    root : Path, optional
        Folder the paths are relative to and may not leave; default: the list's folder.

    Raises
    ------
    DataError
        A row is unreadable, leaves the root, or contradicts another.
    """
    top = (root or path.parent).resolve()
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise StorageError(f"expected to read {path}, but: {error.strerror}") from error
    rows = _json_rows(text, path) if path.suffix.lower() == ".jsonl" else _csv_rows(text, path)
    records: dict[str, Record] = {}
    for place, row in rows:
        record = _record(row, place, top)
        if records.setdefault(record.path, record) != record:
            raise DataError(
                f"expected one label and split per picture, found two for {record.path!r} ({place})"
            )
    if not records:
        raise DataError(f"expected pictures in {path}, found an empty list")
    return Source("list", str(path), top, list(records.values()))


def _csv_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if "path" not in (reader.fieldnames or []):
            found = ", ".join(map(repr, reader.fieldnames or [])) or "an empty file"
            raise DataError(
                f"expected a header line with 'path' (and 'label', 'split') in {path}, "
                f"found {found}"
            )
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DataError(f"expected {len(reader.fieldnames or [])} fields in {place}")
            yield place, row
    except csv.Error as error:
        raise DataError(f"expected CSV in {path}, line {reader.line_num}: {error}") from error


def _json_rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"expected a JSON object in {place}, found: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise DataError(f"expected a JSON object with a text 'path' in {place}")
        yield place, row


def _record(row: dict[str, Any], place: str, root: Path) -> Record:
    path = row["path"]
    if not path or "\0" in path:
        raise DataError(f"expected a path in {place}, found {path!r}")
    inside = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
    if inside == ".." or inside.startswith("../"):
        raise DataError(
            f"expected paths inside {root}, found {path!r} ({place}); "
            "name the folder they may be in with --root"
        )
    label, split = row.get("label"), row.get("split")
    if label is not None and not isinstance(label, str | int):
        raise DataError(f"expected a text or a whole number as label, found {label!r} ({place})")
    if split in (None, ""):
        known = None
    elif isinstance(split, str) and split.strip().lower() in SPLIT_NAMES:
        known = SPLIT_NAMES[split.strip().lower()]
    else:
        raise DataError(f"expected split train, val or test, found {split!r} ({place})")
    return Record(inside, None if label in (None, "") else str(label), known)
