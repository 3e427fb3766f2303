"""The loop: decode in worker processes, run the backbone, commit rows; all three overlap."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featpipe.decoding.pixels import DEFAULT_MAX_PIXELS
from featpipe.decoding.pool import Decoded, DecodePool, Task
from featpipe.engine.ahead import ahead
from featpipe.engine.request import FeaturePlan
from featpipe.engine.writer import SegmentWriter
from featpipe.errors import UsageError
from featpipe.hardware import cpu_count
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.backbones.network import Network

MAX_WORKERS = 16
"""Decoding processes that are started by themselves."""
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class Outcome:
    """What became of one task.

    Attributes
    ----------
    key : int
    kind : {"computed", "known", "bad"}
        ``known``: a row was there already, from before or from earlier in this run.
    image_id : bytes or None
    stat : tuple of int or None
        See :func:`featpipe.disk.file_fingerprint`; taken just before reading.
    stage, reason : str
        Only for ``bad``.
    """

    key: int
    kind: str
    image_id: bytes | None
    stat: tuple[int, ...] | None = None
    stage: str = ""
    reason: str = ""


@dataclass
class Timings:
    """Where the time of a run went, seconds. ``read`` and ``decode`` add up over workers."""

    read: float = 0.0
    decode: float = 0.0
    backbone: float = 0.0
    write: float = 0.0
    waited_for_pixels: float = 0.0
    waited_for_writer: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The stage the others waited for: ``read``, ``decode``, ``backbone`` or ``write``."""
        loading = "read" if self.read > self.decode else "decode"
        waits = {
            loading: self.waited_for_pixels,
            "backbone": self.backbone,
            "write": self.waited_for_writer,
        }
        return max(waits, key=waits.__getitem__)

    def as_dict(self) -> dict[str, float]:
        """The stages' seconds, rounded to milliseconds."""
        return {
            name: round(getattr(self, name), 3) for name in ("read", "decode", "backbone", "write")
        }


@dataclass(frozen=True)
class EngineOptions:
    """How to run, which never changes the numbers.

    Attributes
    ----------
    batch_size : int or None
        Images per forward pass; None chooses by device and picture size.
    workers : int or None
        Decoding processes; None chooses by device and cores.
    max_pixels : int
        Larger pictures are quarantined.
    """

    batch_size: int | None = None
    workers: int | None = None
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                option = name.replace("_", "-")
                raise UsageError(f"expected --{option} of at least 1, found {value}")
        if self.workers is not None and self.workers > _MOST_WORKERS:
            raise UsageError(
                f"expected --workers of 1 to {_MOST_WORKERS} processes, found {self.workers}"
            )


@dataclass
class _Run:
    plan: FeaturePlan
    stores: list[FeatureStore]
    writer: SegmentWriter
    timings: Timings
    batch_size: int
    network: Network | None = None
    seen: set[bytes] = field(default_factory=set)
    batch: list[Decoded] = field(default_factory=list)


def run(
    tasks: Iterable[Task],
    plan: FeaturePlan,
    stores: list[FeatureStore],
    on_outcome: Callable[[Outcome], None],
    options: EngineOptions | None = None,
) -> Timings:
    """Compute and commit the missing rows of every task's image.

    Parameters
    ----------
    tasks : iterable of Task
    plan : FeaturePlan
    stores : list of FeatureStore
        One per space of the plan, in its order.
    on_outcome : callable
        Called once per task. Raising in it stops the run; what is computed is committed.
    options : EngineOptions, optional

    Returns
    -------
    Timings

    Raises
    ------
    FeatureOverflowError, StorageError, WeightsError
    """
    options = options or EngineOptions()
    for store in stores:
        store.prepare()
    writer = SegmentWriter(stores, _provenance(plan.device))
    size = plan.spaces[0].preprocessing.size
    batch_size = options.batch_size or default_batch_size(plan.device, size)
    state = _Run(plan, stores, writer, Timings(), batch_size)
    pool = DecodePool(
        plan.spaces[0].preprocessing,
        workers=options.workers or default_workers(plan.device),
        known=_ids_in_every(stores),
        max_pixels=options.max_pixels,
    )
    try:
        with pool, ahead(pool.decode(tasks), 2 * batch_size) as results:
            for decoded in _timed(results, state):
                _take(decoded, state, on_outcome)
            _flush(state, on_outcome)
    finally:
        # Also when interrupted or failing: what is computed is kept.
        writer.finish()
        state.timings.write = writer.write_seconds
        state.timings.waited_for_writer = writer.wait_seconds
        for store in stores:
            store.refresh()
    return state.timings


def default_workers(device: str) -> int:
    """Decoding processes: a CPU backbone leaves little to do for more than two."""
    return min(cpu_count(), MAX_WORKERS if device != "cpu" else 2)


def default_batch_size(device: str, size: int) -> int:
    """Images per pass: on a CPU about as many as stay in its caches."""
    pixels = size * size
    if device == "cpu":
        return int(np.clip(2 * 224 * 224 // pixels, 1, 64))
    return int(np.clip(256 * 224 * 224 // pixels, 1, 1024))


def _take(decoded: Decoded, state: _Run, on_outcome: Callable[[Outcome], None]) -> None:
    state.timings.read += decoded.read_s
    state.timings.decode += decoded.decode_s
    if decoded.kind == "pixels" and decoded.image_id not in state.seen:
        assert decoded.image_id is not None
        state.seen.add(decoded.image_id)
        state.batch.append(decoded)
        if len(state.batch) >= state.batch_size:
            _flush(state, on_outcome)
        return
    kind = "bad" if decoded.kind == "bad" else "known"
    on_outcome(
        Outcome(decoded.key, kind, decoded.image_id, decoded.stat, decoded.stage, decoded.reason)
    )


def _flush(state: _Run, on_outcome: Callable[[Outcome], None]) -> None:
    """Run the backbone over the waiting batch and hand its rows to the writer."""
    batch, state.batch = state.batch, []
    if not batch:
        return
    started = time.perf_counter()
    network = _network(state)
    outputs = network(np.stack([decoded.pixels for decoded in batch if decoded.pixels is not None]))
    state.timings.backbone += time.perf_counter() - started
    ids = [decoded.image_id or b"" for decoded in batch]
    id_rows = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), -1)
    for number, (store, rows) in enumerate(zip(state.stores, outputs, strict=True)):
        for i in np.flatnonzero(~store.contains(id_rows)):
            state.writer.add(number, ids[i], rows[i])
    state.writer.poll()
    for decoded in batch:
        on_outcome(Outcome(decoded.key, "computed", decoded.image_id, decoded.stat))


def _network(state: _Run) -> Network:
    if state.network is None:
        from featpipe.backbones.network import Network

        weights = state.plan.weights
        deepest = max(weights.backbone.tap(space.tap).convolutions for space in state.plan.spaces)
        state.network = Network(
            weights.backbone,
            weights.tensors(deepest),
            state.plan.spaces,
            device=state.plan.device,
            batch_size=state.batch_size,
        )
    return state.network


def _ids_in_every(stores: list[FeatureStore]) -> np.ndarray:
    """Image ids (n, 32) that have a row in all stores: no need to decode them."""
    ids = stores[0].index.ids
    for store in stores[1:]:
        ids = ids[store.contains(ids)]
    return ids


def _timed(results: Iterator[Decoded | None], state: _Run) -> Iterator[Decoded]:
    """Pass results on; count the time spent waiting, and commit old rows meanwhile."""
    while True:
        started = time.perf_counter()
        try:
            decoded = next(results)
        except StopIteration:
            return
        finally:
            state.timings.waited_for_pixels += time.perf_counter() - started
        if decoded is None:
            state.writer.poll()
        else:
            yield decoded


def _provenance(device: str) -> dict[str, str]:
    packages = ("featpipe", "torch", "torchvision", "pillow", "numpy", "h5py")
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "device": device,
        "host": platform.node(),
        "machine": platform.machine(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
