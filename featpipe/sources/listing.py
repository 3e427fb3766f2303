"""A list of pictures: CSV, TSV or JSON lines with ``path,label[,split]``."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featpipe.base.disk import read_regular
from featpipe.base.errors import DataError, StorageError
from featpipe.base.text import escape
from featpipe.sources.records import SPLIT_NAMES, Record, Source

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_SHOWN_COLUMNS = 5


def open_list(path: Path, *, root: Path | None = None, follow_links: bool = False) -> Source:
    """Read a list of pictures.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.tsv`` with a header line, or ``.jsonl``, in UTF-8 (other bytes in
        paths survive). Columns: ``path``; ``label`` and ``split`` may be absent or empty.
    root : Path, optional
        Folder the paths are relative to and may not leave; default: the list's folder.
    follow_links : bool
        Whether links on the way to a picture may lead out of the root all the same.

    Raises
    ------
    DataError
        A row is unreadable, leaves the root, or contradicts another.
    """
    # A full path may lead to the root through links, or by its real name.
    tops = [os.path.realpath(root or path.parent), os.path.abspath(root or path.parent)]
    shown = escape(str(path))
    try:
        text = read_regular(path).decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    rows = _json_rows(text, shown) if path.suffix.lower() == ".jsonl" else _csv_rows(text, shown)
    records: dict[str, Record] = {}
    folders: dict[str, str] = {}
    for place, row in rows:
        record = _record(row, place, tops)
        if not follow_links:
            _check_links(tops[0], record.path, place, folders)
        if records.setdefault(record.path, record) != record:
            raise DataError(
                f"expected one label and split per picture, found two for {record.path!r} ({place})"
            )
    if not records:
        raise DataError(f"expected pictures in {shown}, found an empty list")
    return Source("list", str(path), Path(tops[0]), list(records.values()))


def _csv_rows(text: str, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = "\t" if shown.lower().endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if len(set(reader.fieldnames)) < len(reader.fieldnames):
            twice = next(n for n in reader.fieldnames if reader.fieldnames.count(n) > 1)
            raise DataError(
                f"expected each column once in the header line of {shown}, found {twice!r} twice; "
                "remove or rename one"
            )
        if "path" not in reader.fieldnames:
            found = ", ".join(map(repr, reader.fieldnames[:_SHOWN_COLUMNS])) or "an empty file"
            raise DataError(
                f"expected a header line with 'path' (and 'label', 'split') in {shown}, "
                f"found {found}"
            )
        for row in reader:
            place = f"{shown}, line {reader.line_num}"
            if None in row or None in row.values():
                more = "more" if None in row else "fewer"
                raise DataError(
                    f"expected {len(reader.fieldnames)} fields in {place}, found {more}; "
                    "put text that holds the separator between quotes"
                )
            yield place, row
    except csv.Error as error:
        raise DataError(
            f"expected CSV in {shown}, found in line {reader.line_num}: {escape(str(error))}; "
            "correct it there"
        ) from error


def _json_rows(text: str, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{shown}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"expected a JSON object in {place}, found: {error}; correct it there"
            ) from error
        row = {key.lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
        if not isinstance(row.get("path"), str):
            raise DataError(
                f"expected a JSON object with a text 'path' in {place}, found another; correct it "
                "there"
            )
        yield place, row


def _record(row: dict[str, Any], place: str, tops: list[str]) -> Record:
    path = row["path"]
    if not path or "\0" in path or not _can_be_a_name(path):
        raise DataError(f"expected a path in {place}, found {path!r}; correct it or remove the row")
    inside = next((found for top in tops if (found := _inside(top, path)) is not None), None)
    if inside is None:
        raise DataError(
            f"expected paths inside {tops[0]}, found {path!r} ({place}); "
            "name the folder they may be in with --root"
        )
    label, split = row.get("label"), row.get("split")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise DataError(f"expected a text or a whole number as label, found {label!r} ({place})")
    if isinstance(label, str) and ("\0" in label or not _can_be_a_name(label)):
        raise DataError(f"expected a label that can be written, found {label!r} ({place})")
    if split in (None, ""):
        known = None
    elif isinstance(split, str) and split.strip().lower() in SPLIT_NAMES:
        known = SPLIT_NAMES[split.strip().lower()]
    else:
        raise DataError(f"expected split train, val or test, found {split!r} ({place})")
    return Record(inside, None if label in (None, "") else str(label), known)


def _check_links(top: str, path: str, place: str, folders: dict[str, str]) -> None:
    """Refuse a path that leaves the root through a link; ``folders`` holds those resolved."""
    folder, name = os.path.split(os.path.join(top, path))
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    real = os.path.join(folders[folder], name)
    if os.path.islink(real):
        real = os.path.realpath(real)
    if _inside(top, real) is None:
        raise DataError(
            f"expected paths inside {top}, found {path!r} ({place}), a link to {real}; allow "
            "such links with --follow-links, or let paths count from a wider folder with --root"
        )


def _can_be_a_name(path: str) -> bool:
    # JSON can spell half a surrogate pair, which stands for no bytes of a file name.
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _inside(top: str, path: str) -> str | None:
    """The path relative to a folder; None where it leads out of it."""
    found = os.path.relpath(os.path.normpath(os.path.join(top, path)), top)
    return None if found == ".." or found.startswith("../") else found
