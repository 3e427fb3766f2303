"""Which device and compute precision to use, determined without importing torch where possible."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from pathlib import Path

from featpipe.base.errors import UsageError

log = logging.getLogger("featpipe")

GPU_LANES = 2
"""Threads that run a network on one GPU: one batch is copied while the other is computed."""
_CUDA = re.compile(r"cuda(?::(0|[1-9][0-9]{0,3}))?", re.ASCII)
_NATIVE_BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""CPU flags (x86 and Arm) of processors that multiply bf16 in hardware."""


def resolve_device(device: str = "auto") -> str:
    """``auto`` → a GPU where torch can use one, else ``cpu``; other names are checked.

    A CUDA device always has its index in the result, because threads have a current device of
    their own: ``cuda`` is the one that is current in the calling thread.

    Raises
    ------
    UsageError
        The device is not usable here.
    """
    if device == "auto":
        device = _best_device()
    if device == "cpu":
        return device
    import torch

    spelling = _CUDA.fullmatch(device)
    if spelling and torch.cuda.is_available():
        index = torch.cuda.current_device() if spelling[1] is None else int(spelling[1])
        if index < torch.cuda.device_count():
            return f"cuda:{index}"
    if device == "mps" and torch.backends.mps.is_available():
        return device
    raise UsageError(
        f"expected a device this machine has, found {device!r}; use --device auto or cpu"
    )


@functools.cache
def _best_device() -> str:
    # Importing torch takes seconds, so avoid it on a machine without any accelerator.
    gpu = _gpu_file()
    if not (gpu or sys.platform == "darwin"):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    # Every Linux below Windows has /dev/dxg, with a GPU or without.
    if gpu and gpu != "/dev/dxg" and not is_hidden:
        built_for = torch.version.cuda or torch.version.hip
        log.warning(
            "expected to compute on the GPU (%s), found that torch %s cannot: using the CPU, which "
            "is many times slower; %s, or say --device cpu",
            gpu,
            torch.__version__,
            f"look for a driver for {built_for}" if built_for else "install torch for this GPU",
        )
    return "cpu"


def _gpu_file() -> str:
    """Device file of a GPU: NVIDIA's, that of Windows below WSL, or AMD's; empty without one."""
    found = [*sorted(Path("/dev").glob("nvidia*")), Path("/dev/dxg"), Path("/dev/kfd")]
    return next((str(path) for path in found if path.exists()), "")


@functools.cache
def matrix_precision(device: str) -> str:
    """Input precision of an accelerator's matrix units: ``bf16``, ``fp16``, else ``fp32``."""
    if not device.startswith("cuda"):
        return "fp32"
    import torch

    # bf16 matrix units came with compute capability 8.0, fp16 ones with 7.0.
    capability = torch.cuda.get_device_capability(device)
    return "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"


@functools.cache
def cpu_claims() -> str:
    """Model and bf16 flags of a processor that reports bf16 multiplication; else empty.

    Letters, digits, ``_`` and ``-`` only, such as ``GenuineIntel-6-207-amx_bf16-avx512_bf16``.
    """
    fields = _cpuinfo_fields()
    flags = fields.get("flags", fields.get("Features", "")).split()
    bf16_flags = sorted(_NATIVE_BF16.intersection(flags))
    if not bf16_flags:
        return ""
    x86 = ("vendor_id", "cpu family", "model")
    arm = ("CPU implementer", "CPU variant", "CPU part")
    model = [fields[name] for name in (*x86, *arm) if name in fields]
    return re.sub(r"[^\w-]", "_", "-".join([*model, *bf16_flags]), flags=re.ASCII)


def _cpuinfo_fields() -> dict[str, str]:
    """Fields of the first processor in ``/proc/cpuinfo``; empty if it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def cpu_count() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(device: str = "cpu") -> int:
    """Bytes this process may still allocate: on a CUDA device, or else in main memory."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    bounds = [bound for bound in (_free_by_kernel(), _free_by_cgroup()) if bound is not None]
    return min(bounds) if bounds else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def total_memory(device: str) -> int:
    """Bytes of a CUDA device's memory, whoever uses them now."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def _free_by_kernel() -> int | None:
    available_kib = _read_counters(Path("/proc/meminfo")).get("MemAvailable:")
    return None if available_kib is None else available_kib * 1024


def _free_by_cgroup(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes left below the container's limit; inactive file pages count as free."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        if limit == "max":
            return None
        reclaimable = _read_counters(folder / "memory.stat").get("inactive_file", 0)
        return max(0, int(limit) - used + reclaimable)
    except (OSError, ValueError):
        return None


def _read_counters(path: Path) -> dict[str, int]:
    """Lines ``name number …`` of a file as a dictionary; other lines are skipped."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
