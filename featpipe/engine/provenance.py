"""Where and with what rows were computed: kept in every segment, for people."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform

_PACKAGES = ("featpipe", "torch", "torchvision", "pillow", "numpy", "h5py")


def provenance(device: str) -> dict[str, str]:
    """Versions, device, host and time; of a CUDA device also its name and that of its libraries."""
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": device,
        **(_card(device) if device.startswith("cuda") else {}),
        "host": platform.node(),
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _card(device: str) -> dict[str, str]:
    # Which algorithms are chosen, and so the last bits, depend on these.
    import torch

    return {
        "device_name": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }
