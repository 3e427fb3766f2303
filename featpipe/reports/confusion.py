"""The confusion matrix as a page shows it: shaded cells, and the pairs most often confused."""

from __future__ import annotations

from dataclasses import dataclass

TABLE_CLASSES = 20
"""With more classes the matrix is drawn small, without numbers."""
LISTED_PAIRS = 200
_FAINTEST = 0.2


@dataclass(frozen=True)
class Cell:
    """One cell: pictures of class ``truth`` that were predicted to be of class ``predicted``.

    Attributes
    ----------
    truth, predicted : int
        Class indices.
    count : int
        Pictures.
    share : float
        Share of the pictures of the true class, 0 to 1.
    """

    truth: int
    predicted: int
    count: int
    share: float

    @property
    def is_right(self) -> bool:
        """Whether it lies on the diagonal."""
        return self.truth == self.predicted

    @property
    def shade(self) -> str:
        """Opacity of its colour; a single picture among thousands can still be seen."""
        return f"{max(self.share**0.5, _FAINTEST):.2f}" if self.count else "0"


def cells(matrix: list[list[int]]) -> list[list[Cell]]:
    """All cells; rows are the truth."""
    return [_row(i, row) for i, row in enumerate(matrix)]


def filled_cells(matrix: list[list[int]]) -> list[Cell]:
    """The cells that hold pictures, row by row."""
    return [cell for i, row in enumerate(matrix) for cell in _row(i, row, filled=True)]


def confused_pairs(matrix: list[list[int]]) -> list[Cell]:
    """Cells beside the diagonal that hold pictures, the fullest first."""
    wrong = [cell for cell in filled_cells(matrix) if not cell.is_right]
    return sorted(wrong, key=lambda cell: (-cell.count, -cell.share))


def _row(truth: int, row: list[int], *, filled: bool = False) -> list[Cell]:
    total = max(sum(row), 1)
    return [Cell(truth, j, n, n / total) for j, n in enumerate(row) if n or not filled]
