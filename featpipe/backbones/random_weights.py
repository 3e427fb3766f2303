"""Random weights that are the same for a seed for ever: ids of feature spaces depend on them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def normal_weights(
    seed: int, stream: int, shape: tuple[int, ...], variance: float
) -> NDArray[np.float32]:
    """Normal weights of a layer.

    Parameters
    ----------
    seed, stream : int
        Each tensor has a stream of its own, so that it does not depend on which others are drawn.
    shape : tuple of int
        Outputs first.
    variance : float
        Times the fan in: 2 is He's (He et al., "Delving Deep into Rectifiers", ICCV 2015).
    """
    # NumPy guarantees that RandomState's streams never change.
    normal = np.random.RandomState([seed, stream]).standard_normal(shape)
    return (normal * np.sqrt(variance / np.prod(shape[1:]))).astype(np.float32)
