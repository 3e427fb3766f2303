"""The CSV that an audit leaves to a person: a row for each picture that may need a fix."""

from __future__ import annotations

from featpipe.datasets.dataset import SPLITS
from featpipe.reports.audit_findings import differ
from featpipe.reports.documents import AuditDocument

COLUMNS = ("path", "label", "suggested", "probability", "action", "problem")


def fix_rows(audit: AuditDocument) -> list[list[str]]:
    """Rows of the CSV, its header first.

    ``label`` is the label so far and ``action`` is empty: as written, the CSV changes nothing.
    Of pictures that are in two splits, the row is of the one in train rather than in val or test,
    so that removing it leaves scores comparable.
    """
    rows: dict[str, dict[str, str]] = {}
    for error in audit["label_errors"]:
        row = _row(rows, error["path"], error["label"], "label error")
        row["suggested"], row["probability"] = error["suggested"], f"{error['probability']:.4f}"
    for pair in audit["near_duplicates"]:
        if differ(pair["splits"]) or differ(pair["labels"]):
            ends = list(zip([pair["a"], pair["b"]], pair["labels"], pair["splits"], strict=True))
            _duplicates(rows, ends, "near duplicate of")
    for group in audit["exact_duplicates"]:
        if differ(group["splits"]) or differ(group["labels"]):
            ends = list(zip(group["paths"], group["labels"], group["splits"], strict=True))
            _duplicates(rows, ends, "same bytes as")
    for outlier in audit["outliers"]:
        _row(rows, outlier["path"], outlier["label"], "outlier")
    return [[*COLUMNS], *([row[name] for name in COLUMNS] for row in rows.values())]


def _duplicates(
    rows: dict[str, dict[str, str]],
    pictures: list[tuple[str, str | None, str | None]],
    words: str,
) -> None:
    """Rows for all pictures (path, label, split) but the one of the last split, which stays."""
    order = sorted(pictures, key=lambda picture: SPLITS.index(picture[2] or "train"))
    kept, label, split = order.pop()
    for path, own, _ in order:
        _row(rows, path, own, f"{words} {kept} ({split or 'no split'}, {label or 'no label'})")


def _row(
    rows: dict[str, dict[str, str]], path: str, label: str | None, problem: str
) -> dict[str, str]:
    """The row of a picture, with one more problem."""
    row = rows.setdefault(path, {**dict.fromkeys(COLUMNS, ""), "path": path, "label": label or ""})
    row["problem"] = "; ".join(filter(None, [row["problem"], problem]))
    return row
