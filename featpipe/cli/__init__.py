"""The command line: parse, call one library function, translate errors. No logic."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run ``featpipe`` with the process's arguments and exit."""
    # Until a command has its own: importing takes a while, and there is nothing to keep yet.
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, _end_before_it_began)
    from featpipe.cli.app import run

    run()


def _end_before_it_began(number: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        os.write(2, b"Error: interrupted; nothing was begun, run the same command again\n")
    os._exit(128 + number)
