"""What is odd about a source's labels, said before any picture is read."""

from __future__ import annotations

import os

from featpipe.base.text import some_of
from featpipe.sources.records import Source


def label_warnings(source: Source) -> list[str]:
    """What a person should know of a source's labels: there are none, or all are the same."""
    labels = {record.label for record in source.records}
    if labels == {None}:
        return _none(source)
    labels.discard(None)
    return [_only_one(source, str(*labels))] if len(labels) == 1 else []


def _none(source: Source) -> list[str]:
    unused = source.unused_columns
    if not unused:
        return []
    column, is_not = ("column", "is") if len(unused) == 1 else ("columns", "are")
    return [
        f"no picture of {source.spec} has a label: expected them in a column 'label', found the "
        f"{column} {some_of(unused)}, which {is_not} not used; rename the one with the classes to "
        "'label'"
    ]


def _only_one(source: Source, label: str) -> str:
    said = f"all pictures of {source.spec} are of one class, {label!r}"
    if source.kind == "folder" and (below := _folders_below(source)):
        where, names = below
        said += f", whose folder holds the folders {some_of(names)}"
        if where is not None:
            return f"{said}; if these are the classes, give {where} as DATA"
        return f"{said}; if these are the classes, move them up, directly into the split folders"
    return f"{said}; a head needs at least two"


def _folders_below(source: Source) -> tuple[str | None, list[str]] | None:
    """The first folder below the top that holds several folders, and their names.

    None where there is none; no folder but names where split folders lie above it.
    """
    folders = [record.path.split("/")[:-1] for record in source.records if record.label is not None]
    if any(record.split for record in source.records):
        names = sorted({parts[2] for parts in folders if len(parts) > 2})
        return (None, names) if len(names) > 1 else None
    depth = 0
    while deeper := [parts for parts in folders if len(parts) > depth]:
        names = sorted({parts[depth] for parts in deeper})
        if len(names) > 1:
            return os.path.join(source.spec, *deeper[0][:depth]), names
        depth += 1
    return None
