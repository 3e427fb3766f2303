"""What a network needs of a GPU: exact arithmetic, copies that do not wait, errors that are known.

All of it does nothing, or the plain thing, on a CPU.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "unable to find an engine",  # cuDNN, where no algorithm's workspace fits
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",  # no memory for the library's own handle
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)
"""Parts of the messages with which torch and its libraries say that memory is too small."""
_cudnn: Any = torch.backends.cudnn
_EXACT: tuple[tuple[Any, str, Any], ...] = (
    (_cudnn, "deterministic", True),
    # To time algorithms is to choose by luck.
    (_cudnn, "benchmark", False),
    (_cudnn.conv, "fp32_precision", "ieee"),
    (_cudnn.rnn, "fp32_precision", "ieee"),
    (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
)
"""Settings of the process: (module, name, value). Precisions by torch's newer names alone, because
what was set by them cannot be read by the older ``allow_tf32``."""


class _ExactArithmetic:
    """Sets ``_EXACT`` while anybody computes, and restores what was there after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before: list[Any] = []

    @contextlib.contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """Products and convolutions in full float32 and always by the same algorithm."""
        if device.type != "cuda":
            yield
            return
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = [getattr(module, name) for module, name, _ in _EXACT]
                for module, name, value in _EXACT:
                    setattr(module, name, value)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    for (module, name, _), value in zip(_EXACT, self._before, strict=True):
                        setattr(module, name, value)


exact_arithmetic = _ExactArithmetic()


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that a device's memory is too small."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        text in str(error) for text in _OUT_OF_MEMORY
    )


def padded_on(device: torch.device, batch: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures (n, …) on a device, with zeros behind them to at least ``size`` pictures.

    Nobody waits for the copy, because it is made from pinned memory.
    """
    is_cuda = device.type == "cuda"
    if len(batch) < size or is_cuda:
        shape = (max(len(batch), size), *batch.shape[1:])
        padded = torch.empty(shape, dtype=batch.dtype, pin_memory=is_cuda)
        padded[: len(batch)] = batch
        padded[len(batch) :] = 0
        batch = padded
    return batch.to(device, non_blocking=is_cuda)


def on_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one device on the CPU: one copy each, and from a GPU one wait for all."""
    device = tensors[0].device
    if device.type != "cuda":
        return [tensor.cpu() for tensor in tensors]
    copies = [
        torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
            tensor, non_blocking=True
        )
        for tensor in tensors
    ]
    with torch.cuda.device(device):
        # Without ``blocking`` the thread would keep a core busy while it waits.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record()  # type: ignore[no-untyped-call]
        done.synchronize()  # type: ignore[no-untyped-call]
    return copies
