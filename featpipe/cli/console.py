"""What a command prints: results on stdout, everything else on stderr, and one exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from featpipe.base.errors import FeatpipeError, StorageError, UsageError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.text import escape
from featpipe.cli.signals import Interrupted, raise_interrupts, stop_raising_interrupts

SCHEMA = 1
EXIT_QUARANTINED = 3


class Console:
    """Where one command prints.

    Parameters
    ----------
    as_json : bool
        Print one JSON document instead of text.
    quiet : bool
        Print no progress, only warnings.
    verbose : bool
        Print details and tracebacks.
    """

    def __init__(self, *, as_json: bool, quiet: bool, verbose: bool) -> None:
        self.as_json = as_json
        self.verbose = verbose
        self._quiet = quiet
        level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter())
        logger = logging.getLogger("featpipe")
        logger.handlers[:] = [handler]
        logger.setLevel(level)

    @property
    def progress(self) -> Progress:
        """A bar on a terminal, else a line every 30 s; nothing when quiet."""
        if self._quiet:
            return no_progress
        from featpipe.base.progress_bars import choose_progress

        return choose_progress()

    def result(self, document: Mapping[str, object], text: str) -> None:
        """Print a command's result: the document as JSON, or the text."""
        print(self.dumps({"schema": SCHEMA, **document}) if self.as_json else text)

    @staticmethod
    def confirm(question: str) -> bool:
        """Ask on the terminal whether to go on.

        Raises
        ------
        UsageError
            There is no terminal to ask on.
        """
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(
                f"expected --yes where nobody can be asked, found no terminal; add it to {question}"
            )
        print(f"{escape(question)}? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @staticmethod
    def warn(text: str) -> None:
        """Print a warning as the library prints its own."""
        logging.getLogger("featpipe").warning("%s", text)

    @staticmethod
    def dumps(document: Mapping[str, object]) -> str:
        """ASCII JSON, so that any file name survives any terminal."""
        return json.dumps(document, ensure_ascii=True, default=str)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # Messages contain file and class names, which must not end the line or steer a terminal.
        text = escape(super().format(record))
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


@contextlib.contextmanager
def reporting_errors(console: Console) -> Iterator[None]:
    """Turn an error of the command inside into one line on stderr and an exit code."""
    raise_interrupts()
    try:
        try:
            try:
                yield
            finally:
                # A full disk or a reader that has gone is still reported from here.
                if sys.stdout is not None:
                    sys.stdout.flush()
        finally:
            stop_raising_interrupts()
    except FeatpipeError as error:
        _fail(console, str(error), error.exit_code, getattr(error, "__notes__", []))
    except KeyboardInterrupt as error:
        # Again, because this one may have come while interrupts were being stopped.
        stop_raising_interrupts()
        number: int = error.number if isinstance(error, Interrupted) else signal.SIGINT
        _fail(
            console,
            "interrupted; what was finished is kept, the same command goes on from there",
            128 + number,
        )
    except BrokenPipeError:
        # The reader of stdout has gone, as in `featpipe predict … | head`.
        _silence_stdout()
        sys.exit(1)
    except OSError as error:
        _silence_stdout()
        message = f"expected reading and writing to work, but: {error}; mend that and run it again"
        _fail(console, message, StorageError.exit_code)
    except MemoryError:
        _fail(console, "expected enough memory, found too little; see the limits in the docs", 1)


def _fail(console: Console, message: str, code: int, notes: Sequence[str] = ()) -> NoReturn:
    if console.verbose:
        import traceback

        traceback.print_exc()
    if sys.stderr is not None:
        print(f"Error: {escape(' '.join(message.splitlines()))}", file=sys.stderr)
        # The rows of a table of what there is to choose from.
        for note in notes:
            print(f"  {escape(note)}", file=sys.stderr)
    sys.exit(code)


def _silence_stdout() -> None:
    """Keep Python from writing again at its end what could not be written."""
    # Inside another program stdout may be an object that is no file.
    with contextlib.suppress(AttributeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
