"""Signals: an interrupted extraction keeps what it has, leaves nobody behind and goes on later."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import Run, json_of

PICTURES = 200
FLAGS = (
    "--weights random:0 --tap block1_pool --pool avg --size 64 --precision fp32 --device cpu "
    "--batch-size 4 --workers 2"
).split()
COMMAND = ["extract", "many", "--name", "many", *FLAGS]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/task").is_dir(), reason="children are found through /proc"
)

# The command line at 80 pictures a second at most: no machine is done before it is interrupted.
SLOW = """
import time
from featpipe.engine.writer import SegmentWriter
poll = SegmentWriter.poll
def slowly(self):
    time.sleep(0.05)
    poll(self)
SegmentWriter.poll = slowly
"""
RUN = """
from featpipe.cli import main
main()
"""
# With another writer: every batch is a segment at once, as after 30 seconds.
EAGER = """
from featpipe.engine import writer
writer.COMMIT_BYTES = 1
"""
# A disk that never answers: the tidy end takes for ever.
STUCK = """
import sys, time
from featpipe.engine.writer import SegmentWriter
def finish(self):
    print("finishing", file=sys.stderr, flush=True)
    while True:
        time.sleep(1)
SegmentWriter.finish = finish
"""


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Different pictures of two classes."""
    folder = tmp_path / "many"
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(PICTURES // 2):
            pixels = rng.integers(0, 256, (24, 24, 3), np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.bmp")
    return folder


class Job:
    """An extraction in a process group of its own, with a terminal for its stderr."""

    def __init__(self, folder: Path, changes: str, flags: tuple[str, ...]) -> None:
        self._terminal, theirs = pty.openpty()
        env = {"TERM": "xterm", "COLUMNS": "120", "FEATPIPE_CACHE": "", "PYTHONUNBUFFERED": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SLOW + changes + RUN, *COMMAND, *flags],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, **env},
            start_new_session=True,
        )
        os.close(theirs)
        self.said = ""

    def read(self, seconds: float) -> bool:
        """Take what it says; False at the end."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._terminal, 1 << 16)
        except OSError:  # the other side has closed
            return False
        self.said += piece.decode()
        return bool(piece)

    def until(self, happened: Callable[[Job], object], seconds: float = 120) -> None:
        """Wait for something; it is a failure if the job ends before."""
        deadline = time.monotonic() + seconds
        while not happened(self):
            assert self.read(0.02), f"it ended too early:\n{self.said}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.said}"

    def end(self, seconds: float = 20) -> int:
        """Its exit code; it is a failure if it takes longer."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self.read(0.05)
            assert time.monotonic() < deadline, f"it did not end:\n{self.said}"
        while self.read(0.1) and select.select([self._terminal], [], [], 0)[0]:
            pass
        return self.process.returncode

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        os.close(self._terminal)


Start = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path, many: Path) -> Iterator[Start]:
    """Start the extraction of ``many``; whatever a test does, nothing of it outlives the test."""
    jobs: list[Job] = []

    def begin(*flags: str, changes: str = "") -> Job:
        jobs.append(Job(tmp_path, changes, flags))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.close()


def done_so_far(job: Job) -> int:
    """The last count of the bar."""
    counts = re.findall(rf"(\d+)/{PICTURES}", job.said)
    return int(counts[-1]) if counts else 0


def is_under_way(job: Job) -> bool:
    return done_so_far(job) >= 20


def segments(folder: Path) -> list[Path]:
    # Finished ones: those being written have another name.
    return list(folder.glob("cache/spaces/*/segments/[0-9a-f]*.h5"))


def workers_of(job: Job) -> list[int]:
    found = Path(f"/proc/{job.process.pid}/task/{job.process.pid}/children").read_text()
    children = [int(pid) for pid in found.split()]
    return [pid for pid in children if b"featpipe.decoding.worker" in command_line(pid)]


def command_line(pid: int) -> bytes:
    """Empty for a process that is no more, and for one that only waits to be counted as dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def assert_all_gone(pids: list[int], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if b"featpipe" in command_line(pid)]:
        assert time.monotonic() < deadline, f"{alive} live on"
        time.sleep(0.05)


def rows_kept(featpipe: Run) -> int:
    """Rows in the store, after a look at every checksum."""
    verified = featpipe("cache", "verify", "--json")
    assert verified.returncode == 0, verified.stdout
    return sum(s["rows"] for s in json_of(featpipe("cache", "list", "--json"))["stores"])


def finished(featpipe: Run) -> dict[str, Any]:
    done = featpipe(*COMMAND, "--json")
    assert done.returncode == 0, done.stderr
    return json_of(done)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_a_signal_ends_an_extraction_tidily_and_the_next_computes_only_the_rest(
    start: Start, featpipe: Run, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job = start()
    job.until(is_under_way)
    workers = workers_of(job)
    assert len(workers) == 2
    # Ctrl-C and batch systems signal the whole group: the workers must leave it to their parent.
    os.killpg(job.process.pid, number)
    assert job.end() == code
    assert_all_gone(workers)

    assert job.process.stdout is not None
    assert job.process.stdout.read() == b""
    last = job.said.replace("\r", "").strip().split("\n")[-1]
    assert last.endswith(
        "Error: interrupted; what was finished is kept, the same command goes on from there"
    )
    assert "Traceback" not in job.said
    # No data set: it would promise rows that are not there.
    assert not list(tmp_path.glob("cache/datasets/*"))
    assert not list(tmp_path.rglob(".tmp-*"))

    kept = rows_kept(featpipe)
    assert 20 <= kept < PICTURES
    found = finished(featpipe)
    assert (found["computed"], found["reused"]) == (PICTURES - kept, kept)


def test_a_signal_to_the_parent_alone_ends_the_workers_too(start: Start) -> None:
    job = start()
    job.until(is_under_way)
    workers = workers_of(job)
    assert workers
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 143
    assert_all_gone(workers)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_at_once(start: Start, second: signal.Signals) -> None:
    job = start(changes=STUCK)
    job.until(is_under_way)
    workers = workers_of(job)
    job.process.send_signal(signal.SIGINT)
    job.until(lambda job: "finishing" in job.said, 20)
    assert job.process.poll() is None, "one signal gives it the time it needs"
    job.process.send_signal(second)
    assert job.end(5) == 128 + second
    assert_all_gone(workers)


def test_after_a_kill_of_the_group_committed_rows_are_there_and_only_the_rest_is_computed(
    start: Start, featpipe: Run, tmp_path: Path
) -> None:
    job = start(changes=EAGER)
    job.until(lambda _: len(segments(tmp_path)) >= 3)
    os.killpg(job.process.pid, signal.SIGKILL)
    assert job.end() == -signal.SIGKILL
    committed = len(segments(tmp_path))
    kept = rows_kept(featpipe)
    assert committed <= kept < PICTURES
    found = finished(featpipe)
    assert (found["computed"], found["reused"]) == (PICTURES - kept, kept)
    # What the dead writer was at is cleared away.
    assert not list(tmp_path.rglob(".tmp-*"))
    assert rows_kept(featpipe) == PICTURES


def test_workers_do_not_survive_a_parent_that_is_killed(start: Start) -> None:
    job = start()
    job.until(is_under_way)
    workers = workers_of(job)
    assert len(workers) == 2
    job.process.kill()
    assert job.end() == -signal.SIGKILL
    assert_all_gone(workers)


def test_an_interrupted_extraction_with_verbose_still_ends_with_one_error_line(
    start: Start,
) -> None:
    job = start("-v")
    job.until(is_under_way)
    job.process.send_signal(signal.SIGINT)
    assert job.end() == 130
    assert "Traceback" in job.said
    assert job.said.count("Error: interrupted;") == 1


def test_a_signal_in_the_midst_of_an_import_waits_for_its_end(tmp_path: Path) -> None:
    # In a C++ library's beginnings, the exception would abort the process.
    (tmp_path / "library.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(0.3)\n"
        "print('imported', flush=True)\n"
    )
    code = """
import time
from featpipe.cli.console import Console, reporting_errors
with reporting_errors(Console(as_json=False, quiet=True, verbose=False)):
    import library
    time.sleep(60)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (143, "imported\n")
    assert done.stderr.startswith("Error: interrupted;")


def test_an_interrupt_that_a_library_swallows_is_raised_again(tmp_path: Path) -> None:
    # As in a callback from C, whose exceptions Python can only print.
    code = """
import os, signal, sys, time
from featpipe.cli.console import Console, reporting_errors
with reporting_errors(Console(as_json=False, quiet=True, verbose=False)):
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGINT) if _ == 0 else time.sleep(20)
        except BaseException:
            pass
    time.sleep(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=15
    )
    assert done.returncode == 130
    assert done.stderr.startswith("Error: interrupted;")


def test_a_tidy_end_that_takes_its_time_is_not_interrupted_again(tmp_path: Path) -> None:
    code = """
import contextlib, os, signal, time
from featpipe.cli.console import Console, reporting_errors

class Slow:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        try:
            raise OSError
        except OSError:
            time.sleep(0.3)
        time.sleep(0.3)
        print("left", flush=True)

def rows():
    try:
        yield
    finally:
        time.sleep(0.3)
        print("closed", flush=True)

with reporting_errors(Console(as_json=False, quiet=True, verbose=False)):
    try:
        with Slow(), contextlib.contextmanager(rows)():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(20)
    finally:
        time.sleep(0.3)
        print("kept", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout) == (143, "closed\nleft\nkept\n")
    assert done.stderr.startswith("Error: interrupted;")


def test_the_end_of_python_after_an_interrupt_is_not_interrupted(tmp_path: Path) -> None:
    code = """
import atexit, os, signal, time
from featpipe.cli.console import Console, reporting_errors

def leave():
    time.sleep(0.3)
    print("left", flush=True)

atexit.register(leave)
with reporting_errors(Console(as_json=False, quiet=True, verbose=False)):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout) == (143, "left\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_after_a_command_is_over_raises_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    code = f"""
import os, time
from featpipe.cli.console import Console, reporting_errors
with reporting_errors(Console(as_json=False, quiet=True, verbose=False)):
    print("done")
os.kill(os.getpid(), {number:d})
time.sleep(20)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=15
    )
    assert (done.returncode, done.stdout, done.stderr) == (-number, "done\n", "")
