"""What a command says: results on stdout, everything else on stderr, and one exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

from featpipe.base.errors import FeatpipeError
from featpipe.base.progress import Progress, no_progress
from featpipe.base.text import visible

SCHEMA = 1
EXIT_QUARANTINED = 3
_LOOK_AGAIN_S = 0.02


class _Interrupted(KeyboardInterrupt):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Speaker:
    """One command's voice.

    Parameters
    ----------
    as_json : bool
        One JSON document instead of text.
    quiet : bool
        No progress, only warnings.
    verbose : bool
        More of what is done; tracebacks.
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
        from featpipe.cli.progress import choose_progress

        return choose_progress()

    def result(self, document: dict[str, Any], text: str) -> None:
        """Print a command's result."""
        print(self.dumps({"schema": SCHEMA, **document}) if self.as_json else text)

    @staticmethod
    def warn(text: str) -> None:
        """A line on stderr, as the library's own warnings."""
        logging.getLogger("featpipe").warning("%s", text)

    @staticmethod
    def dumps(document: dict[str, Any]) -> str:
        """ASCII JSON: any file name survives any terminal."""
        return json.dumps(document, ensure_ascii=True, default=str)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # File and class names are in it: no name may end the line or steer a terminal.
        text = visible(super().format(record))
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


@contextlib.contextmanager
def speaking(speaker: Speaker) -> Iterator[None]:
    """Turn errors into one line and an exit code, signals into a tidy end."""
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, _interrupt)
    try:
        try:
            try:
                yield
            finally:
                # Here a full disk or a reader that has left can still be told.
                if sys.stdout is not None:
                    sys.stdout.flush()
        finally:
            _stop_interrupting()
    except FeatpipeError as error:
        _fail(speaker, str(error), error.exit_code)
    except KeyboardInterrupt as error:
        # Once more: this one may have come while it was being stopped.
        _stop_interrupting()
        number: int = error.number if isinstance(error, _Interrupted) else signal.SIGINT
        _fail(
            speaker,
            "interrupted; what was finished is kept, the same command goes on from there",
            128 + number,
        )
    except BrokenPipeError:
        # The reader of our stdout has gone, as in `featpipe predict … | head`.
        _silence_stdout()
        sys.exit(1)
    except OSError as error:
        _silence_stdout()
        _fail(
            speaker,
            f"expected reading and writing to work, but: {error}; mend that and run it again",
            74,
        )
    except MemoryError:
        _fail(speaker, "expected enough memory, found too little; see the limits in the docs", 1)


def _fail(speaker: Speaker, message: str, code: int) -> NoReturn:
    if speaker.verbose:
        import traceback

        traceback.print_exc()
    if sys.stderr is not None:
        print(f"Error: {visible(' '.join(message.splitlines()))}", file=sys.stderr)
    sys.exit(code)


def _silence_stdout() -> None:
    """Keep Python from trying again at its end what could not be written."""
    # What stands for stdout inside another program may be no file at all.
    with contextlib.suppress(AttributeError, OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, _end_at_once)
    _raise_until_it_ends(number, frame)


def _raise_until_it_ends(number: int, frame: FrameType | None) -> None:
    """Interrupt now, and look again soon.

    Not in the midst of importing a C++ library such as torch, which an exception would make
    abort the process, and not while the interrupt is on its way up. But again where it was
    swallowed, as by Python in a callback from C.
    """
    signal.signal(signal.SIGALRM, lambda _, later: _raise_until_it_ends(number, later))
    signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
    if not _is_importing(frame) and not _is_on_its_way():
        raise _Interrupted(number)


def _stop_interrupting() -> None:
    """The command is over: nothing may be raised in the midst of Python's own end.

    A first signal from here on ends the process as it would any other, a second one at once.
    """
    for caught in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(caught) is _interrupt:
            signal.signal(caught, signal.SIG_DFL)
    # Python takes handlers away before its last, and an alarm without one would kill it.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def _is_on_its_way() -> bool:
    error = sys.exception()
    while error is not None and not isinstance(error, _Interrupted):
        error = error.__context__
    return error is not None


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
