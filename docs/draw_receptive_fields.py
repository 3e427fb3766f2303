"""Draws receptive-fields.png: ``python docs/draw_receptive_fields.py`` after a change of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.tap_table import tap_table

SIZE = 224
COLOURS = ("#56b4e9", "#009e73", "#e69f00", "#cc79a7", "#d55e00")
"""Okabe and Ito's, which colour-blind people tell apart."""


def draw_taps(axes: Axes) -> None:
    """The fields of VGG16's poolings, around the same pixel of a picture."""
    axes.add_patch(Rectangle((0, 0), SIZE, SIZE, facecolor="#f2f2f2", edgecolor="black", lw=1.5))
    pools = [
        tap for tap in tap_table(get_backbone("vgg16"), SIZE).taps if tap.name.endswith("_pool")
    ]
    for tap, colour in zip(reversed(pools), reversed(COLOURS), strict=True):
        assert isinstance(tap.receptive_field, int)
        side, corner = tap.receptive_field, (SIZE - tap.receptive_field) / 2
        axes.add_patch(
            Rectangle((corner, corner), side, side, facecolor=colour + "55", edgecolor=colour, lw=2)
        )
        label = f"{tap.name.replace('_', ' ')}: {side} px, every {tap.stride} px"
        height = 8 + 36 * (len(pools) - 1 - pools.index(tap))
        axes.plot([corner + side, SIZE + 12], [corner, height], color=colour, lw=1)
        axes.text(SIZE + 15, height, label, va="center", fontsize=11)
    axes.text(0, -7, f"a picture of {SIZE} x {SIZE} px", fontsize=11)
    axes.set(xlim=(-5, 400), ylim=(SIZE + 10, -30), aspect="equal")


def draw_grid(axes: Axes, left: float, top: float, side: int, marked: int, colour: str) -> None:
    """A map of side x side values, of which the middle marked x marked are coloured."""
    first = (side - marked) // 2
    for row in range(side):
        for column in range(side):
            inside = first <= row < first + marked and first <= column < first + marked
            axes.add_patch(
                Rectangle(
                    (left + column, top + row),
                    1,
                    1,
                    facecolor=colour + "88" if inside else "white",
                    edgecolor="#555555",
                )
            )


def draw_5_as_3_and_3(axes: Axes) -> None:
    """One value of the second map sees 3 x 3 of the first, and those see 5 x 5 of the picture."""
    blue, green, red = COLOURS[0], COLOURS[1], COLOURS[4]
    for left, marked, colour, words in (
        (0, 5, blue, "picture"),
        (9, 3, green, "after one 3 x 3"),
        (18, 1, red, "after two 3 x 3"),
    ):
        draw_grid(axes, left, 0, 7, marked, colour)
        axes.text(left + 3.5, 8.1, words, ha="center", fontsize=11)
    for left, first, second in ((0, 5, 3), (9, 3, 1)):
        for side in (-1, 1):
            axes.plot(
                [left + 3.5 + first / 2, left + 12.5 - second / 2],
                [3.5 + side * first / 2, 3.5 + side * second / 2],
                color="black",
                lw=1,
            )
    axes.text(12.5, -1.2, "two 3 x 3 convolutions see 5 x 5 pixels", ha="center", fontsize=11)
    axes.set(xlim=(-1, 26), ylim=(9.5, -2.5), aspect="equal")


def main() -> None:
    """Draw both and save them beside this file."""
    mpl.use("Agg")
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 8), height_ratios=(2, 1.25), layout="constrained"
    )
    draw_taps(above)
    draw_5_as_3_and_3(below)
    for axes in (above, below):
        axes.axis("off")
    figure.savefig(Path(__file__).with_name("receptive-fields.png"), dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
