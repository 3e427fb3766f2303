"""The page that compares heads on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from featpipe.base.disk import write_atomically
from featpipe.base.text import escape
from featpipe.heads.base import History
from featpipe.reports import figures
from featpipe.reports.documents import CalibrationBin, ComparedHead, ComparisonDocument
from featpipe.reports.templating import render
from featpipe.reports.variation import Variation, draw_accuracy, draw_times
from featpipe.runs.words import head_words

MAX_CURVES = 10
"""Heads whose curves are drawn; more could not be told apart."""
_LABEL = 40
"""Characters of a name in a legend."""
_INSIDE = 4
"""Names that have room among the curves."""


@dataclass(frozen=True)
class Curves:
    """What is drawn of one head.

    Attributes
    ----------
    name : str
    history : History
    bins : list of CalibrationBin
    confidence : ndarray of float64, shape (n,)
        Probability of the predicted class.
    correct : ndarray of bool, shape (n,)
    label : str
        How the legend calls it; empty for the end of its name.
    """

    name: str
    history: History
    bins: list[CalibrationBin]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    label: str = ""


def write_comparison(
    path: Path,
    comparison: ComparisonDocument,
    curves: Sequence[Curves],
    variation: Variation | None,
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        File to write.
    comparison : ComparisonDocument
    curves : sequence of Curves
        Of the heads, best first; the first ``MAX_CURVES`` are drawn.
    variation : Variation or None
        The one thing that the heads differ in.
    """
    labels = {} if variation is None else variation.labels()
    drawn = [replace(curve, label=labels.get(curve.name, "")) for curve in curves[:MAX_CURVES]]
    page = render(
        "comparison.html",
        title=f"{comparison['dataset']}/{comparison['split']}: {len(curves)} heads compared",
        comparison=comparison,
        kinds=[_kind_words(head, variation, labels) for head in comparison["heads"]],
        labels=labels,
        has_features=variation is None or variation.is_tap,
        has_times=any(head["seconds_per_epoch"] is not None for head in comparison["heads"]),
        variation=variation,
        by_variation=[] if variation is None else _by_variation(variation),
        drawn=len(drawn),
        coverage=Markup(_overlaid(drawn, _draw_coverage, "accuracy by coverage")),
        calibration=Markup(_overlaid(drawn, _draw_calibration, "accuracy by confidence")),
        losses=[
            (axis, Markup(_overlaid(group, _draw_losses, f"validation loss by {axis}")))
            for axis, group in _by_axis(drawn).items()
        ],
    )
    write_atomically(path, page)


def _kind_words(head: ComparedHead, variation: Variation | None, labels: dict[str, str]) -> str:
    """The kind of a head, with what may tell it apart; once is enough for what all have."""
    if variation is not None and not variation.is_tap:
        return f"{head['kind']}, {labels[head['head']]}"
    return head_words(head["kind"], head["params"], head["info"])


def _by_variation(variation: Variation) -> list[tuple[str, Markup]]:
    """Figures with their titles."""
    found = [(f"Accuracy by {variation.words}", Markup(draw_accuracy(variation)))]
    if variation.has_times and not variation.is_tap:
        found.append((f"Seconds per epoch by {variation.words}", Markup(draw_times(variation))))
    return found


def _by_axis(curves: Sequence[Curves]) -> dict[str, list[Curves]]:
    groups: dict[str, list[Curves]] = {}
    for curve in curves:
        if len(curve.history.rows) > 1:
            groups.setdefault(curve.history.axis, []).append(curve)
    return groups


def _overlaid(
    curves: Sequence[Curves], draw: Callable[[Any, Curves, str], None], label: str
) -> str:
    def draw_all(figure: Any) -> None:
        axes = figure.subplots()
        for curve in curves:
            draw(axes, curve, figures.plain_text(curve.label or escape(curve.name)[-_LABEL:]))
        axes.grid(alpha=0.3)
        if len(curves) <= _INSIDE:
            axes.legend(fontsize="small")
        else:
            # Inside, so many would hide the curves.
            figure.legend(fontsize="small", loc="outside lower left", ncols=_columns(curves))

    height = 3.6 if len(curves) <= _INSIDE else 3.6 + 0.18 * len(curves) / _columns(curves)
    return figures.draw_svg(draw_all, width=4.9, height=height, label=label)


def _columns(curves: Sequence[Curves]) -> int:
    return 2 if max(len(curve.label or curve.name) for curve in curves) <= _LABEL // 2 else 1


def _draw_coverage(axes: Any, curve: Curves, label: str) -> None:
    order = np.argsort(-curve.confidence, kind="stable")
    answered = np.arange(1, len(order) + 1)
    axes.plot(answered / len(order), curve.correct[order].cumsum() / answered, label=label)
    axes.set_xlabel("coverage: share of pictures answered, most confident first")
    axes.set_ylabel("accuracy among them")


def _draw_calibration(axes: Any, curve: Curves, label: str) -> None:
    axes.plot([0, 1], [0, 1], color="#a0aec0", linestyle="--")
    x = [b["confidence"] for b in curve.bins]
    axes.plot(x, [b["accuracy"] for b in curve.bins], marker="o", markersize=4, label=label)
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")


def _draw_losses(axes: Any, curve: Curves, label: str) -> None:
    rows = curve.history.rows
    axes.plot([row.at for row in rows], [row.val_loss for row in rows], label=label)
    axes.set_xlabel(curve.history.axis)
    axes.set_ylabel("validation loss")
    if curve.history.axis in ("C", "k"):
        axes.set_xscale("log")
