"""A CUDA device that is not there: tensors without values on it, and a stand-in for ``torch.cuda``.

``FakeTensorMode`` computes shapes, dtypes and devices, and refuses operations whose tensors lie on
different devices; nothing is known of values, so whatever reads one fails.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


class FakeCuda:
    """Stands for ``torch.cuda``, and remembers what was asked of it.

    Attributes
    ----------
    count, current : int
        Devices, and the one that is current.
    total : int
        Bytes of each one's memory.
    calls : list of tuple
        Name and arguments of every call that changes something.
    """

    def __init__(self, count: int = 2, total: int = 80 * 2**30) -> None:
        self.count, self.total, self.current = count, total, 0
        self.calls: list[tuple[Any, ...]] = []

    def recorder(self, name: str) -> Callable[..., None]:
        return lambda *args: self.calls.append((name, *args))

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        cuda, fake = torch.cuda, self

        class Properties:
            total_memory = fake.total

        class Stream:
            def __init__(self, device: str) -> None:
                self.device = device

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                self.blocking = blocking

            def record(self) -> None:
                fake.calls.append(("record", self.blocking))

            def synchronize(self) -> None:
                fake.calls.append(("wait", self.blocking))

        for name in ("synchronize", "empty_cache", "set_device", "set_stream"):
            monkeypatch.setattr(cuda, name, self.recorder(name))
        monkeypatch.setattr(cuda, "get_device_properties", lambda device: Properties)
        monkeypatch.setattr(cuda, "mem_get_info", lambda device: (self.total, self.total))
        monkeypatch.setattr(cuda, "get_device_name", lambda device: f"Card of {device}")
        monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "Stream", Stream)
        monkeypatch.setattr(cuda, "Event", Event)
        return self

    def show(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        """Let torch say that it has these devices; tensors without values do not work then."""
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: self.count > 0)
        monkeypatch.setattr(cuda, "device_count", lambda: self.count)
        monkeypatch.setattr(cuda, "current_device", lambda: self.current)
        return self


class Operations(TorchDispatchMode):
    """Every operation that runs: its name, the devices it reads and the one it writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[str, set[str], str, torch.dtype | None]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        read = {str(part.device) for part in args if isinstance(part, torch.Tensor)}
        device = str(result.device) if isinstance(result, torch.Tensor) else ""
        dtype = result.dtype if isinstance(result, torch.Tensor) else None
        self.all.append((str(operation), read, device, dtype))
        return result

    def copies(self, source: str, target: str) -> list[str]:
        """Operations that move a tensor from one kind of device to another."""
        return [
            name
            for name, read, written, _ in self.all
            if written.startswith(target) and any(device.startswith(source) for device in read)
        ]

    def dtypes_on(self, device: str) -> set[torch.dtype | None]:
        return {dtype for _, _, written, dtype in self.all if written.startswith(device)}


@contextlib.contextmanager
def fake_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors made inside have no values, and may be on any device."""
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def _apply(self: nn.Module, function: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
    """As torch's own, which cannot replace parameters without values."""
    for child in self.children():
        child._apply(function)
    for name, value in self._parameters.items():
        if value is not None:
            self._parameters[name] = nn.Parameter(function(value.data), requires_grad=False)
    for name, value in self._buffers.items():
        self._buffers[name] = None if value is None else function(value)
    return self
