"""Settings of the whole process, which a library may not choose for the programs that use it."""

from __future__ import annotations

import atexit
import gc
import os
import sys

_GC_THRESHOLD = 50_000
"""New objects between two passes of the garbage collector."""
_SPIN_COUNT = "3000"
"""How many times a thread of OpenMP looks for work before it sleeps."""


def configure_process() -> None:
    """Set up garbage collection and OpenMP for a short-lived command."""
    _collect_rarely()
    _limit_openmp_spinning()


def _collect_rarely() -> None:
    # Importing torch makes half a million objects, and all of them stay. Python's own threshold
    # of 700 would have the collector search them hundreds of times.
    gc.set_threshold(_GC_THRESHOLD)
    # At its end Python searches all objects once more, which takes longer than training a head:
    # frozen objects are left out. Triton reports objects that are left out as leaks.
    atexit.register(lambda: None if "triton" in sys.modules else gc.freeze())


def _limit_openmp_spinning() -> None:
    # After every operation libgomp's threads spin for some 14 ms before they sleep. Where another
    # process uses one of the cores, they take away the time that the last thread needs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def configure_streams() -> None:
    """Make stdout and stderr carry any file name: names that are not UTF-8 keep their bytes."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
