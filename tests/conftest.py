"""Tiny pictures, a tiny backbone request and the sample data, for all tests."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from reliability import (  # noqa: F401 (hooks and fixtures)
    pytest_addoption,
    pytest_configure,
    pytest_terminal_summary,
    scale,
    tally,
)

from featpipe.space import FeatureSpace, Preprocessing

if TYPE_CHECKING:
    from featpipe.store.datasets import Dataset

SHARED = Path(__file__).resolve().parents[2] / "shared"

os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that spin while they wait make tiny steps a hundred times slower on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def jpeg_bytes(seed: int, size: tuple[int, int] = (48, 40), **options: Any) -> bytes:
    """A JPEG of coloured noise, different for every seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def class_picture(label: int, seed: int) -> Image.Image:
    """A picture whose class a linear head can learn: red-ish for 0, blue-ish for 1, …"""
    rng = np.random.default_rng([label, seed])
    pixels = rng.integers(0, 120, (40, 40, 3), np.uint8)
    pixels[..., label % 3] += 100
    return Image.fromarray(pixels)


def small_space(**changes: Any) -> FeatureSpace:
    """A feature space of four float16 numbers a picture; no backbone is needed to fill it."""
    preprocessing = Preprocessing(
        size=8, resize="crop", mean=(0.25, 0.5, 0.75), std=(1.0, 0.5, 0.125)
    )
    fields: dict[str, Any] = {
        "backbone": "tiny",
        "weights": "ab" * 32,
        "tap": "block1_pool",
        "pooling": "avg",
        "preprocessing": preprocessing,
        "precision": "fp32",
        "dtype": "float16",
        "shape": (4,),
    }
    return FeatureSpace(**{**fields, **changes})


def image_ids(*names: object) -> np.ndarray:
    """Image ids (n, 32) uint8 of pretended pictures; equal names, equal ids."""
    digests = b"".join(hashlib.sha256(str(name).encode()).digest() for name in names)
    return np.frombuffer(digests, np.uint8).reshape(len(names), 32)


def stored_set(
    cache: Path,
    samples: Sequence[tuple[str, str | None, str | None]],
    *,
    name: str = "set",
    spaces: Sequence[FeatureSpace] | None = None,
    contents: dict[str, str] | None = None,
    classes: Sequence[str] = (),
) -> Dataset:
    """A data set of (path, label, split) and its features, without a picture or a backbone.

    A row is noise around a centre of its class, so that heads can learn it. Paths that
    ``contents`` gives one content are duplicates of one another.
    """
    from featpipe.store.datasets import NO_LABEL, NO_SPLIT, SPLITS, Dataset, save_dataset
    from featpipe.store.feature_store import FeatureStore

    spaces = spaces or [small_space()]
    paths = [path for path, _, _ in samples]
    ids = image_ids(*[(contents or {}).get(path, path) for path in paths])
    known = sorted({label for _, label, _ in samples if label is not None} | set(classes))
    label = np.array([known.index(x) if x is not None else NO_LABEL for _, x, _ in samples])
    unique, first = np.unique(ids, axis=0, return_index=True)
    for space in spaces:
        rows = np.empty((len(unique), *space.shape), space.dtype)
        for k, i in enumerate(first):
            noise = np.random.default_rng(list(unique[k])).normal(size=space.shape)
            rows[k] = noise
            rows[k].reshape(-1)[label[i] % rows[k].size] += 6.0
        store = FeatureStore(cache, space)
        store.prepare()
        store.append(unique, rows, {})
    dataset = Dataset(
        name=name,
        source={"kind": "folder", "spec": "pretended", "root": str(cache / "pretended")},
        classes=known,
        paths=paths,
        label=label,
        split=np.array([SPLITS.index(s) if s else NO_SPLIT for _, _, s in samples], np.int8),
        image_sha256=ids,
        status=np.zeros(len(samples), np.int8),
        stat=np.full((len(samples), 3), -1),
        spaces=[space.canonical_json for space in spaces],
        info={"split": "given", "weights": {space.id: "random:0" for space in spaces}},
    )
    save_dataset(cache, dataset)
    return dataset


def in_splits(**counts: int) -> list[tuple[str, str, str]]:
    """Samples for :func:`stored_set`: so many pictures of cat and of dog in each split."""
    return [
        (f"{split}/{label}/{i}.png", label, split)
        for split, count in counts.items()
        for label in ("cat", "dog")
        for i in range(count)
    ]


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
        "taps": ("block1_pool",),
        "size": 16,
        "resize": "squash",
        "precision": "fp32",
        "device": "cpu",
    }


TINY_FLAGS = (
    "--weights random:0 --tap block1_pool --size 16 --resize squash --precision fp32 --device cpu"
).split()
"""The same as flags."""


@pytest.fixture
def shared() -> Path:
    """The folder of sample data; without it the test is skipped, loudly."""
    if not SHARED.is_dir():
        pytest.skip(f"NO SAMPLE DATA: {SHARED} is missing; real pictures were not tested")
    return SHARED


Run = Callable[..., subprocess.CompletedProcess[str]]


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


def json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema"] == 1
    return document


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


def files_in(folder: Path) -> int:
    """Number of files, in folders of folders too."""
    return sum(path.is_file() for path in folder.rglob("*"))


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
