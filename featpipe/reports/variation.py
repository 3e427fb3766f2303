"""What compared heads differ in, where it is one thing alone: a hyper-parameter or the tap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from featpipe.base.numbers import is_finite
from featpipe.base.space import FeatureSpace
from featpipe.reports import figures
from featpipe.reports.documents import ComparedHead
from featpipe.runs.words import head_words

_MANY_TICKS = 8
_DECADE = 10
_WIDTH = 4.9
"""Inches: two figures stand side by side on a screen, and text is readable on a phone."""

_PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")


@dataclass(frozen=True)
class Compared:
    """One of the compared heads, with what decides whether another one differs in one thing alone.

    Attributes
    ----------
    row : ComparedHead
    spaces : tuple of FeatureSpace
        Those that it was trained on.
    weights : str
        How the backbone's weights were named: their digest depends on the tap.
    train_sha256 : str
        Digest of the pictures it was trained on.
    """

    row: ComparedHead
    spaces: tuple[FeatureSpace, ...]
    weights: str
    train_sha256: str

    @property
    def tap(self) -> str:
        """Its tap; of several spaces, all of them."""
        return " + ".join(space.tap for space in self.spaces)


@dataclass(frozen=True)
class Variation:
    """The one thing that heads of one kind differ in.

    Attributes
    ----------
    name : str
        A hyper-parameter, or ``tap``.
    kind : str
        Of the heads.
    heads : list of ComparedHead
        By its value; taps in the order of the network.
    values : list of int, float or str
        Its value in each head.
    """

    name: str
    kind: str
    heads: list[ComparedHead]
    values: list[Any]

    @property
    def words(self) -> str:
        """``batch_size`` as ``batch size``."""
        return self.name.replace("_", " ")

    @property
    def has_times(self) -> bool:
        """Whether the seconds per epoch are known of every head."""
        return all(head["seconds_per_epoch"] is not None for head in self.heads)

    def common_words(self) -> str:
        """What the heads have in common: their kind and parameters, and features if the same."""
        head = self.heads[0]
        params = {name: value for name, value in head["params"].items() if name != self.name}
        words = head_words(self.kind, params, {})
        return words if self.is_tap else f"{words}, features {head['features']}"

    @property
    def is_tap(self) -> bool:
        """Whether it is the tap; else a hyper-parameter."""
        return self.name == "tap"

    def labels(self) -> dict[str, str]:
        """What tells each head apart from the others, by its name."""
        shown = [_number(v) if is_finite(v) else str(v) for v in self.values]
        prefix = "" if self.is_tap else f"{self.words} "
        return {h["head"]: f"{prefix}{v}" for h, v in zip(self.heads, shown, strict=True)}


def find_variation(compared: Sequence[Compared]) -> Variation | None:
    """What heads differ in, if it is one numeric hyper-parameter or the tap alone.

    Parameters
    ----------
    compared : sequence of Compared
        The heads; their taps in the order of the network.
    """
    first = compared[0]
    if any(_rest(other) != _rest(first) for other in compared[1:]):
        return None
    all_params = [one.row["params"] for one in compared]
    varied = [n for n in all_params[0] if any(p.get(n) != all_params[0][n] for p in all_params)]
    taps = [one.tap for one in compared]
    if not varied and len(set(taps)) > 1:
        return Variation("tap", first.row["kind"], [one.row for one in compared], taps)
    if len(varied) != 1 or len({one.spaces for one in compared}) > 1:
        return None
    (name,) = varied
    values = [params[name] for params in all_params]
    if not all(is_finite(value) and not isinstance(value, bool) for value in values):
        return None
    rows = sorted((one.row for one in compared), key=lambda row: row["params"][name])
    return Variation(name, first.row["kind"], rows, [row["params"][name] for row in rows])


def _rest(one: Compared) -> tuple[Any, ...]:
    """Everything but the hyper-parameters and the tap that may make heads differ."""
    row = one.row
    # What follows from the tap is not compared beside it.
    spaces = {dataclasses.replace(s, tap="", weights=one.weights, shape=()) for s in one.spaces}
    notes = [row["info"].get(name) for name in ("n_shot", "views")]
    return row["kind"], set(row["params"]), notes, spaces, one.train_sha256


def draw_accuracy(variation: Variation) -> str:
    """Accuracy with its 95 % interval by what varies, as an SVG element."""
    accuracy = [head["accuracy"] for head in variation.heads]
    intervals = [head["accuracy_ci95"] for head in variation.heads]
    # Where nothing varies between resamples, rounding may leave a bound on the wrong side.
    below = [max(0, a - low) for a, (low, _) in zip(accuracy, intervals, strict=True)]
    above = [max(0, high - a) for a, (_, high) in zip(accuracy, intervals, strict=True)]
    bars = [below, above]
    label = f"accuracy by {variation.words}"
    style = {"color": figures.FIRST, "marker": "o", "markersize": 4, "capsize": 3}

    def by_value(figure: Any) -> None:
        axes = figure.subplots()
        axes.errorbar(variation.values, accuracy, yerr=bars, **style)
        axes.yaxis.set_major_formatter(_PERCENT)
        axes.set_ylabel("accuracy")
        _number_axis(axes, variation)

    def by_name(figure: Any) -> None:
        axes = figure.subplots()
        places = list(range(len(accuracy)))
        axes.errorbar(accuracy, places, xerr=bars, linestyle="none", **style)
        axes.set_yticks(places, [figures.plain_text(str(name)) for name in variation.values])
        axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(_PERCENT)
        axes.set_xlabel("accuracy")
        axes.grid(alpha=0.3)

    if variation.is_tap:
        height = 0.9 + 0.28 * len(accuracy)
        return figures.draw_svg(by_name, width=_WIDTH, height=height, label=label)
    return figures.draw_svg(by_value, width=_WIDTH, height=3.4, label=label)


def draw_times(variation: Variation) -> str:
    """Seconds per epoch by what varies, as an SVG element; every head has them."""
    seconds = [head["seconds_per_epoch"] or 0.0 for head in variation.heads]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(variation.values, seconds, color=figures.SECOND, marker="o", markersize=4)
        axes.set_ylabel("seconds per epoch")
        if _spans_a_decade(seconds):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        else:
            axes.set_ylim(bottom=0)
        _number_axis(axes, variation)

    label = f"seconds per epoch by {variation.words}"
    return figures.draw_svg(draw, width=_WIDTH, height=3.4, label=label)


def _number_axis(axes: Any, variation: Variation) -> None:
    values = list(dict.fromkeys(variation.values))
    axes.set_xlabel(variation.words)
    if _spans_a_decade(values):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        many = len(values) > _MANY_TICKS
        axes.set_xticks(values, list(map(_number, values)), rotation=60 if many else 0)
    axes.grid(alpha=0.3)


def _spans_a_decade(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > _DECADE * min(values)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
