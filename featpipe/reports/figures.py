"""The report's figures, drawn with matplotlib as SVG that takes its colours from the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib

from featpipe.base.text import escape
from featpipe.heads.base import History
from featpipe.reports.documents import CalibrationBin

# matplotlib knows no colours of a page: these stand for them until the figure is drawn.
INK, FIRST, SECOND, SOFT = "#010203", "#010204", "#010205", "#010206"
_PAGE_COLOURS = {
    INK: "currentColor",
    FIRST: "var(--first)",
    SECOND: "var(--second)",
    SOFT: "var(--soft)",
}
_SETTINGS: dict[Any, Any] = {
    # Glyphs as paths need no font in the browser; a fixed salt makes element ids reproducible.
    "svg.hashsalt": "featpipe",
    "svg.fonttype": "path",
    "axes.edgecolor": SOFT,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "figure.facecolor": "none",
    "grid.color": SOFT,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "text.color": INK,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
}


def draw_svg(
    draw: Callable[[Any], None], *, width: float, height: float, label: str = "figure"
) -> str:
    """An SVG element, drawn without pyplot, which has global state and may need a display.

    Parameters
    ----------
    draw : callable
        Draws into an empty figure.
    width, height : float
        Inches.
    label : str
        What a screen reader says.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_SETTINGS), warnings.catch_warnings():
        # matplotlib draws letters that its font lacks as boxes; the page's text shows them.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_page(buffer.getvalue(), label)


def plain_text(text: str) -> str:
    """Text that matplotlib draws as it is.

    What stands between dollar signs would be a formula, and a legend leaves out names that begin
    with an underscore.
    """
    text = escape(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _for_page(text: str, label: str) -> str:
    """The SVG element of a file, in the page's colours and without ids that figures share."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Nothing refers to groups; their ids (axes_1, …) would be the same in the next figure.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for stand_in, colour in _PAGE_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return f'<svg role="img" aria-label="{html.escape(label)}"{svg.removeprefix("<svg")}'


def curves(history: History) -> str:
    """Train and validation loss and accuracy by epoch (or C), with a line at the kept row."""

    def draw(figure: Any) -> None:
        x = [row.at for row in history.rows]
        for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, colour, line in (("train", FIRST, "--"), ("val", SECOND, "-")):
                y = [getattr(row, f"{split}_{what}") for row in history.rows]
                axes.plot(x, y, line, color=colour, label=split, marker="o", markersize=3)
            axes.axvline(x[history.best], color=SOFT, linestyle=":", label="kept")
            axes.set_xlabel(history.axis)
            axes.set_ylabel(what)
            if history.axis in ("C", "k") and len(x) > 1:
                axes.set_xscale("log")
            axes.grid(alpha=0.3)
            axes.legend()

    return draw_svg(
        draw, width=9, height=3.2, label=f"loss and accuracy of train and val by {history.axis}"
    )


def reliability(bins: list[CalibrationBin], ece: float) -> str:
    """Accuracy against confidence, marker size by count; calibrated bins lie on the diagonal."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle="--", label="calibrated")
        x = [b["confidence"] for b in bins]
        y = [b["accuracy"] for b in bins]
        total = sum(b["count"] for b in bins)
        sizes = [30 + 400 * b["count"] / total for b in bins]
        axes.plot(x, y, color=FIRST)
        axes.scatter(x, y, s=sizes, color=FIRST, alpha=0.6, label="bins, by count")
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")
        axes.set_title(f"expected calibration error {ece:.3f}")
        axes.set_xlim(0, 1.05)
        axes.set_ylim(-0.02, 1.08)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")

    return draw_svg(draw, width=4.4, height=4.4, label="accuracy by confidence")
