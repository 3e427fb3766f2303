"""The threads of an inference pool: how many there are, and what each of them sets up.

Torch is imported only where a network of torch's runs.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from featpipe.base.hardware import GPU_LANES, free_memory

if TYPE_CHECKING:
    import torch

_MEMORY_DIVISOR = 4
"""All threads of a CPU together take at most the free memory divided by this."""

_streams: dict[tuple[str, int], torch.cuda.Stream] = {}
"""Of a device and lane, for all passes of the process. Torch keeps freed memory per stream, so new
streams in every pass would keep that of the old ones from everybody."""


class Lanes:
    """One thread for a function that does without torch.

    Attributes
    ----------
    count : int
        Number of threads.
    """

    count = 1

    def set_up_thread(self) -> None:
        """Prepare the calling thread, which is one of them."""

    def close(self) -> None:
        """Give back what was set; the threads have ended."""


class CpuLanes(Lanes):
    """As many threads as cores, if memory allows; they share the cores between them.

    Also the one thread that drives a device other than CUDA's.
    """

    def __init__(self, device: str, batch_bytes: int) -> None:
        import torch

        self._torch_threads = torch.get_num_threads()
        if device == "cpu":
            fitting = free_memory() // _MEMORY_DIVISOR // batch_bytes
            self.count = int(np.clip(fitting, 1, self._torch_threads))

    def set_up_thread(self) -> None:
        """Give the thread its share of the cores."""
        import torch

        torch.set_num_threads(max(1, self._torch_threads // self.count))

    def close(self) -> None:
        """Torch hands the number that was set last to every new thread of the process."""
        import torch

        torch.set_num_threads(self._torch_threads)


class CudaLanes(Lanes):
    """Threads with a stream each, so that one batch is copied while the other is computed."""

    count = GPU_LANES

    def __init__(self, device: str) -> None:
        import torch

        self._device, self._numbers = device, itertools.count()
        torch.cuda.synchronize(device)  # the weights must be there before a stream uses them

    def set_up_thread(self) -> None:
        """Make the device and the lane's stream current, which they are per thread."""
        import torch

        key = self._device, next(self._numbers)
        if key not in _streams:
            _streams[key] = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        torch.cuda.set_device(self._device)
        torch.cuda.set_stream(_streams[key])

    def close(self) -> None:
        """Hand the memory that torch keeps in reserve back to the device, for training."""
        import torch

        torch.cuda.empty_cache()


def lanes_for(device: str, batch_bytes: int) -> Lanes:
    """Threads for a device.

    Parameters
    ----------
    device : str
        ``cpu``, ``mps`` or ``cuda:N``.
    batch_bytes : int
        Memory that a thread takes for a batch; 0 of a function that is not torch's.
    """
    if not batch_bytes:
        return Lanes()
    return CudaLanes(device) if device.startswith("cuda") else CpuLanes(device, batch_bytes)
