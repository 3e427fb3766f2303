"""Rows and what is known of their pictures as a Parquet file."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from featpipe.base.packages import needing
from featpipe.heads.base import blocks_of

FEATURES = "features"
ABOUT = "featpipe"
"""Key of the file's metadata whose value is JSON."""


def write_parquet(
    target: str | os.PathLike[str] | io.RawIOBase,
    X: Any,
    columns: Mapping[str, Sequence[str | None]],
    about: Mapping[str, Any],
    *,
    dtype: np.dtype,
    what: str,
) -> str:
    """Write columns of texts, and rows as a column ``features`` of lists; a row group per block.

    Parameters
    ----------
    target : path or binary file
    X : array-like, shape (n, …)
        Rows; flattened in the order of their axes.
    columns : mapping of str to sequence of str or None
        Of n texts each.
    about : mapping
        The value of the file's metadata ``featpipe``.
    dtype : dtype
        Of the numbers in the lists.
    what : str
        What needs pyarrow, for the message where it is missing.

    Returns
    -------
    str
        SHA-256 (hex) of the numbers.

    Raises
    ------
    MissingPackageError
        pyarrow is not installed.
    OSError
        The file cannot be written.
    """
    with needing("pyarrow", what, "parquet"):
        import pyarrow as arrow
        from pyarrow import parquet
    width = int(np.prod(X.shape[1:]))
    numbers = arrow.list_(arrow.from_numpy_dtype(dtype), width)
    schema = arrow.schema([*((name, arrow.string()) for name in columns), (FEATURES, numbers)])
    schema = schema.with_metadata({ABOUT: json.dumps(about)})
    digest, start = hashlib.sha256(), 0
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for block in blocks_of(X):
            part = slice(start, start + len(block))
            flat = np.ascontiguousarray(block, dtype).reshape(-1)
            digest.update(flat.data)
            arrays = [arrow.array(column[part], arrow.string()) for column in columns.values()]
            arrays.append(arrow.FixedSizeListArray.from_arrays(arrow.array(flat), width))
            writer.write_batch(arrow.record_batch(arrays, schema=schema))
            start += len(block)
    return digest.hexdigest()


def read_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of the numbers of a file, as :func:`write_parquet` returns it."""
    from pyarrow import parquet

    digest = hashlib.sha256()
    with parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for chunk in file.read_row_group(group, columns=[FEATURES])[FEATURES].chunks:
                numbers = chunk.flatten().to_numpy(zero_copy_only=True)
                digest.update(np.ascontiguousarray(numbers).data)
    return digest.hexdigest()
