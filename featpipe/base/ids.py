"""Image ids: the SHA-256 of a picture's bytes, kept as rows of an (n, 32) uint8 array."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIGEST_BYTES = 32


def sortable(ids: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """Image ids (n, 32) uint8 as (n,) fixed-width bytes, which NumPy sorts many times faster.

    NumPy omits trailing zero bytes when it displays such values, but compares all 32 bytes.
    """
    return np.ascontiguousarray(ids).view(f"S{DIGEST_BYTES}").reshape(-1)
