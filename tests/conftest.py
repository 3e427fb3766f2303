"""Tiny pictures, a tiny backbone request and the sample data, for all tests."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import tiny_network
from support.browser import chromium  # noqa: F401 (one browser for all modules)
from support.command import TINY_FLAGS, Run
from support.samples import SHARED, class_picture
from support.tally import (  # noqa: F401 (hooks and fixtures)
    pytest_addoption,
    pytest_configure,
    pytest_terminal_summary,
    scale,
    tally,
)

if TYPE_CHECKING:
    pass


tiny_network.register()
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that spin while they wait make tiny steps a hundred times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """``photos/{blue,red}/N.png``: two classes, 20 different pictures each."""
    folder = tmp_path / "photos"
    for number, label in enumerate(("red", "blue")):
        (folder / label).mkdir(parents=True)
        for seed in range(20):
            class_picture(number * 2, seed).save(folder / label / f"{seed:02d}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache root."""
    return tmp_path / "cache"


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Request fields of the cheapest feature space: random weights, one block, 16 px."""
    return {
        "weights": "random:0",
        "tap": ("block1_pool",),
        "size": 16,
        "resize": "squash",
        "precision": "fp32",
        "device": "cpu",
    }


@pytest.fixture
def shared() -> Path:
    """The folder of sample data; without it the test is skipped, loudly."""
    if not SHARED.is_dir():
        pytest.skip(f"NO SAMPLE DATA: {SHARED} is missing; real pictures were not tested")
    return SHARED


@pytest.fixture
def featpipe(tmp_path: Path) -> Run:
    """Run the command line in ``tmp_path``: ``featpipe("extract", folder, "--name", "x")``."""

    def run(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        # A user's cache is left alone, and stdout is buffered as it is for users.
        plain = {"FEATPIPE_CACHE": "", "PYTHONUNBUFFERED": "", "NO_COLOR": "1", "COLUMNS": "200"}
        env = {**os.environ, **plain, **options.pop("env", {})}
        return subprocess.run(
            [sys.executable, "-m", "featpipe", *map(str, args)],
            capture_output=True,
            text=True,
            cwd=options.pop("cwd", tmp_path),
            env=env,
            timeout=options.pop("timeout", 240),
            check=False,
            **options,
        )

    return run


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to read from, not to change: ``photos/``, ``cache/`` with the data set
    ``colours`` of it in the cheapest space, and a linear head of it in ``run/``."""
    from featpipe import api

    folder = tmp_path_factory.mktemp("workspace")
    for number, label in enumerate(("red", "blue")):
        (folder / "photos" / label).mkdir(parents=True)
        for seed in range(20):
            path = folder / "photos" / label / f"{seed:02d}.png"
            class_picture(number * 2, seed).save(path)
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    options = {flag.removeprefix("--"): value for flag, value in pairs}
    api.extract(folder / "photos", name="colours", cache=folder / "cache", **options)
    api.train_head(
        "colours", cache=folder / "cache", out=folder / "run", epochs=30, seed=0, device="cpu"
    )
    return folder


@pytest.fixture
def own_workspace(workspace: Path, tmp_path: Path) -> Path:
    """A copy of ``workspace`` in ``tmp_path``, where ``featpipe`` runs: to be changed at will."""
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """As ``featpipe``, but in this process, which has its imports behind it: for what a command
    says and gives back, not for how a process begins and ends."""
    from typer.testing import CliRunner

    from featpipe.cli.app import app

    logger = logging.getLogger("featpipe")
    before = [*logger.handlers], logger.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*args: Any, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Any:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setenv("FEATPIPE_CACHE", "")
            done = CliRunner().invoke(app, [str(arg) for arg in args], env=env)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(args, done.exit_code, done.stdout, done.stderr)

    yield run
    logger.handlers[:], logger.level = before
    for number, handler in signals.items():
        signal.signal(number, handler)
