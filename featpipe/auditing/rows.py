"""Feature rows as directions: pooled and of length 1, so that products are cosines."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.base import blocks_of


def pooled(X: Any) -> NDArray[np.float32]:
    """One number per channel of every row.

    Parameters
    ----------
    X : array-like, shape (n, C, H, W) or (n, C)
        Rows of any float dtype; maps are averaged over H and W, a block of rows at a time, so
        that they may be memory-mapped.

    Returns
    -------
    ndarray of float32, shape (n, C)
    """
    out = np.empty(X.shape[:2], np.float32)
    start = 0
    for block in blocks_of(X):
        out[start : start + len(block)] = block.reshape(*block.shape[:2], -1).mean(
            axis=2, dtype=np.float32
        )
        start += len(block)
    return out


def directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (n, C) scaled to length 1; a row of zeros stays one.

    Rows are not centred: measured on photographs, copies then stand out less from other pictures.
    """
    length = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    length[length == 0] = 1
    return rows / length[:, None].astype(np.float32)
