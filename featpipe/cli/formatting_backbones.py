"""Backbones, their taps and their tensors as text for people, on 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from featpipe.cli.tables import aligned

if TYPE_CHECKING:
    # The table needs torch, which a list of names does without.
    from featpipe.backbones.tap_table import TapRow, TapTable

_WIDTH = 80
_SHOWN_TAPS = 32
_HEADER = ("shape", "parameters", "GFLOP", "field", "stride", "pad")


def of_families(families: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The families of backbones, each a title and its members' names."""
    paragraphs = []
    for title, names in families:
        members = textwrap.fill(
            "  ".join(names),
            _WIDTH,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
            break_long_words=False,
        )
        paragraphs.append(f"{title}\n{members}" if names else title)
    return "\n\n".join([*paragraphs, "featpipe backbones NAME lists the taps of one"])


def of_taps(table: TapTable, *, usual_size: int, every: bool) -> str:
    """A table of taps: those that end parts with names of their own, or every one.

    Parameters
    ----------
    table : TapTable
    usual_size : int
        The backbone's own side of pictures, pixels.
    every : bool
    """
    shown = table.taps if every else _ends_of_parts(table.taps)
    lines = [*_lines(shown, "too small" if table.size < usual_size else "too large"), ""]
    if len(shown) < len(table.taps):
        lines.append(f"{len(shown)} of {len(table.taps)} taps; --all lists every one")
    lines += [
        f"for pictures of {table.size} x {table.size}; GFLOP: 2 per multiply-add, of all that "
        "the tap needs;",
        "field, stride, pad: receptive field and steps, pixels; all: the whole picture",
    ]
    lines += [line for note in table.notes for line in textwrap.wrap(note, _WIDTH)]
    return "\n".join(lines)


def _ends_of_parts(taps: Sequence[TapRow]) -> list[TapRow]:
    """Down to the deepest level of names at which they are few enough to be read."""
    depths = sorted({tap.name.count(".") for tap in taps})
    levels = [[tap for tap in taps if tap.name.count(".") <= depth] for depth in depths]
    readable = [level for level in levels if len(level) <= _SHOWN_TAPS]
    return readable[-1] if readable else levels[0]


def _lines(taps: Sequence[TapRow], no_shape: str) -> list[str]:
    numbers = [_numbers(tap, no_shape) for tap in taps]
    names = [[tap.name, tap.node] for tap in taps]
    lines = aligned(
        [
            ("tap", "node", *_HEADER),
            *([*name, *row] for name, row in zip(names, numbers, strict=True)),
        ],
        left=3,
    )
    if max(map(len, lines)) <= _WIDTH:
        return lines
    room = _WIDTH - max(map(len, aligned([_HEADER, *numbers], left=1))) - len("  ")
    # A name without room has a line of its own.
    firsts = [tap.name if len(tap.name) <= room else "" for tap in taps]
    lines = aligned(
        [("tap", *_HEADER), *([first, *row] for first, row in zip(firsts, numbers, strict=True))],
        left=2,
    )
    broken = [
        [line] if first else [tap.name, line]
        for tap, first, line in zip(taps, firsts, lines[1:], strict=True)
    ]
    return [lines[0], *(line for group in broken for line in group)]


def _numbers(tap: TapRow, no_shape: str) -> list[str]:
    return [
        no_shape if tap.shape is None else "x".join(map(str, tap.shape)),
        _or("-", tap.parameters, ","),
        _or("-", tap.gflops, ".3f"),
        _or("?", tap.receptive_field, ""),
        _or("-", tap.stride, ""),
        _or("-", tap.padding, ""),
    ]


def _or(missing: str, value: object, form: str) -> str:
    return missing if value is None else format(value, form)


def of_tensors(rows: Sequence[Mapping[str, object]]) -> str:
    """A table of tensors."""
    cells = [(str(row["name"]), _shape(row["shape"]), str(row["dtype"])) for row in rows]
    return "\n".join(aligned([("tensor", "shape", "dtype"), *cells], left=3))


def _shape(shape: object) -> str:
    assert isinstance(shape, (tuple, list))
    return "x".join(map(str, shape)) or "one number"
