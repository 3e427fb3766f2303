"""The command line: parse, call one library function, translate errors. No logic."""

from __future__ import annotations

from featpipe.cli.process import configure_process
from featpipe.cli.signals import end_without_work


def main() -> None:
    """Run ``featpipe`` with the process's arguments and exit."""
    end_without_work()
    configure_process()
    from featpipe.cli.app import run

    run()
