"""A list of images: CSV, TSV or JSON lines with ``path,label[,split]``."""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from featpipe.base.disk import read_regular
from featpipe.base.errors import DataError, StorageError
from featpipe.base.text import escape
from featpipe.sources.records import SPLIT_NAMES, Record, Source, locate_below

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl")
_COLUMNS = ("path", "label", "split")
_SHOWN_COLUMNS = 5
_FOREIGN = re.compile("[\udc80-\udcff]")
"""What stands for a byte that is not UTF-8."""


def open_list(path: Path, *, root: Path | None = None, follow_links: bool = False) -> Source:
    """Read a list of images.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.tsv`` with a header line, or ``.jsonl``, in UTF-8, or UTF-16 with a byte
        order mark. File names that are not UTF-8 are kept byte for byte. ``path`` is required;
        ``label`` and ``split`` may be absent or empty.
    root : Path, optional
        Folder that the paths are relative to and must lie in; default: the list's folder.
    follow_links : bool
        Whether paths may leave the root through symbolic links.

    Raises
    ------
    DataError
        A row is malformed, leaves the root, or contradicts another row.
    StorageError
        The list cannot be read.
    """
    # An absolute path in the list may name the root with its links resolved or unresolved.
    roots = [os.path.realpath(root or path.parent), os.path.abspath(root or path.parent)]
    shown = escape(str(path))
    try:
        data = read_regular(path)
    except OSError as error:
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    text = decoded(data, shown)
    rows = _json_rows(text, shown) if path.suffix.lower() == ".jsonl" else csv_rows(text, shown)
    records: dict[str, Record] = {}
    folders: dict[str, str] = {}
    columns: dict[str, None] = {}
    for place, row in rows:
        record = _record(row, place, roots)
        if not text.isascii():
            _check_encoding(row, place, os.path.join(roots[0], record.path))
        columns |= dict.fromkeys(row)
        if not follow_links:
            _check_links(roots[0], record.path, place, folders)
        if records.setdefault(record.path, record) != record:
            raise DataError(
                f"expected one label and split per picture, found two for {record.path!r} ({place})"
            )
    if not records:
        raise DataError(f"expected pictures in {shown}, found an empty list")
    splits = [record.split for record in records.values()]
    if None in splits and any(splits):
        raise DataError(
            f"expected a split for every picture or for none, found {splits.count(None)} of "
            f"{len(splits)} without one in {path}"
        )
    unused = tuple(name for name in columns if name not in _COLUMNS)
    listed, locate = list(records.values()), locate_below(roots[0])
    return Source("list", str(path), Path(roots[0]), listed, locate, unused_columns=unused)


def decoded(data: bytes, shown: str) -> str:
    """Text of a list; bytes that are not UTF-8 as surrogate escapes, until their use is known."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise DataError(
                f"expected UTF-16 in {shown}, as its first bytes say, found: {error.reason}; "
                "save it as UTF-8"
            ) from error
    return data.decode("utf-8-sig", errors="surrogateescape")


def _check_encoding(row: dict[Any, Any], place: str, file: str = "") -> None:
    """Refuse text that is not UTF-8, unless it is the name of a file that is there."""
    for value in row.values():
        foreign = _FOREIGN.search(value) if isinstance(value, str) else None
        # A class may be called as its folder is.
        if foreign and not (value in file and os.path.lexists(file)):
            byte = ord(foreign[0]) - 0xDC00
            raise DataError(
                f"expected UTF-8, found a byte 0x{byte:02x} in {place}; save the list as UTF-8"
            )


def _header_advice(columns: Sequence[str], delimiter: str) -> str:
    if len(columns) == 1 and (found := next((c for c in ";\t,|" if c in columns[0]), "")):
        names = {";": "semicolons", "\t": "tabs", ",": "commas", "|": "bars"}
        return f"separate columns with {names[delimiter]}, not with {names[found]}"
    return "name the column of the pictures' paths 'path'"


def csv_rows(text: str, shown: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a CSV or TSV text with a column 'path', each with its place for messages."""
    delimiter = "\t" if shown.lower().endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        if len(set(reader.fieldnames)) < len(reader.fieldnames):
            name = next(n for n in reader.fieldnames if reader.fieldnames.count(n) > 1)
            raise DataError(
                f"expected each column once in the header line of {shown}, found {name!r} twice; "
                "remove or rename one"
            )
        if "path" not in reader.fieldnames:
            columns = ", ".join(map(repr, reader.fieldnames[:_SHOWN_COLUMNS])) or "an empty file"
            raise DataError(
                f"expected a header line with 'path' (and 'label', 'split') in {shown}, "
                f"found {columns}; {_header_advice(reader.fieldnames, delimiter)}"
            )
        _check_encoding(dict(enumerate(reader.fieldnames)), f"{shown}, line 1")
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


def _record(row: dict[str, Any], place: str, roots: list[str]) -> Record:
    path = row["path"]
    if not path or "\0" in path or not _can_be_a_name(path):
        raise DataError(f"expected a path in {place}, found {path!r}; correct it or remove the row")
    candidates = (_path_inside(root, path) for root in roots)
    relative = next((inside for inside in candidates if inside is not None), None)
    if relative is None:
        raise DataError(
            f"expected paths inside {roots[0]}, found {path!r} ({place}); "
            "name the folder they may be in with --root"
        )
    label, split = row.get("label"), row.get("split")
    if label is not None and (isinstance(label, bool) or not isinstance(label, str | int)):
        raise DataError(f"expected a text or a whole number as label, found {label!r} ({place})")
    if isinstance(label, str) and ("\0" in label or not _can_be_a_name(label)):
        raise DataError(f"expected a label that can be written, found {label!r} ({place})")
    if split in (None, ""):
        split_name = None
    elif isinstance(split, str) and split.strip().lower() in SPLIT_NAMES:
        split_name = SPLIT_NAMES[split.strip().lower()]
    else:
        raise DataError(f"expected split train, val or test, found {split!r} ({place})")
    return Record(relative, None if label in (None, "") else str(label), split_name)


def _check_links(root: str, path: str, place: str, folders: dict[str, str]) -> None:
    """Refuse a path that leaves the root through a link; ``folders`` caches resolved folders."""
    folder, name = os.path.split(os.path.join(root, path))
    if folder not in folders:
        folders[folder] = os.path.realpath(folder)
    real = os.path.join(folders[folder], name)
    if os.path.islink(real):
        real = os.path.realpath(real)
    if _path_inside(root, real) is None:
        raise DataError(
            f"expected paths inside {root}, found {path!r} ({place}), a link to {real}; allow "
            "such links with --follow-links, or let paths count from a wider folder with --root"
        )


def _can_be_a_name(path: str) -> bool:
    # JSON can hold half of a surrogate pair, which no file name's bytes decode to.
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def _path_inside(root: str, path: str) -> str | None:
    """The path relative to the root; None where it leads out of the root."""
    relative = os.path.relpath(os.path.normpath(os.path.join(root, path)), root)
    return None if relative == ".." or relative.startswith("../") else relative
