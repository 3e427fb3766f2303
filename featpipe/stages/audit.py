"""Search a data set for mistakes in its cached rows; write a page, and a CSV to act on.

Pictures are opened only for the page's thumbnails.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.auditing.label_errors import find_label_errors, out_of_fold, why_not
from featpipe.auditing.near_duplicates import groups_of, largest_distance, near_pairs
from featpipe.auditing.neighbours import nearest
from featpipe.auditing.outliers import outlier_scores, outside
from featpipe.auditing.rows import directions, pooled
from featpipe.base.disk import write_atomically
from featpipe.base.errors import DataError, UsageError
from featpipe.base.ids import sortable
from featpipe.base.progress import Progress, no_progress
from featpipe.datasets.dataset import NO_LABEL, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.fixes import csv_bytes
from featpipe.datasets.spaces import choose_space
from featpipe.reports.audit_findings import Findings, WrongLabel, audit_document
from featpipe.reports.audit_fixes import fix_rows
from featpipe.reports.audit_page import audit_page
from featpipe.reports.documents import AuditDocument, LabelCheckDocument
from featpipe.reports.thumbnails import thumbnail_uri
from featpipe.runs.numbered import next_free
from featpipe.sources import image_reader
from featpipe.specs.audit import AuditSpec
from featpipe.store.feature_store import FeatureStore

DEFAULT_AUDITS = Path("audits")
AUDIT_SCHEMA = 1
DOCUMENT_NAME, PAGE_NAME, FIXES_NAME = "audit.json", "audit.html", "fixes.csv"
_NEIGHBOURS = 10
"""How many neighbours of each picture are known: so many copies of it can be found."""


def audit(
    name: str, spec: AuditSpec, *, cache: Path, progress: Progress = no_progress
) -> AuditDocument:
    """Search a data set for duplicates, label errors, outliers and tiny classes.

    Parameters
    ----------
    name : str
        Data set.
    spec : AuditSpec
    cache : Path
    progress : Progress

    Returns
    -------
    AuditDocument
        What ``audit.json`` holds; ``audit.html`` and ``fixes.csv`` lie beside it.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    started = time.perf_counter()
    dataset = load_dataset(cache, name)
    space, _ = choose_space(dataset, spec)
    if not dataset.usable.any():
        raise DataError(f"expected usable pictures in data set '{name}', found none")
    if spec.out is not None and not spec.overwrite:
        _check_free(spec.out)
    found = _search(dataset, FeatureStore(cache, space), spec, progress)
    document = audit_document(
        dataset, found, space=space.name, max_pairs=spec.max_pairs, min_class=spec.min_class
    )
    folder = next_free(DEFAULT_AUDITS, name) if spec.out is None else spec.out
    document["report"], document["fixes"] = str(folder / PAGE_NAME), str(folder / FIXES_NAME)
    document["seconds"] = round(time.perf_counter() - started, 3)
    _write(folder, dataset, document)
    return document


def _search(dataset: Dataset, store: FeatureStore, spec: AuditSpec, progress: Progress) -> Findings:
    usable = np.flatnonzero(dataset.usable)
    # Each content once: pictures of the same bytes are exact duplicates, and no neighbours.
    _, first, content = np.unique(
        sortable(dataset.image_sha256[usable]), return_index=True, return_inverse=True
    )
    first = usable[first]
    rows = pooled(store.rows(dataset.image_sha256[first]))
    with progress("neighbours", len(rows)) as bar:
        similarity, index = nearest(directions(rows), _NEIGHBOURS, tick=bar.advance)
    pairs, similarities = near_pairs(similarity, index, largest_distance(similarity, spec.distance))
    scores = outlier_scores(similarity)
    outliers = outside(scores)[: spec.max_outliers]
    labelled = dataset.label[usable] != NO_LABEL
    wrong, check = _judge_labels(
        dataset,
        usable[labelled],
        rows[content[labelled]],
        groups_of(len(rows), pairs)[content[labelled]],
        spec,
        progress,
    )
    return Findings(
        wrong=wrong,
        check=check,
        pairs=first[pairs],
        similarity=similarities,
        outliers=first[outliers],
        scores=scores[outliers],
    )


def _judge_labels(
    dataset: Dataset,
    labelled: NDArray[np.intp],
    rows: NDArray[np.float32],
    group: NDArray[np.int64],
    spec: AuditSpec,
    progress: Progress,
) -> tuple[list[WrongLabel], LabelCheckDocument]:
    """Probable label errors among the labelled pictures, of which these are the rows."""
    present, y = np.unique(dataset.label[labelled], return_inverse=True)
    skipped = why_not(y, group, spec.folds)
    if skipped:
        return [], {
            "checked": 0,
            "folds": 0,
            "accuracy": None,
            "estimated_errors": None,
            "skipped": skipped,
        }
    with progress("label errors", spec.folds) as bar:
        p = out_of_fold(rows, y, group, folds=spec.folds, seed=spec.seed, tick=bar.advance)
    judged = ~np.isnan(p[:, 0])
    found = find_label_errors(p, y)
    wrong = [
        WrongLabel(int(labelled[i]), int(present[j]), float(p[i, j]), float(p[i, y[i]]))
        for i, j in zip(found.rows.tolist(), found.suggested.tolist(), strict=True)
    ]
    check: LabelCheckDocument = {
        "checked": int(judged.sum()),
        "folds": spec.folds,
        "accuracy": float((p[judged].argmax(axis=1) == y[judged]).mean()),
        "estimated_errors": found.estimate,
        "skipped": None,
    }
    return wrong, check


def _check_free(folder: Path) -> None:
    """Refuse a folder with an audit: a person may have edited its fixes."""
    # It is written last: without it, an audit was cut short and nobody has edited its fixes.
    if (folder / DOCUMENT_NAME).exists():
        raise UsageError(
            f"expected a folder without an audit, found one in {folder}, whose fixes may have "
            "been edited; name another --out, or replace it with --overwrite"
        )


def _write(folder: Path, dataset: Dataset, document: AuditDocument) -> None:
    """Write the CSV, the page and, last, the document."""
    read = image_reader(dataset.source.kind, dataset.source.root)
    id_of = dict(zip(dataset.paths, dataset.image_sha256, strict=True))
    page = audit_page(document, lambda path: thumbnail_uri(read, path, id_of[path].tobytes()))
    text = json.dumps({"schema": AUDIT_SCHEMA, **document}, indent=2) + "\n"
    write_atomically(folder / FIXES_NAME, csv_bytes(fix_rows(document)))
    write_atomically(folder / PAGE_NAME, page)
    write_atomically(folder / DOCUMENT_NAME, text.encode("ascii"))
