"""Progress for people: lines in a log, a bar on a terminal, nothing on stdout."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from featpipe import api
from featpipe.base import progress_bars as bars
from featpipe.base.progress import no_progress


class Clock:
    """Stands still until told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(time, "monotonic", stopped)
    return stopped


def test_a_log_gets_no_line_before_30_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.line_progress("extract", 100) as bar:
        for _ in range(29):
            clock.now += 1
            bar.advance()
        clock.now += 0.9
        bar.advance()
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_with_rate_and_time_left_every_30_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.line_progress("extract", 600) as bar:
        for _ in range(90):
            clock.now += 1
            bar.advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "extract: 60/600, 2.0/s, 4:30 left",
        "extract: 120/600, 2.0/s, 4:00 left",
        "extract: 180/600, 2.0/s, 3:30 left",
    ]


def test_a_long_silence_is_one_line_and_the_next_is_30_seconds_later(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.line_progress("extract", 10) as bar:
        clock.now += 100
        bar.advance()
        clock.now += 29
        bar.advance()
        clock.now += 1
        bar.advance()
    assert capsys.readouterr().err.splitlines() == [
        "extract: 1/10, 0.0/s, 15:00 left",
        "extract: 3/10, 0.0/s, 5:03 left",
    ]


def test_hours_left_are_spelled_as_hours(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bars.line_progress("extract", 1000) as bar:
        clock.now += 30
        bar.advance(2)
    # 998 more at one in 15 s: 14,970 s.
    assert capsys.readouterr().err == "extract: 2/1000, 0.1/s, 4:09:30 left\n"


def test_an_unknown_total_gives_a_line_without_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.line_progress("train logistic", 0) as bar:
        clock.now += 30
        bar.advance(15)
    assert capsys.readouterr().err == "train logistic: 15/?, 0.5/s\n"


def test_steps_beyond_the_total_raise_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bars.line_progress("train logistic", 13) as bar:
        clock.now += 30
        bar.advance(15)
    assert capsys.readouterr().err == "train logistic: 15/15, 0.5/s, 0:00 left\n"


def test_notes_follow_the_rate_and_those_of_zero_are_left_out(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.line_progress("extract", 30) as bar:
        clock.now += 30
        bar.advance(15, bad=3, slow=0, val_loss="0.1250")
    line = "extract: 15/30, 0.5/s, 0:30 left bad=3 val_loss=0.1250\n"
    assert capsys.readouterr().err == line


def test_what_was_there_before_counts_for_neither_rate_nor_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    # A resumed extraction: 400 pictures are known after 10 s, then two are computed a second.
    with bars.line_progress("extract", 600) as bar:
        for _ in range(40):
            clock.now += 0.25
            bar.advance(10, is_work=False)
        for _ in range(50):
            clock.now += 1
            bar.advance(2, bad=0)
            bar.advance(1, is_work=False)
    assert capsys.readouterr().err.splitlines() == [
        "extract: 459/600, 2.0/s, 1:10 left",
        "extract: 549/600, 2.0/s, 0:25 left",
    ]


def test_only_known_pictures_have_no_rate(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bars.line_progress("extract", 600) as bar:
        clock.now += 31
        bar.advance(is_work=False, bad=1)
    assert capsys.readouterr().err == "extract: 1/600 bad=1\n"


def test_without_a_terminal_lines_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bars.choose_progress() is bars.line_progress


def test_on_a_terminal_a_bar_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert bars.choose_progress() is bars.bar_progress


class Notebook:
    """What IPython is inside a Jupyter kernel."""

    kernel = "there is one"

    @classmethod
    def get_ipython(cls) -> object:
        return cls


def test_in_a_notebook_its_bar_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Notebook)  # type: ignore[arg-type]
    assert bars.choose_progress() is bars.notebook_progress
    # IPython in a terminal has no kernel.
    monkeypatch.setattr(Notebook, "kernel", None)
    assert bars.choose_progress() is not bars.notebook_progress


def test_a_notebooks_bar_redraws_its_line_and_stays(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with bars.notebook_progress("extract", 60) as bar:
        for _ in range(30):
            clock.now += 0.125
            bar.advance(2, bad=1)
    out, err = capsys.readouterr()
    drawn = err.split("\r")[1:]
    assert out == "" and err.endswith("\n") and err.count("\n") == 1
    # Every other step, and at both ends.
    assert len(drawn) == 1 + 15 + 1
    assert drawn[0] == "extract " + 30 * "░" + " 0/60"
    half = next(line for line in drawn if " 32/60" in line)
    assert half.startswith("extract " + 16 * "█" + 14 * "░" + " 32/60, 16.0/s, 0:01 left bad=1")
    assert drawn[-1].startswith("extract " + 30 * "█" + " 60/60, 16.0/s, 0:00 left bad=1")
    # What was longer before is painted over.
    assert all(len(b) >= len(a.rstrip()) for a, b in itertools.pairwise(drawn))


def test_a_notebooks_bar_may_not_know_the_total(capsys: pytest.CaptureFixture[str]) -> None:
    with bars.notebook_progress("train logistic", 0) as bar:
        bar.advance()
    assert " 1/?, " in capsys.readouterr().err


def test_python_asks_for_a_bar_with_true(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert bars.as_progress(True) is bars.line_progress
    assert bars.as_progress(False) is bars.as_progress(None) is no_progress
    assert bars.as_progress(bars.bar_progress) is bars.bar_progress


def test_every_long_function_takes_true_or_a_callable(
    photo_folder: Path, cache: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def note(what: str, total: int) -> Any:
        opened.append(what)
        return no_progress(what, total)

    api.extract(photo_folder, name="set", cache=cache, workers=1, progress=note, **tiny)
    monkeypatch.setattr(bars, "choose_progress", lambda: note)
    run = api.train_head("set", cache=cache, out=cache / "run", epochs=1, progress=True).head
    api.predict(run, photo_folder, cache=cache, device="cpu", workers=1, progress=True)
    assert opened == ["extract", "train linear", "predict"]


def test_a_library_call_tells_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with no_progress("extract", 3) as bar:
        bar.advance(2, bad=1)
    assert capsys.readouterr() == ("", "")


# Runs on the far side of a pseudo-terminal. The result goes to stdout, which is a pipe there.
_WORK = """
import sys, time
from featpipe.base.progress_bars import choose_progress
with choose_progress()("extract", 40) as bar:
    for _ in range(40):
        time.sleep(0.02)
        bar.advance(bad=7)
print("result")
print("after", file=sys.stderr)
"""


def on_a_terminal(code: str, **env: str) -> tuple[str, str]:
    """What a script writes to stdout, a pipe, and to stderr, a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    terminal = {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "24", "NO_COLOR": ""}
    environment = {**os.environ, **terminal, **env}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    pieces = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux says EIO when the other side has closed.
            break
        if not piece:
            break
        pieces.append(piece)
    out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    return out.decode(), b"".join(pieces).decode()


def screen_of(output: str) -> list[str]:
    """The lines that are left on a terminal: enough of a terminal for what rich writes."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x1b]", output):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            column = 0
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and len(piece) > 1:
            row = max(0, row - int(piece[2:-1] or 1))
        elif piece in ("\x1b[2K", "\x1b[K"):
            lines[row] = lines[row][:column] if piece == "\x1b[K" else ""
        elif not piece.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + 1 :]
            column += 1
    return [line for line in (line.rstrip() for line in lines) if line]


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end() -> None:
    out, err = on_a_terminal(_WORK)
    counts = [int(done) for done in re.findall(r"(\d+)/40", err)]
    assert len(set(counts)) > 2, "the bar did not move"
    assert counts == sorted(counts)
    assert "extract" in err
    assert re.search(r"\d+\.\d/s, 0:0\d left", err)
    assert "bad=7" in err
    assert out == "result\n"
    assert screen_of(err) == ["after"]


def colours_in(output: str) -> list[str]:
    """Colour codes; bold, dim and the like are none."""
    codes = itertools.chain(*(code.split(";") for code in re.findall(r"\x1b\[([0-9;]*)m", output)))
    return [code for code in codes if code and (30 <= int(code) < 50 or int(code) >= 90)]


def test_no_color_leaves_the_bar_without_colour() -> None:
    _, coloured = on_a_terminal(_WORK)
    _, plain = on_a_terminal(_WORK, NO_COLOR="1")
    assert colours_in(coloured)
    assert not colours_in(plain)
    assert re.search(r"\d+/40", plain), "there was a bar"
