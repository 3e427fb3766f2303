"""The HTML page of one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from featpipe.base.disk import write_atomically
from featpipe.base.views import counted_views, views_in
from featpipe.reports import figures
from featpipe.reports.confusion import (
    LISTED_PAIRS,
    TABLE_CLASSES,
    cells,
    confused_pairs,
    filled_cells,
)
from featpipe.reports.contact_sheet import ContactSheet
from featpipe.reports.documents import ClassScores, EvaluationDocument
from featpipe.reports.mistakes import (
    FIRST_SHOWN,
    PAGE_THUMBNAIL_BYTES,
    Mistake,
    thumbnails,
)
from featpipe.reports.origin import origin, training_warnings
from featpipe.reports.templating import render
from featpipe.reports.thresholds import ThresholdCounts
from featpipe.runs.trained_head import TrainedHead

LISTED_MISTAKES = 10_000
"""More would make the page too large for a browser to be quick with."""
_SHOWN_DUPLICATES = 20


def write_report(
    path: Path,
    trained: TrainedHead,
    evaluation: EvaluationDocument,
    mistakes: list[Mistake],
    thresholds: list[ThresholdCounts],
    sheet: ContactSheet | None = None,
) -> None:
    """Write the page of one evaluation.

    Parameters
    ----------
    path : Path
        File to write.
    trained : TrainedHead
        The evaluated head.
    evaluation : dict
        The evaluation's JSON.
    mistakes : list of Mistake
        All wrong predictions, lowest probability of the true class first.
    thresholds : list of ThresholdCounts
        See :func:`featpipe.reports.thresholds.threshold_counts`.
    sheet : ContactSheet, optional
        Where views were trained on or averaged over.
    """
    classes = trained.head.classes_.tolist()
    matrix = evaluation["confusion"]
    is_table = len(classes) <= TABLE_CLASSES
    pairs = confused_pairs(matrix)
    calibration = evaluation["calibration"]
    page = render(
        "report.html",
        title=f"{evaluation['dataset']}: {trained.head.kind} head",
        evaluation=evaluation,
        space=" + ".join(space.name for space in trained.spaces),
        classes=classes,
        tta=_tta_words(evaluation),
        scales=evaluation.get("scales", []),
        frame=evaluation.get("frame", ""),
        notes=evaluation["notes"],
        duplicates=evaluation["duplicates"][:_SHOWN_DUPLICATES],
        hidden_duplicates=max(len(evaluation["duplicates"]) - _SHOWN_DUPLICATES, 0),
        is_table=is_table,
        matrix=cells(matrix) if is_table else filled_cells(matrix),
        pairs=pairs[:LISTED_PAIRS],
        pair_count=len(pairs),
        class_rows=_class_rows(evaluation["per_class"], matrix),
        gallery=_gallery(mistakes, classes),
        thresholds=thresholds,
        sheet=sheet,
        is_trained_on_views=views_in(trained.info) is not None,
        curves=Markup(figures.curves(trained.history)),
        calibration=Markup(figures.reliability(calibration["bins"], calibration["ece"])),
        training_notes=training_warnings(trained),
        origin=origin(trained),
    )
    write_atomically(path, page)


def _tta_words(evaluation: EvaluationDocument) -> str:
    tta = evaluation["tta"]
    return "" if tta is None else counted_views(tta["views"], tta["policy"], tta["seed"])


def _class_rows(scores: list[ClassScores], matrix: list[list[int]]) -> list[dict[str, Any]]:
    """Scores of the classes, the worst first; those without a picture have none and come last."""
    given = [sum(column) for column in zip(*matrix, strict=True)]
    rows = [
        {
            **row,
            "index": i,
            "is_given": given[i] > 0,
            "missed": row["support"] - matrix[i][i],
            "wrongly_given": given[i] - matrix[i][i],
        }
        for i, row in enumerate(scores)
    ]
    return sorted(rows, key=lambda row: (not row["support"], row["f1"]))


def _gallery(mistakes: list[Mistake], classes: list[str]) -> dict[str, Any]:
    """The mistakes with their thumbnails; those that there was no room for come last."""
    number = {name: i for i, name in enumerate(classes)}
    listed = mistakes[:LISTED_MISTAKES]
    pictures = thumbnails(listed)
    order = sorted(range(len(listed)), key=lambda i: i not in pictures)
    return {
        "mistakes": [
            {
                "path": listed[i].path,
                "truth": number[listed[i].truth],
                "predicted": number[listed[i].predicted],
                "probability": listed[i].probability,
                "has_room": i in pictures,
                "picture": pictures.get(i),
                "score_map": listed[i].score_map,
            }
            for i in order
        ],
        "without_room": len(listed) - len(pictures),
        "unlisted": len(mistakes) - len(listed),
        "megabytes": PAGE_THUMBNAIL_BYTES // 1_000_000,
        "first_shown": FIRST_SHOWN,
        "mapped": sum(mistake.score_map is not None for mistake in listed),
    }
