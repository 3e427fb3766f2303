"""``bench heads``: many heads against one, logistic against scikit-learn, and ``train-head``."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.hardware import resolve_device
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.bench.measure import Contender, Report, in_turns
from featpipe.bench.read import space_of_width
from featpipe.datasets.dataset import SPLITS, Dataset, DatasetInfo, SourceInfo, Status
from featpipe.datasets.files import save_dataset
from featpipe.heads import new_head
from featpipe.heads.base import mean_and_scale
from featpipe.heads.logistic_path import C_GRID
from featpipe.store.feature_store import FeatureStore

FOLDS = 5
_HEADS = 64
_EPOCHS = 10
_EQUAL_TOLERANCE = 1e-6
"""With this tol, scikit-learn's L-BFGS ends within 1e-6 of our objective; with 1e-4, far off."""


def made_up_features(
    rows: int, width: int, classes: int
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Sparse, non-negative rows (rows, width) like ReLU outputs, and learnable labels (rows,)."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % classes
    X = rng.normal(-0.5, 1, (rows, width)).astype(np.float32)
    X += 0.3 * rng.normal(size=(classes, width)).astype(np.float32)[y]
    return np.maximum(X, 0, out=X).astype(np.float16), y


def bench_heads(
    folder: Path,
    *,
    rows: int,
    width: int,
    classes: int,
    rounds: int,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Report:
    """Measure training on rows in memory, and ``train-head`` as a command.

    Parameters
    ----------
    folder : Path
        Where the cache and runs of ``train-head`` are written.
    rows, width, classes : int
        Size of the synthetic training data; validation has a fifth as many rows.
    rounds : int
        How often each contender is measured.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, …
    progress : Progress
        Shows a progress bar.
    """
    device = resolve_device(device)
    X, y = made_up_features(rows + rows // 5, width, classes)
    one, many = "linear, one head", f"linear, {_HEADS} heads at once"
    ours = f"logistic, path of C x ({FOLDS} folds + whole)"
    theirs = "scikit-learn LogisticRegression, the same C, one fold"
    results = in_turns(
        [
            Contender(one, _linear(X, y, rows, 1, device)),
            Contender(many, _linear(X, y, rows, _HEADS, device)),
            Contender(ours, _logistic(X, y, rows, device)),
            Contender(theirs, _sklearn_path(X[:rows], y[:rows])),
        ],
        rounds,
        progress,
        warm_up=True,
    )
    rate = {name: result.rate for name, result in results.items()}
    ratios: list[tuple[str, float, float | None]] = [
        (f"heads per second, {_HEADS} at once / one alone", rate[many] / rate[one], 32.0),
        ("logistic fits per second / scikit-learn's", rate[ours] / rate[theirs], 10.0),
    ]
    notes = [
        f"{rows} rows of {width} float16 numbers, {classes} classes, {device}; "
        f"linear: {_EPOCHS} epochs",
        f"scikit-learn: lbfgs, tol {_EQUAL_TOLERANCE:g}, one of the folds, without refit",
        _command(folder, X, y, rows),
    ]
    return Report("heads", "heads or fits/s", results, ratios, notes)


def _linear(
    X: NDArray[np.float16], y: NDArray[np.int64], rows: int, count: int, device: str
) -> Callable[[], float]:
    from featpipe.heads.training.fit import train_all

    rates = np.geomspace(1e-5, 1e-2, count)

    def run() -> float:
        heads = []
        for learning_rate in rates:
            params = {"learning_rate": float(learning_rate), "epochs": _EPOCHS}
            heads.append(new_head("linear", {**params, "patience": _EPOCHS}))
            heads[-1].classes_ = np.unique(y).astype(str)
        data = X[:rows], y[:rows], X[rows:], y[rows:]
        train_all(heads, [0] * count, *data, seed=0, device=device, on_epoch=lambda *_: None)
        return float(count)

    return run


def _logistic(
    X: NDArray[np.float16], y: NDArray[np.int64], rows: int, device: str
) -> Callable[[], float]:
    def run() -> float:
        head = new_head("logistic", {"folds": FOLDS})
        head.classes_ = np.unique(y).astype(str)
        data: Any = (X[:rows], y[:rows], X[rows:], y[rows:])
        history = head.fit(*data, seed=0, device=device, tick=lambda _: None)
        return float(len(history.rows) * (FOLDS + 1))

    return run


def _sklearn_path(X: NDArray[np.float16], y: NDArray[np.int64]) -> Callable[[], float]:
    from sklearn.linear_model import LogisticRegression

    mean, scale = mean_and_scale(X)
    kept = np.arange(len(X)) % FOLDS > 0
    Z = ((X[kept].astype(np.float32) - mean) / scale).astype(np.float64)

    def run() -> float:
        model = LogisticRegression(tol=_EQUAL_TOLERANCE, max_iter=10_000, warm_start=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for C in C_GRID:
                model.set_params(C=C).fit(Z, y[kept])
        return float(len(C_GRID))

    return run


def _command(folder: Path, X: NDArray[np.float16], y: NDArray[np.int64], rows: int) -> str:
    """Run time of ``train-head`` as a process, and the share of imports, as a sentence."""
    cache = folder / "cache"
    space = space_of_width(X.shape[1])
    _save(cache, space, X, y, rows)
    command = [sys.executable, "-m", "featpipe", "train-head", "bench", "--cache", str(cache), "-q"]
    imports = (
        "import featpipe.cli\nfeatpipe.cli.configure_process()\n"
        "import featpipe.cli.app, featpipe.stages.train, featpipe.heads.training.fit"
    )
    seconds = []
    for arguments in (
        [sys.executable, "-c", imports],
        [*command, "--head", "linear", "--out", str(folder / "linear")],
        [*command, "--head", "logistic", "--out", str(folder / "logistic")],
    ):
        started = time.perf_counter()
        subprocess.run(arguments, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return (
        f"as a process, on {rows} cached rows: train-head linear {seconds[1]:.2f} s, logistic "
        f"{seconds[2]:.2f} s; of linear's, imports alone {seconds[0]:.2f} s"
    )


def _save(
    cache: Path, space: FeatureSpace, X: NDArray[np.float16], y: NDArray[np.int64], rows: int
) -> None:
    """Save the synthetic features as a data set, as ``extract`` would."""
    n = len(X)
    ids = np.random.default_rng(1).integers(0, 256, (n, 32), np.uint8)
    store = FeatureStore(cache, space)
    store.prepare()
    step = max(1, (64 << 20) // X[0].nbytes)
    for start in range(0, n, step):
        store.append(ids[start : start + step], X[start : start + step], {})
    split = np.full(n, SPLITS.index("train"), np.int8)
    split[rows:] = SPLITS.index("val")
    save_dataset(
        cache,
        Dataset(
            name="bench",
            source=SourceInfo("bench", "made up", ""),
            classes=[str(label) for label in np.unique(y)],
            paths=[f"{i}.png" for i in range(n)],
            label=y.astype(np.int64),
            split=split,
            image_sha256=ids,
            status=np.full(n, Status.OK, np.int8),
            stat=np.full((n, 3), -1, np.int64),
            spaces=[space.canonical_json],
            info=DatasetInfo(weights={space.id: "random:0"}),
        ),
    )
