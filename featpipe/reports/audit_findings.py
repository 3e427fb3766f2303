"""What an audit found, in the words of the data set: paths, labels and splits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.datasets.contents import class_sizes, equal_pictures
from featpipe.datasets.dataset import NO_LABEL, NO_SPLIT, SPLITS, Dataset
from featpipe.reports.documents import (
    AuditDocument,
    ExactDuplicateDocument,
    LabelCheckDocument,
    LabelErrorDocument,
    NearDuplicateDocument,
    OutlierDocument,
    TinyClassDocument,
)


@dataclass(frozen=True)
class WrongLabel:
    """A label that is probably wrong; ``row`` and ``suggested`` number pictures and classes."""

    row: int
    suggested: int
    probability: float
    label_probability: float


@dataclass(frozen=True)
class Findings:
    """What an audit found, as numbers of the data set's rows.

    Attributes
    ----------
    wrong : list of WrongLabel
        The surest first.
    check : LabelCheckDocument
    pairs : ndarray of int64, shape (m, 2)
        Near duplicates, the most similar first.
    similarity : ndarray of float32, shape (m,)
    outliers : ndarray of int64, shape (k,)
        The farthest first.
    scores : ndarray of float64, shape (k,)
        Of the outliers.
    """

    wrong: list[WrongLabel]
    check: LabelCheckDocument
    pairs: NDArray[np.int64]
    similarity: NDArray[np.float32]
    outliers: NDArray[np.int64]
    scores: NDArray[np.float64]


def audit_document(
    dataset: Dataset, found: Findings, *, space: str, max_pairs: int, min_class: int
) -> AuditDocument:
    """The document of an audit, without the paths of its files and its duration."""
    near = _near_duplicates(dataset, found)
    return {
        "dataset": dataset.name,
        "space": space,
        "pictures": int(dataset.usable.sum()),
        "label_errors": [_label_error(dataset, wrong) for wrong in found.wrong],
        "label_check": found.check,
        "near_duplicates": near[:max_pairs],
        "near_duplicates_found": len(near),
        "near_duplicates_across_splits": sum(differ(pair["splits"]) for pair in near),
        "exact_duplicates": _exact_duplicates(dataset),
        "outliers": _outliers(dataset, found),
        "tiny_classes": _tiny_classes(dataset, min_class),
        "report": "",
        "fixes": "",
        "seconds": 0.0,
    }


def differ(values: list[str | None]) -> bool:
    """Whether splits, or labels, are not all the same; what has none contradicts none."""
    return len(set(values) - {None}) > 1


def _label_error(dataset: Dataset, wrong: WrongLabel) -> LabelErrorDocument:
    return {
        "path": dataset.paths[wrong.row],
        "label": dataset.classes[dataset.label[wrong.row]],
        "suggested": dataset.classes[wrong.suggested],
        "probability": round(wrong.probability, 6),
        "label_probability": round(wrong.label_probability, 6),
        "split": _split(dataset, wrong.row),
    }


def _near_duplicates(dataset: Dataset, found: Findings) -> list[NearDuplicateDocument]:
    """Across splits first, then of different labels, then by similarity."""
    near: list[NearDuplicateDocument] = []
    for ends, similarity in zip(found.pairs.tolist(), found.similarity.tolist(), strict=True):
        a, b = sorted(ends)
        near.append(
            {
                "a": dataset.paths[a],
                "b": dataset.paths[b],
                "similarity": round(similarity, 6),
                "splits": [_split(dataset, a), _split(dataset, b)],
                "labels": [_label(dataset, a), _label(dataset, b)],
            }
        )
    return sorted(near, key=lambda pair: (not differ(pair["splits"]), not differ(pair["labels"])))


def _exact_duplicates(dataset: Dataset) -> list[ExactDuplicateDocument]:
    """Of different labels first, then across splits."""
    groups: list[ExactDuplicateDocument] = [
        {
            "paths": [dataset.paths[row] for row in group],
            "splits": [_split(dataset, row) for row in group],
            "labels": [_label(dataset, row) for row in group],
        }
        for group in equal_pictures(dataset)
    ]
    return sorted(groups, key=lambda g: (not differ(g["labels"]), not differ(g["splits"])))


def _outliers(dataset: Dataset, found: Findings) -> list[OutlierDocument]:
    return [
        {
            "path": dataset.paths[row],
            "score": round(score, 6),
            "label": _label(dataset, row),
            "split": _split(dataset, row),
        }
        for row, score in zip(found.outliers.tolist(), found.scores.tolist(), strict=True)
    ]


def _tiny_classes(dataset: Dataset, min_class: int) -> list[TinyClassDocument]:
    """Classes of fewer pictures, or of none in a split that others have; the smallest first."""
    names, tiny = dataset.split_names, []
    for name, sizes in zip(dataset.classes, class_sizes(dataset), strict=True):
        total = int(sizes.sum())
        by_split = {split: int(sizes[SPLITS.index(split)]) for split in names}
        if total < min_class or not all(by_split.values()):
            row: TinyClassDocument = {"class": name, "pictures": total, "splits": by_split}
            tiny.append(row)
    return sorted(tiny, key=lambda row: row["pictures"])


def _split(dataset: Dataset, row: int) -> str | None:
    number = int(dataset.split[row])
    return None if number == NO_SPLIT else SPLITS[number]


def _label(dataset: Dataset, row: int) -> str | None:
    number = int(dataset.label[row])
    return None if number == NO_LABEL else dataset.classes[number]
