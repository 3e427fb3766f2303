"""The page that compares heads on the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from featpipe.base.disk import write_atomically
from featpipe.base.text import escape
from featpipe.heads.base import History
from featpipe.reports import figures
from featpipe.reports.documents import CalibrationBin, ComparisonDocument
from featpipe.reports.templating import render
from featpipe.runs.words import head_words

MAX_CURVES = 10
"""Heads whose curves are drawn; more could not be told apart."""


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
    """

    name: str
    history: History
    bins: list[CalibrationBin]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]


def write_comparison(path: Path, comparison: ComparisonDocument, curves: Sequence[Curves]) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        File to write.
    comparison : ComparisonDocument
    curves : sequence of Curves
        Of the heads, best first; the first ``MAX_CURVES`` are drawn.
    """
    drawn = curves[:MAX_CURVES]
    page = render(
        "comparison.html",
        title=f"{comparison['dataset']}/{comparison['split']}: {len(curves)} heads compared",
        comparison=comparison,
        kinds=[head_words(h["kind"], h["params"], h["info"]) for h in comparison["heads"]],
        drawn=len(drawn),
        coverage=Markup(_overlaid(drawn, _draw_coverage, "accuracy by coverage")),
        calibration=Markup(_overlaid(drawn, _draw_calibration, "accuracy by confidence")),
        losses=[
            (axis, Markup(_overlaid(group, _draw_losses, f"validation loss by {axis}")))
            for axis, group in _by_axis(drawn).items()
        ],
    )
    write_atomically(path, page)


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
            # matplotlib would render text between dollar signs as formulas.
            draw(axes, curve, escape(curve.name)[-40:].replace("$", r"\$"))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")

    return figures.draw_svg(draw_all, width=5.6, height=4, label=label)


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
