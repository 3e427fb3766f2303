"""The loop: decode in worker processes, run the backbone, commit rows; all three overlap."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featpipe.base.hardware import cpu_count
from featpipe.decoding.pool import Decoded, DecodePool, Task
from featpipe.engine.plan import FeaturePlan
from featpipe.engine.prefetch import ahead
from featpipe.engine.writer import SegmentWriter
from featpipe.specs.extract import EngineOptions
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.engine.inference_pool import Lanes

MAX_WORKERS = 16
"""Decoding processes that are started by themselves."""


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
        See :func:`featpipe.base.disk.file_fingerprint`; taken just before reading.
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
    """Where the time of a run went, seconds.

    ``read`` and ``decode`` add up over workers; ``backbone`` is that of an average lane.
    """

    read: float = 0.0
    decode: float = 0.0
    backbone: float = 0.0
    write: float = 0.0
    waited_for_pixels: float = 0.0
    waited_for_backbone: float = 0.0
    waited_for_writer: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The stage the others waited for: ``read``, ``decode``, ``backbone`` or ``write``."""
        loading = "read" if self.read > self.decode else "decode"
        waits = {
            loading: self.waited_for_pixels,
            "backbone": self.waited_for_backbone,
            "write": self.waited_for_writer,
        }
        return max(waits, key=waits.__getitem__)

    def as_dict(self) -> dict[str, float]:
        """The stages' seconds, rounded to milliseconds."""
        return {
            name: round(getattr(self, name), 3) for name in ("read", "decode", "backbone", "write")
        }


@dataclass
class _Run:
    plan: FeaturePlan
    stores: list[FeatureStore]
    writer: SegmentWriter
    timings: Timings
    batch_size: int
    resources: ExitStack
    lanes: Lanes[list[Decoded]] | None = None
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
    resources = ExitStack()
    state = _Run(plan, stores, writer, Timings(), batch_size, resources)
    pool = DecodePool(
        plan.spaces[0].preprocessing,
        workers=options.workers or default_workers(plan.device),
        known=_ids_in_every(stores),
        max_pixels=options.max_pixels,
    )
    try:
        try:
            with pool, ahead(pool.decode(tasks), 2 * batch_size) as decoded, resources:
                for picture in _timed(decoded, state, on_outcome):
                    _take(picture, state, on_outcome)
                _flush(state)
                _keep(state, on_outcome, leave=0)
        finally:
            # Also when interrupted or failing: what is computed is kept.
            if state.lanes is not None:
                for batch, outputs in state.lanes.leftovers():
                    _store(batch, outputs, state)
    finally:
        writer.finish()
        state.timings.write = writer.write_seconds
        state.timings.waited_for_writer = writer.wait_seconds
        for store in stores:
            store.refresh()
    return state.timings


def default_workers(device: str) -> int:
    """Decoding processes: one per core, half of that where the cores compute features too."""
    cores = cpu_count()
    wanted = cores if device != "cpu" else max(cores // 2, min(cores, 2))
    return min(wanted, MAX_WORKERS)


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
            _flush(state)
            _keep(state, on_outcome)
        return
    kind = "bad" if decoded.kind == "bad" else "known"
    on_outcome(
        Outcome(decoded.key, kind, decoded.image_id, decoded.stat, decoded.stage, decoded.reason)
    )


def _flush(state: _Run) -> None:
    """Hand the waiting batch to the backbone."""
    batch, state.batch = state.batch, []
    if batch:
        pixels = [decoded.pixels for decoded in batch if decoded.pixels is not None]
        _lanes(state).submit(np.stack(pixels), batch)


def _keep(state: _Run, on_outcome: Callable[[Outcome], None], leave: int | None = None) -> None:
    """Hand the rows that are computed to the writer; wait while too many batches are under way."""
    if state.lanes is None:
        return
    results = state.lanes.results(leave)
    while True:
        started = time.perf_counter()
        found = next(results, None)
        state.timings.waited_for_backbone += time.perf_counter() - started
        state.timings.backbone = state.lanes.busy_seconds
        if found is None:
            return
        _store(*found, state)
        for decoded in found[0]:
            on_outcome(Outcome(decoded.key, "computed", decoded.image_id, decoded.stat))


def _store(batch: list[Decoded], outputs: list[np.ndarray], state: _Run) -> None:
    ids = [decoded.image_id or b"" for decoded in batch]
    id_rows = np.frombuffer(b"".join(ids), np.uint8).reshape(len(ids), -1)
    for number, (store, rows) in enumerate(zip(state.stores, outputs, strict=True)):
        for i in np.flatnonzero(~store.contains(id_rows)):
            state.writer.add(number, ids[i], rows[i])
    state.writer.poll()


def _lanes(state: _Run) -> Lanes[list[Decoded]]:
    if state.lanes is None:
        from featpipe.backbones.network import Network
        from featpipe.engine.inference_pool import Lanes

        weights, device = state.plan.weights, state.plan.device
        deepest = max(weights.backbone.tap(space.tap).convolutions for space in state.plan.spaces)
        network = Network(
            weights.backbone,
            weights.tensors(deepest),
            state.plan.spaces,
            device=device,
            batch_size=state.batch_size,
        )
        size = state.plan.spaces[0].preprocessing.size
        lanes: Lanes[list[Decoded]] = Lanes(
            network, device=device, batch_size=state.batch_size, size=size
        )
        state.lanes = state.resources.enter_context(lanes)
    return state.lanes


def _ids_in_every(stores: list[FeatureStore]) -> np.ndarray:
    """Image ids (n, 32) that have a row in all stores: no need to decode them."""
    ids = stores[0].index.ids
    for store in stores[1:]:
        ids = ids[store.contains(ids)]
    return ids


def _timed(
    pictures: Iterator[Decoded | None], state: _Run, on_outcome: Callable[[Outcome], None]
) -> Iterator[Decoded]:
    """Pass pictures on; count the time spent waiting, and see to finished rows meanwhile."""
    while True:
        started = time.perf_counter()
        try:
            decoded = next(pictures)
        except StopIteration:
            return
        finally:
            state.timings.waited_for_pixels += time.perf_counter() - started
        if decoded is None:
            _keep(state, on_outcome)
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
