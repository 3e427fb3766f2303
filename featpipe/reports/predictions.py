"""Every prediction of one evaluation as a table."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.csv_rows import CsvWriter
from featpipe.base.disk import write_atomically

CLASS_PREFIX = "p:"
"""Begins the name of each class's column: a class may be called ``path``."""


def write_predictions(
    path: Path,
    pictures: Sequence[tuple[str, str]],
    y: NDArray[np.int64],
    probabilities: NDArray[np.float64],
    classes: Sequence[str],
) -> None:
    """Write ``path,split,truth,prediction`` and a column ``p:NAME`` per class as CSV.

    Names that are not UTF-8 keep their bytes.

    Parameters
    ----------
    path : Path
        File to write.
    pictures : sequence of (str, str)
        Path and split of each picture.
    y : ndarray of int64, shape (n,)
        True class indices.
    probabilities : ndarray of float64, shape (n, classes)
        Written with nine significant digits.
    classes : sequence of str
        Class names by index.

    Raises
    ------
    StorageError
    """
    data = io.BytesIO()
    text = io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape", newline="")
    table = CsvWriter(text)
    columns = [f"{CLASS_PREFIX}{name}" for name in classes]
    table.write(["path", "split", "truth", "prediction", *columns])
    predicted = probabilities.argmax(axis=1)
    for (picture, split), truth, best, row in zip(
        pictures, y, predicted, probabilities, strict=True
    ):
        numbers = [f"{p:.9g}" for p in row.tolist()]
        table.write([picture, split, classes[truth], classes[best], *numbers])
    text.flush()
    write_atomically(path, data.getvalue())
