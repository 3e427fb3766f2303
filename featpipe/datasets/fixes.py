"""Other labels for a data set: read from a CSV that a person edited, and applied to its list."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.base.csv_rows import CsvWriter
from featpipe.base.disk import read_regular
from featpipe.base.errors import DataError, NotFoundError, StorageError
from featpipe.base.text import escape
from featpipe.datasets.dataset import (
    NO_LABEL,
    NO_SPLIT,
    SPLIT_GIVEN,
    SPLITS,
    Dataset,
    SourceInfo,
)
from featpipe.datasets.splits import split_unsplit
from featpipe.sources.listing import csv_rows, decoded

ACTIONS = ("keep", "relabel", "remove")


@dataclass(frozen=True)
class Fix:
    """What becomes of one picture.

    Attributes
    ----------
    label : str or None
        Its new label; None leaves it as it is.
    remove : bool
        The picture is not in the new list.
    """

    label: str | None = None
    remove: bool = False


def read_fixes(path: Path, dataset: Dataset) -> dict[int, Fix]:
    """Read a CSV or TSV of fixes.

    A row names a picture by ``path``, as the data set does. ``label`` is the label it shall have;
    empty, or the one it has, changes nothing. ``action`` may be absent or empty, or say ``keep``,
    ``remove``, or ``relabel``: the label in the column ``suggested``.

    Returns
    -------
    dict of int to Fix
        By row number of the data set; pictures that stay as they are, are left out.

    Raises
    ------
    NotFoundError
        There is no such file.
    DataError
        A row is malformed, names a picture the data set lacks, contradicts itself or another row.
    StorageError
        The file cannot be read.
    """
    shown = escape(str(path))
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise NotFoundError(
            f"expected a CSV of path,label in {shown}, found none; 'featpipe audit "
            f"{dataset.name}' writes one to edit"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {shown}, but: {error.strerror}") from error
    row_of = {known: row for row, known in enumerate(dataset.paths)}
    found: dict[int, Fix] = {}
    for place, fields in csv_rows(decoded(data, shown), shown):
        if fields["path"] not in row_of:
            raise DataError(
                f"expected paths as data set '{dataset.name}' has them, such as "
                f"{''.join(map(repr, dataset.paths[:1]))}, found {fields['path']!r} ({place}); "
                "correct it or remove the row"
            )
        row = row_of[fields["path"]]
        current = dataset.classes[dataset.label[row]] if dataset.label[row] != NO_LABEL else ""
        fix = _fix(fields, current, place)
        if found.setdefault(row, fix) != fix:
            raise DataError(
                f"expected one fix per picture, found two for {fields['path']!r} ({place}); "
                "remove one of the rows"
            )
    return {row: fix for row, fix in found.items() if fix != Fix()}


def _fix(fields: dict[str, str], current: str, place: str) -> Fix:
    label, suggested = fields.get("label", ""), fields.get("suggested", "")
    action = fields.get("action", "").strip().lower()
    if action not in ("", *ACTIONS):
        raise DataError(
            f"expected an action of {', '.join(ACTIONS)} or none, found {action!r} ({place})"
        )
    if action == "relabel":
        if not suggested:
            raise DataError(
                f"expected a label in column 'suggested' to relabel with, found none ({place}); "
                "write the right one into 'label' and leave 'action' empty"
            )
        if label not in ("", current, suggested):
            raise DataError(
                f"expected one new label, found {label!r} and, by the action 'relabel', "
                f"{suggested!r} ({place}); leave 'action' empty to take the first"
            )
        label = suggested
    elif action and label not in ("", current):
        raise DataError(
            f"expected a new label or the action {action!r}, found {label!r} and the action "
            f"({place}); leave 'action' empty to take the label"
        )
    if action == "remove":
        return Fix(remove=True)
    if label in ("", current):
        return Fix()
    # Also where a class has this name already: the new list is one that 'extract' reads.
    if "\0" in label or not _is_utf8(label):
        raise DataError(
            f"expected a label in UTF-8, found {label!r} ({place}); save the file as UTF-8"
        )
    return Fix(label)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def apply_fixes(dataset: Dataset, fixes: dict[int, Fix], name: str) -> Dataset:
    """The data set with other labels, under another name; splits stay as they are.

    Raises
    ------
    DataError
        No picture would be left.
    """
    removed = {row for row, fix in fixes.items() if fix.remove}
    kept = np.array([row for row in range(len(dataset)) if row not in removed], np.intp)
    if not len(kept):
        raise DataError(
            f"expected a picture to be left of data set '{dataset.name}', found all removed; "
            "take the action 'remove' out of some rows"
        )
    labels = [dataset.classes[i] if i != NO_LABEL else None for i in dataset.label.tolist()]
    for row, fix in fixes.items():
        labels[row] = fix.label or labels[row]
    left = [labels[row] for row in kept]
    classes = sorted({label for label in left if label is not None})
    number: dict[str | None, int] = {label: i for i, label in enumerate(classes)}
    new = Dataset(
        name=name,
        source=dataset.source,
        classes=classes,
        paths=[dataset.paths[row] for row in kept],
        label=np.array([number.get(label, NO_LABEL) for label in left], np.int64),
        split=dataset.split[kept],
        image_sha256=dataset.image_sha256[kept],
        status=dataset.status[kept],
        stat=dataset.stat[kept],
        reasons={
            place: dataset.reasons[row]
            for place, row in enumerate(kept.tolist())
            if row in dataset.reasons
        },
        spaces=dataset.spaces,
        info=dataclasses.replace(dataset.info, list=""),
    )
    _keep_splits(new)
    return new


def _keep_splits(dataset: Dataset) -> None:
    """Make the splits given ones, so that no later label moves a picture into another split."""
    if (dataset.split == NO_SPLIT).all():
        split_unsplit(dataset)
    if (dataset.split != NO_SPLIT).any():
        # A list has a split for every picture or for none; quarantined ones may have none yet.
        dataset.split[dataset.split == NO_SPLIT] = SPLITS.index("train")
        dataset.info.split = SPLIT_GIVEN


def as_list(dataset: Dataset) -> bytes:
    """The data set as a CSV of ``path,label[,split]`` that ``extract`` takes."""
    has_splits = bool((dataset.split != NO_SPLIT).any())
    rows = [["path", "label", *(["split"] if has_splits else [])]]
    for path, label, split in zip(
        dataset.paths, dataset.label.tolist(), dataset.split.tolist(), strict=True
    ):
        name = dataset.classes[label] if label != NO_LABEL else ""
        rows.append([path, name, *([SPLITS[split]] if has_splits else [])])
    return csv_bytes(rows)


def csv_bytes(rows: list[list[str]]) -> bytes:
    """Rows as CSV in UTF-8; bytes of file names that are not UTF-8 stay as they are."""
    stream = io.StringIO()
    table = CsvWriter(stream)
    for row in rows:
        table.write(row)
    return stream.getvalue().encode("utf-8", errors="surrogateescape")


def in_list(source: SourceInfo, path: Path) -> SourceInfo:
    """The source of a data set whose list is now the file at ``path``."""
    return SourceInfo("list", str(path), source.root)
