"""Features with what is known of their pictures, for pandas, Parquet and whatever reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import StorageError
from featpipe.base.packages import needing
from featpipe.base.space import FeatureSpace
from featpipe.base.text import as_utf8
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset
from featpipe.exports.parquet import write_parquet
from featpipe.store.rows import FeatureRows

if TYPE_CHECKING:
    import pandas


class FeatureTable(tuple[FeatureRows, NDArray[np.int64]]):
    """The pair ``X, y`` of some pictures, and what is known of these pictures.

    Attributes
    ----------
    X : FeatureRows, shape (n, *space.shape)
        Read-only and memory-mapped; ``numpy.asarray(X)`` copies it into memory.
    y : ndarray of int64, shape (n,)
        Index into ``classes``, -1 if unlabelled.
    dataset : str
        Name of the data set.
    classes : list of str
    paths : list of str
        Of each row's picture, relative to the data set's folder.
    splits : list of str or None
        ``train``, ``val`` or ``test``.
    space : FeatureSpace
    image_sha256 : ndarray of uint8, shape (n, 32)
    """

    dataset: str
    classes: list[str]
    paths: list[str]
    splits: list[str | None]
    space: FeatureSpace
    image_sha256: NDArray[np.uint8]

    @classmethod
    def of(
        cls, X: FeatureRows, dataset: Dataset, rows: NDArray[np.intp], space: FeatureSpace
    ) -> Self:
        """The table of a data set's rows (n,), whose features are ``X``."""
        table = cls((X, dataset.label[rows]))
        names = (*SPLITS, None)
        table.dataset, table.classes, table.space = dataset.name, dataset.classes, space
        table.paths = [dataset.paths[i] for i in rows]
        table.splits = [names[i] for i in dataset.split[rows]]
        table.image_sha256 = dataset.image_sha256[rows]
        return table

    @property
    def X(self) -> FeatureRows:
        """The features."""
        return self[0]

    @property
    def y(self) -> NDArray[np.int64]:
        """The class indices."""
        return self[1]

    @property
    def ids(self) -> list[str]:
        """SHA-256 (hex) of each picture file."""
        return [row.tobytes().hex() for row in self.image_sha256]

    @property
    def labels(self) -> list[str | None]:
        """Class name of each picture; None if unlabelled."""
        return [None if i == NO_LABEL else self.classes[i] for i in self.y]

    @property
    def feature_names(self) -> list[str]:
        """Names of the features, flattened: ``vgg16-block5_pool_0``, …."""
        return feature_names(self.space.backbone, self.space.tap, self.space.shape)

    def __repr__(self) -> str:
        return (
            f"<FeatureTable of {self.dataset!r}: {len(self.y)} rows of {self.space.name}, shape "
            f"{self.space.shape}, {len(self.classes)} classes>"
        )

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame: ``path, id, split, label`` and a float32 column per feature.

        Everything is copied into memory; maps are flattened in the order C H W. Bytes of names
        that are not UTF-8 become ``\\xNN``.

        Raises
        ------
        MissingPackageError
            pandas is not installed.
        """
        with needing("pandas", "to_pandas()", "pandas"):
            import pandas
        values = np.asarray(self.X).reshape(len(self.y), -1).astype(np.float32)
        frame = pandas.DataFrame(values, columns=self.feature_names)
        for place, (name, column) in enumerate(self._columns().items()):
            frame.insert(place, name, column)
        return frame

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file: ``path, id, split, label`` and ``features``, a list of float32.

        Maps are flattened in the order C H W. The file's metadata ``featpipe`` is JSON with the
        data set's name, the feature space and its id. Rows are read and written in blocks. Bytes
        of names that are not UTF-8 become ``\\xNN``. What was there before is replaced when the
        new file is whole.

        Raises
        ------
        MissingPackageError
            pyarrow is not installed.
        StorageError
            The file cannot be written.
        """
        target = Path(path)
        unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            try:
                write_parquet(
                    unfinished,
                    self.X,
                    self._columns(),
                    self._about(),
                    dtype=np.dtype(np.float32),
                    what="to_parquet()",
                )
                os.replace(unfinished, target)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"expected to write {target}, but: {error}") from error

    def _about(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "feature_space": json.loads(self.space.canonical_json),
            "feature_space_id": self.space.id,
        }

    def _columns(self) -> dict[str, Sequence[str | None]]:
        columns: dict[str, Sequence[str | None]] = {
            "path": self.paths,
            "id": self.ids,
            "split": self.splits,
            "label": self.labels,
        }
        return {name: list(map(_as_utf8, column)) for name, column in columns.items()}


def feature_names(backbone: str, tap: str, shape: tuple[int, ...]) -> list[str]:
    """Names of the flattened features of a tap: ``vgg16-block5_pool_0``, …."""
    return [f"{backbone}-{tap}_{i}" for i in range(int(np.prod(shape)))]


def _as_utf8(text: str | None) -> str | None:
    return None if text is None else as_utf8(text)
