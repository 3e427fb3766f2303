"""The command line: parse, call one library function, translate errors. No logic."""

from __future__ import annotations


def main() -> None:
    """Run ``featpipe`` with the process's arguments and exit."""
    from featpipe.cli.app import run

    run()
