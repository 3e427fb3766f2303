"""Progress for people: a bar on a terminal, a line every 30 s elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from featpipe.base.progress import Bar, Progress

LINE_EVERY_S = 30.0


def choose_progress() -> Progress:
    """What suits stderr."""
    return bar_progress if sys.stderr.isatty() else line_progress


@contextmanager
def bar_progress(what: str, total: int) -> Iterator[Bar]:
    """A live bar with count, rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Live

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[notes]}"),
    )
    with Live(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task(what, total=total or None, rate="", notes="")
        started = time.monotonic()
        done = 0

        class _Live:
            def advance(self, steps: int = 1, **notes: object) -> None:
                nonlocal done
                done += steps
                rate = done / max(time.monotonic() - started, 1e-9)
                shown = _notes(notes)
                # A search may go on beyond what was planned.
                most = max(total, done) if total else None
                live.update(task, total=most, advance=steps, rate=f"{rate:.1f}/s", notes=shown)

        yield _Live()


@contextmanager
def line_progress(what: str, total: int) -> Iterator[Bar]:
    """A line with count, rate and time left every 30 s: for logs."""

    class _Lines:
        def __init__(self) -> None:
            self.done = 0
            self.started = self.told = time.monotonic()

        def advance(self, steps: int = 1, **notes: object) -> None:
            self.done += steps
            now = time.monotonic()
            if now - self.told >= LINE_EVERY_S:
                self.told = now
                rate = self.done / (now - self.started)
                most = max(total, self.done) if total else 0
                left = f", {_duration((most - self.done) / rate)} left" if most else ""
                line = f"{what}: {self.done}/{most or '?'}, {rate:.1f}/s{left} {_notes(notes)}"
                print(line.rstrip(), file=sys.stderr, flush=True)

    yield _Lines()


def _notes(notes: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in notes.items() if value != 0)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
