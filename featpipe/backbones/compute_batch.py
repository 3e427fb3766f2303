"""How many pictures are handed to a network together, and how many it computes at once.

Torch may choose another algorithm for another number of pictures, which changes a row's last bits.
So a network computes one fixed number of pictures at once, whatever is handed over, and what that
number depends on does not change from run to run: the device and its memory, the network and the
size of the pictures.
"""

from __future__ import annotations

import threading

import numpy as np

from featpipe.base.hardware import GPU_LANES, total_memory

_MEMORY_DIVISOR = 2
"""All lanes together take at most a GPU's memory divided by this: weights, workspaces of the
libraries and training need some, too."""


class BatchLimit:
    """Largest number of images per forward pass; threads share it, and it never rises.

    Attributes
    ----------
    size : int
        The limit, images.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()

    def halve(self, size: int) -> bool:
        """Lower the limit to half of ``size``, a batch size for which memory was too small.

        Returns whether that was news.
        """
        with self._lock:
            before, self.size = self.size, max(1, min(self.size, size // 2))
            return self.size < before


def default_batch_size(device: str, side: int) -> int:
    """Pictures that are handed over together: on a CPU about as many as stay in its caches.

    On other devices a power of two, so that :func:`compute_batch` divides it.
    """
    pixels = side * side
    if device == "cpu":
        return int(np.clip(2 * 224 * 224 // pixels, 1, 64))
    return _power_of_two(int(np.clip(256 * 224 * 224 // pixels, 1, 1024)))


def compute_batch(device: str, side: int, picture_bytes: int) -> int:
    """Pictures that a network computes at once.

    Parameters
    ----------
    device : str
    side : int
        Of a picture, pixels.
    picture_bytes : int
        Memory that a picture takes where the network is widest.
    """
    wanted = default_batch_size(device, side)
    if not device.startswith("cuda"):
        return wanted
    # Of the total and not of the free memory, which depends on what else happens to run.
    room = total_memory(device) // _MEMORY_DIVISOR // GPU_LANES
    return min(wanted, _power_of_two(max(1, room // picture_bytes)))


def _power_of_two(number: int) -> int:
    """The largest one that is not above a number."""
    return 1 << (number.bit_length() - 1)
