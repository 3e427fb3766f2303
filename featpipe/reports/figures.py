"""The report's figures, drawn with matplotlib as SVG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib

from featpipe.base.text import escape
from featpipe.heads.base import History
from featpipe.reports.documents import CalibrationBin

_MANY_CLASSES = 20
_BLUE, _ORANGE, _GREY = "#2b6cb0", "#dd6b20", "#a0aec0"


def draw_svg(draw: Callable[[Any], None], *, width: float, height: float) -> str:
    """An SVG element, drawn without pyplot, which has global state and may need a display."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Glyphs as paths need no font in the browser; a fixed salt makes element ids reproducible.
    settings: Any = {"svg.hashsalt": "featpipe", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # matplotlib draws letters that its font lacks as boxes; the page's text shows them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def curves(history: History) -> str:
    """Train and validation loss and accuracy by epoch (or C), with a line at the kept row."""

    def draw(figure: Any) -> None:
        x = [row.at for row in history.rows]
        for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, colour in (("train", _BLUE), ("val", _ORANGE)):
                y = [getattr(row, f"{split}_{what}") for row in history.rows]
                axes.plot(x, y, color=colour, label=split, marker="o", markersize=3)
            axes.axvline(x[history.best], color=_GREY, linestyle="--", label="kept")
            axes.set_xlabel(history.axis)
            axes.set_ylabel(what)
            if history.axis == "C" and len(x) > 1:
                axes.set_xscale("log")
            axes.grid(alpha=0.3)
            axes.legend()

    return draw_svg(draw, width=9, height=3.2)


def confusion(matrix: list[list[int]], classes: list[str]) -> str:
    """Counts by true class (rows) and predicted class (columns), shaded by share of the row."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xlabel("predicted")
        axes.set_ylabel("truth")
        if len(classes) > _MANY_CLASSES:
            return
        # matplotlib would render text between dollar signs in class names as formulas.
        names = [escape(name)[:20].replace("$", r"\$") for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        for i, row in enumerate(matrix):
            for j, n in enumerate(row):
                colour = "white" if shares[i][j] > 0.5 else "black"
                axes.text(j, i, str(n), ha="center", va="center", color=colour)

    side = 4.4 if len(classes) <= 4 else 5.6 if len(classes) <= _MANY_CLASSES else 8
    return draw_svg(draw, width=side, height=side)


def reliability(bins: list[CalibrationBin], ece: float) -> str:
    """Accuracy against confidence, marker size by count; calibrated bins lie on the diagonal."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="calibrated")
        x = [b["confidence"] for b in bins]
        y = [b["accuracy"] for b in bins]
        total = sum(b["count"] for b in bins)
        sizes = [30 + 400 * b["count"] / total for b in bins]
        axes.plot(x, y, color=_BLUE)
        axes.scatter(x, y, s=sizes, color=_BLUE, alpha=0.6, label="bins, by count")
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.set_title(f"expected calibration error {ece:.3f}")
        axes.set_xlim(0, 1.05)
        axes.set_ylim(-0.02, 1.08)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")

    return draw_svg(draw, width=4.4, height=4.4)
