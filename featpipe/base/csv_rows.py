"""CSV that any reader takes apart again, whatever file and class names hold."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import TextIO


class CsvWriter:
    """Writes rows of CSV (RFC 4180, lines end in a line feed).

    Parameters
    ----------
    stream : text file
    """

    def __init__(self, stream: TextIO) -> None:
        self._plain = csv.writer(stream, lineterminator="\n")
        self._quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(self, row: Sequence[str]) -> None:
        """Write one row."""
        # The csv module does not quote a lone carriage return, which readers take for a line's end.
        (self._quoted if any("\r" in cell for cell in row) else self._plain).writerow(row)
