"""Where and with what rows were computed: kept in every segment, for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

_PACKAGES = ("featpipe", "torch", "torchvision", "pillow", "numpy", "h5py")


def provenance(device: str) -> dict[str, str]:
    """Versions, device, host and time."""
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": device,
        "host": platform.node(),
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
