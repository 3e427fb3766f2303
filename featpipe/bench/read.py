"""``bench read``: bytes per second from the store, from plain reads and from naive h5py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.bench.measure import Contender, Report, in_turns
from featpipe.store.feature_store import FeatureStore
from featpipe.store.rows import FeatureRows

WIDTH = 25_088
"""Values per row: VGG16's block5_pool at 224 px, unpooled."""
_ROWS_A_SEGMENT = 1337
_BATCH = 256


def space_of_width(width: int) -> FeatureSpace:
    """A synthetic feature space with rows of ``width`` float16 values."""
    preprocessing = Preprocessing(size=224, resize="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    return FeatureSpace(
        backbone="bench",
        weights="0" * 64,
        tap="made_up",
        pooling="none",
        preprocessing=preprocessing,
        precision="fp32",
        dtype="float16",
        shape=(width,),
    )


def fill(store: FeatureStore, rows: int, rows_a_segment: int) -> NDArray[np.uint8]:
    """Fill a store with random rows; return their image ids (rows, 32)."""
    store.prepare()
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 256, (rows, 32), np.uint8)
    for start in range(0, rows, rows_a_segment):
        part = ids[start : start + rows_a_segment]
        data = rng.random((len(part), *store.space.shape), np.float32).astype(np.float16)
        store.append(part, data, {})
    return ids


def bench_read(
    folder: Path,
    *,
    rows: int,
    many: int,
    rounds: int,
    progress: Progress = no_progress,
) -> Report:
    """Measure reading rows of 25,088 float16 values from files in the page cache.

    Parameters
    ----------
    folder : Path
        Where the stores are written; a row takes 50 kB.
    rows : int
        Rows to read.
    many : int
        Rows of a second store with narrow rows; only opening it is measured.
    rounds : int
        How often each contender is measured.
    progress : Progress
        Shows a progress bar.
    """
    store = FeatureStore(folder, space_of_width(WIDTH))
    ids = fill(store, rows, _ROWS_A_SEGMENT)
    # Sorted by segment and row, the order in which a reader of the whole store takes them.
    index = store.index
    place = index.find(ids)
    ids = ids[np.lexsort((index.row[place], index.segment[place]))]
    features = store.rows(ids)
    paths = sorted(store.segments_folder.glob("*.h5"))
    shuffled = np.random.default_rng(1).permutation(rows)
    first_touch = Contender("featpipe, first touch (checksums tested)", _first_touch(store, ids))
    results = in_turns(
        [
            Contender("raw read() of the files", _raw(paths)),
            Contender("featpipe, in order", _in_order(features)),
            Contender(f"featpipe, random batches of {_BATCH}", _random_batches(features, shuffled)),
            first_touch,
            Contender("h5py, file reopened per row", _reopened(store, ids, shuffled)),
        ],
        rounds,
        progress,
        warm_up=True,
    )
    rate = {name: result.rate for name, result in results.items()}
    raw, random = rate["raw read() of the files"], rate[f"featpipe, random batches of {_BATCH}"]
    ratios: list[tuple[str, float, float | None]] = [
        ("in order / raw read()", rate["featpipe, in order"] / raw, 0.9),
        ("random batches / raw read()", random / raw, 0.5),
        ("random batches / file reopened", random / rate["h5py, file reopened per row"], 20.0),
        ("first touch / raw read()", rate[first_touch.name] / raw, None),
    ]
    seconds, segments = _time_opening(folder / "many", many)
    notes = [
        f"{rows} rows, {len(paths)} segments",
        f"opening a store of {many:,} rows in {segments} segments: {seconds:.3f} s warm",
    ]
    return Report("read", "GB/s", results, ratios, notes)


def _raw(paths: list[Path]) -> Callable[[], float]:
    buffer = bytearray(8 << 20)

    def run() -> float:
        total = 0
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            try:
                while count := os.readv(fd, [buffer]):
                    total += count
            finally:
                os.close(fd)
        return total / 1e9

    return run


def _in_order(features: FeatureRows) -> Callable[[], float]:
    out = np.empty((_BATCH, *features.shape[1:]), features.dtype)

    def run() -> float:
        for start in range(0, len(features), _BATCH):
            block = features[start : start + _BATCH]
            # The block maps the file; copying it makes the system read the bytes.
            out[: len(block)] = block
        return features.nbytes / 1e9

    return run


def _random_batches(features: FeatureRows, order: NDArray[np.int64]) -> Callable[[], float]:
    def run() -> float:
        for start in range(0, len(order), _BATCH):
            features[order[start : start + _BATCH]]
        return features.nbytes / 1e9

    return run


def _first_touch(store: FeatureStore, ids: NDArray[np.uint8]) -> Callable[[], float]:
    def run() -> float:
        return _in_order(store.rows(ids))()

    return run


def _reopened(
    store: FeatureStore, ids: NDArray[np.uint8], order: NDArray[np.int64]
) -> Callable[[], float]:
    index = store.index
    place = index.find(ids)
    names = [store.segments_folder / f"{name.decode()}.h5" for name in index.names]
    sample = order[: max(1, len(order) // 8)]

    def run() -> float:
        total = 0
        for i in sample:
            with h5py.File(names[index.segment[place[i]]], "r") as file:
                total += file["features"][index.row[place[i]]].nbytes
        return total / 1e9

    return run


def _time_opening(folder: Path, rows: int) -> tuple[float, int]:
    """Seconds that fresh store objects take to find every row of a large store; its segments."""
    space = space_of_width(8)
    store = FeatureStore(folder, space)
    fill(store, rows, 20_000)
    assert len(FeatureStore(folder, space).index.ids) == rows
    started = time.perf_counter()
    reopened = FeatureStore(folder, space)
    ids = reopened.index.ids
    reopened.rows(ids)
    return time.perf_counter() - started, len(reopened.index.names)
