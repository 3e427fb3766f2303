"""Rows of text as an aligned table."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def aligned(
    rows: Sequence[Sequence[str]], *, left: int = 0, gap: str = "  ", least: int = 0
) -> list[str]:
    """Rows as lines of columns of one width; a row may end early.

    Parameters
    ----------
    rows : sequence of sequence of str
    left : int
        How many of the first columns are aligned to the left; the others are to the right.
    gap : str
        Between columns.
    least : int
        Smallest width of a column, characters.
    """
    widths = [
        max(least, *map(len, column)) for column in itertools.zip_longest(*rows, fillvalue="")
    ]
    return [
        gap.join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]
