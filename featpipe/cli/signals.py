"""SIGINT and SIGTERM: the first one ends a command tidily, the second one at once.

A command goes through three states. Before it begins, a signal ends the process with a word
(:func:`end_without_work`). While it runs, the first signal is raised as :class:`Interrupted`
(:func:`raise_interrupts`), so that what is computed is committed. Once its result is printed,
signals have their default effect again (:func:`stop_raising_interrupts`), and while Python ends
they have none (:func:`ignore_signals`).
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_RETRY_S = 0.02
"""Seconds after which an interrupt that could not be raised, or was swallowed, is tried again."""


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command.

    Parameters
    ----------
    number : int
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def end_without_work() -> None:
    """Let signals end the process at once: it still imports, and there is nothing to keep."""
    for number in _SIGNALS:
        signal.signal(number, _end_before_it_began)


def raise_interrupts() -> None:
    """Let the first signal raise :class:`Interrupted` in the main thread."""
    for number in _SIGNALS:
        signal.signal(number, _interrupt)


def stop_raising_interrupts() -> None:
    """Give signals their default effect again: the command is over, nothing more is to be kept."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)
    # Python removes its handlers before it ends, and an alarm without a handler would kill it.
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.setitimer(signal.ITIMER_REAL, 0)


def ignore_signals() -> None:
    """Ignore signals while Python ends: they can no longer change anything."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_before_it_began(number: int, _frame: FrameType | None) -> None:
    if sys.stderr is not None:
        os.write(2, b"Error: interrupted; nothing was begun, run the same command again\n")
    os._exit(128 + number)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for again in _SIGNALS:
        signal.signal(again, _end_at_once)
    _raise_until_it_propagates(number, frame)


def _raise_until_it_propagates(number: int, frame: FrameType | None) -> None:
    """Raise an interrupt if it is safe now, and look again soon.

    It is not safe while a module is imported: an exception inside the import of a C++ library
    such as torch aborts the process. It is not needed while an interrupt already propagates. But
    a library may swallow it, as Python itself does in a callback from C: then it is raised again.
    """
    signal.signal(signal.SIGALRM, lambda _, later: _raise_until_it_propagates(number, later))
    signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
    if not _is_importing(frame) and not _is_propagating():
        raise Interrupted(number)


def _is_propagating() -> bool:
    error = sys.exception()
    while error is not None and not isinstance(error, Interrupted):
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
