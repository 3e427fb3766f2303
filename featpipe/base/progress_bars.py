"""Progress for people: a bar on a terminal or in a notebook, else a line every 30 s; on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featpipe.base.progress import Bar, Progress, no_progress

LINE_EVERY_S = 30.0
REDRAW_EVERY_S = 0.2
_BAR_WIDTH = 30


def choose_progress() -> Progress:
    """What suits stderr."""
    if _in_notebook():
        return notebook_progress
    return bar_progress if sys.stderr.isatty() else line_progress


def as_progress(wanted: Progress | bool | None) -> Progress:
    """What a caller from Python wants: True is a bar, False and None are none."""
    if callable(wanted):
        return wanted
    return choose_progress() if wanted else no_progress


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this, whose notebook then shows stderr."""
    # Not imported: where a kernel runs, IPython is.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@contextmanager
def bar_progress(what: str, total: int) -> Iterator[Bar]:
    """A live bar with count, rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Live

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
        TextColumn("{task.fields[notes]}"),
    )
    with Live(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task(what, total=total or None, pace="", notes="")
        pace = _Pace(total)

        class _Live:
            def advance(self, steps: int = 1, *, is_work: bool = True, **notes: object) -> None:
                pace.add(steps, is_work=is_work)
                live.update(
                    task,
                    total=pace.total or None,
                    advance=steps,
                    pace=pace.text(),
                    notes=_notes(notes),
                )

        yield _Live()


@contextmanager
def line_progress(what: str, total: int) -> Iterator[Bar]:
    """A line with count, rate and time left every 30 s: for logs."""

    class _Lines:
        def __init__(self) -> None:
            self.pace = _Pace(total)
            self.told = time.monotonic()

        def advance(self, steps: int = 1, *, is_work: bool = True, **notes: object) -> None:
            self.pace.add(steps, is_work=is_work)
            now = time.monotonic()
            if now - self.told >= LINE_EVERY_S:
                self.told = now
                parts = (
                    f"{what}: {self.pace.done}/{self.pace.total or '?'}",
                    self.pace.text(),
                )
                line = f"{', '.join(filter(None, parts))} {_notes(notes)}"
                print(line.rstrip(), file=sys.stderr, flush=True)

    yield _Lines()


@contextmanager
def notebook_progress(what: str, total: int) -> Iterator[Bar]:
    """A bar of text that redraws itself in its line.

    rich would draw through ipywidgets, which not every notebook has, and otherwise warns at every
    step.
    """

    class _Redrawn:
        def __init__(self) -> None:
            self.pace, self.width, self.drawn = _Pace(total), 0, 0.0
            self.notes: dict[str, object] = {}

        def advance(self, steps: int = 1, *, is_work: bool = True, **notes: object) -> None:
            self.pace.add(steps, is_work=is_work)
            self.notes = notes
            if time.monotonic() - self.drawn >= REDRAW_EVERY_S:
                self.draw()

        def draw(self, end: str = "") -> None:
            self.drawn = time.monotonic()
            done, total = self.pace.done, self.pace.total
            filled = min(_BAR_WIDTH, _BAR_WIDTH * done // total) if total else 0
            bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
            parts = (f"{what} {bar} {done}/{total or '?'}", self.pace.text())
            line = f"{', '.join(filter(None, parts))} {_notes(self.notes)}".rstrip()
            print(f"\r{line.ljust(self.width)}", end=end, file=sys.stderr, flush=True)
            self.width = len(line)

    shown = _Redrawn()
    shown.draw()
    try:
        yield shown
    finally:
        shown.draw(end="\n")


class _Pace:
    """Rate and time left, by the steps that are work; ``done`` counts the others too."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self._worked = 0
        self._started = time.monotonic()

    def add(self, steps: int, *, is_work: bool) -> None:
        self.done += steps
        if self.total:
            # A search may go on beyond what was planned.
            self.total = max(self.total, self.done)
        if is_work:
            self._worked += steps
        elif not self._worked:
            # What was there is passed before the work begins.
            self._started = time.monotonic()

    def text(self) -> str:
        """``2.0/s, 4:30 left``; empty before any work is done."""
        if not self._worked:
            return ""
        rate = self._worked / max(time.monotonic() - self._started, 1e-9)
        left = f", {_duration((self.total - self.done) / rate)} left" if self.total else ""
        return f"{rate:.1f}/s{left}"


def _notes(notes: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in notes.items() if value != 0)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
