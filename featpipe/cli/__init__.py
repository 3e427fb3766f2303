"""The command line: parse, call one library function, translate errors. No logic."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from types import FrameType

_OBJECTS_BEFORE_A_LOOK = 50_000
"""New ones before garbage is looked for; Python's own 700 make for hundreds of looks at start."""


def main() -> None:
    """Run ``featpipe`` with the process's arguments and exit."""
    # Until a command has its own: importing takes a while, and there is nothing to keep yet.
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, _end_before_it_began)
    settle_in()
    from featpipe.cli.app import run

    run()


def settle_in() -> None:
    """Choose for the whole process what a library may not choose for others."""
    # Importing torch makes half a million objects, and all of them stay.
    gc.set_threshold(_OBJECTS_BEFORE_A_LOOK)
    atexit.register(_leave)
    # Threads of OpenMP otherwise spin for milliseconds at the end of every operation: where
    # another process has one of the cores, they take from it what the last thread needs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _leave() -> None:
    # Python looks through everything once more at its end, which takes longer than a head.
    # Triton's bindings, though, take for leaks, and name, what is not looked through.
    if "triton" not in sys.modules:
        gc.freeze()


def _end_before_it_began(number: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        os.write(2, b"Error: interrupted; nothing was begun, run the same command again\n")
    os._exit(128 + number)
