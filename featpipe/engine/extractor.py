"""From picture files to rows in the stores.

Three things overlap: processes decode pictures, threads run the backbone over batches of them,
and a writer commits finished rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Inference
from featpipe.backbones.compute_batch import default_batch_size
from featpipe.base.errors import Reason
from featpipe.base.hardware import cpu_count
from featpipe.base.ids import DIGEST_BYTES
from featpipe.decoding.pool import DecodePool, views_at_once
from featpipe.decoding.worker_process import Decoded, DecodedKind, Task
from featpipe.engine.outcome import ComputedIds, Outcome, OutcomeKind, Timings
from featpipe.engine.plan import FeaturePlan
from featpipe.engine.prefetch import prefetch
from featpipe.engine.provenance import provenance
from featpipe.engine.view_targets import ViewTargets
from featpipe.engine.writer import SegmentWriter
from featpipe.specs.extract import EngineOptions
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.engine.inference_pool import InferencePool

MAX_DEFAULT_WORKERS = 64
"""Most decoding processes that are started without being asked for.

This process takes about 0.4 ms for each picture that they decode, they take 6 ms for one of 500 x
375 pixels and 350 ms for one of 12 megapixels: it can serve 16 of them at the least. Each takes
some 90 MB."""
_SETTLED_NS = 2 * 10**9
"""A file that was changed this shortly before it was read may change again unnoticed: its
timestamps may be that coarse."""
_UNTRUSTED = (-1, -1, -1)

OnOutcome = Callable[[Outcome], None]


class _Item(NamedTuple):
    """One view of a picture on its way through the network.

    Attributes
    ----------
    image_id : bytes
    view : int
    pixels : ndarray of uint8, shape (size, size, 3), or None
        None once the network has them.
    completes : Outcome or None
        What is known of the picture once this view, the last of it, is computed.
    """

    image_id: bytes
    view: int
    pixels: NDArray[np.uint8] | None
    completes: Outcome | None = None


class Extractor:
    """Computes and commits the missing rows of pictures, in any number of passes.

    A context manager: while it is open, passes share the decoding processes, the network on its
    device and the writer. The network is built when the first picture needs it. However it is
    closed, also by an error or an interrupt, rows that are computed are committed.

    Parameters
    ----------
    plan : FeaturePlan
        Its spaces may be of several views, which one augmentation makes; a picture is decoded once
        for those that its task asks for.
    stores : sequence of FeatureStore
        One per space of the plan, in its order.
    options : EngineOptions, optional
    network : callable, optional
        That of another extractor for the same taps and poolings, with the same options.

    Attributes
    ----------
    timings : Timings
        Of all passes so far; complete once it is closed.
    network : callable or None
        Once a picture has needed it.
    views_at_once : int
        How many views a task may ask for.
    """

    def __init__(
        self,
        plan: FeaturePlan,
        stores: Sequence[FeatureStore],
        options: EngineOptions | None = None,
        *,
        network: Inference | None = None,
    ) -> None:
        options = options or EngineOptions()
        self.timings = Timings()
        self.network = network
        self._plan, self._stores = plan, list(stores)
        self._preprocessing = plan.spaces[0].preprocessing
        self._views = ViewTargets(plan.spaces)
        self.views_at_once = views_at_once(self._preprocessing, len(self._views.numbers))
        self._batch_size = options.batch_size or default_batch_size(
            plan.device, self._preprocessing.size
        )
        has_network = plan.weights.backbone.has_weights
        self._workers = options.workers or default_workers(plan.device if has_network else "")
        self._max_pixels = options.max_pixels
        self._resources = ExitStack()
        self._inference: InferencePool[list[_Item]] | None = None
        self._started: set[bytes] = set()
        """Ids of the pictures that went to the network, each with the number of a view: as bytes,
        which take half the memory of pairs."""
        self._batch: list[_Item] = []
        self._is_usable = True

    def __enter__(self) -> Extractor:
        self._require_usable()
        for store in self._stores:
            store.prepare()
        self._writer = SegmentWriter(self._stores, provenance(self._plan.device))
        with ExitStack() as resources:
            # Closed in reverse order: the inference threads, the decoders, then the rows that are
            # computed go to the writer, then the writer commits them.
            resources.callback(self._close_writer)
            resources.callback(self._keep_leftovers)
            self._pool = resources.enter_context(
                DecodePool(
                    self._preprocessing,
                    workers=self._workers,
                    known=_ids_in_every(self._stores),
                    augmentation=self._plan.spaces[0].augmentation,
                    views=self._views.numbers,
                    max_pixels=self._max_pixels,
                )
            )
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_usable = False
        self._resources.__exit__(kind, error, trace)

    def _require_usable(self) -> None:
        if not self._is_usable:
            raise RuntimeError(
                "an extractor that was closed, or whose pass failed, computes no more"
            )

    def compute_ids(
        self, tasks: Iterable[Task], count: int, on_outcome: OnOutcome | None = None
    ) -> ComputedIds:
        """Run a pass over n tasks whose keys are 0 to n - 1; their rows are committed then.

        Parameters
        ----------
        tasks : iterable of Task
        count : int
            Number of tasks.
        on_outcome : callable, optional
            Also called once per task, as soon as its outcome is known.

        Raises
        ------
        FeatureOverflowError, StorageError, WeightsError
        """
        found = ComputedIds(
            np.zeros((count, DIGEST_BYTES), np.uint8), np.full((count, 3), -1, np.int64)
        )

        def collect(outcome: Outcome) -> None:
            i = outcome.key
            if outcome.image_id is not None:
                found.ids[i] = np.frombuffer(outcome.image_id, np.uint8)
            if outcome.stat is not None:
                is_settled = time.time_ns() - max(outcome.stat[1:]) > _SETTLED_NS
                found.stat[i] = outcome.stat if is_settled else _UNTRUSTED
            if outcome.reason is not None:
                found.errors[i] = outcome.reason
            found.computed += outcome.kind is OutcomeKind.COMPUTED
            if on_outcome is not None:
                on_outcome(outcome)

        self.run(tasks, collect)
        return found

    def run(self, tasks: Iterable[Task], on_outcome: OnOutcome) -> None:
        """Run a pass over tasks; when it returns, their rows are committed.

        ``on_outcome`` is called once per task. Raising in it stops the pass; after that the
        extractor can only be closed.

        Raises
        ------
        FeatureOverflowError, StorageError, WeightsError
        """
        self._require_usable()
        self._is_usable = False  # until this pass has succeeded
        ahead = max(1, 2 * self._batch_size // self.views_at_once)
        with prefetch(self._pool.decode(tasks), ahead) as pictures:
            try:
                for picture in self._next_pictures(pictures, on_outcome):
                    self._take(picture, on_outcome)
            except BaseException:
                # First of all, so that no batch is begun while the decoders are stopped.
                if self._inference is not None:
                    self._inference.cancel()
                raise
        self._submit_batch()
        self._collect(on_outcome, leave=0)
        self._writer.flush()
        self._refresh_stores()
        self._is_usable = True

    def _next_pictures(
        self, pictures: Iterator[Decoded | None], on_outcome: OnOutcome
    ) -> Iterator[Decoded]:
        """Pass pictures on; while there are none, keep rows that are finished."""
        while True:
            started = time.perf_counter()
            try:
                picture = next(pictures)
            except StopIteration:
                return
            finally:
                self.timings.waited_for_pixels += time.perf_counter() - started
            if picture is None:
                self._collect(on_outcome)
                self._writer.poll()
            else:
                yield picture

    def _take(self, picture: Decoded, on_outcome: OnOutcome) -> None:
        """Report a picture, or put it into the next batch if its row must be computed."""
        self.timings.read += picture.read_s
        self.timings.decode += picture.decode_s
        if picture.kind is DecodedKind.BAD:
            reason = Reason(picture.stage, picture.reason)
            seen = (picture.image_id, picture.stat, reason, picture.detail)
            on_outcome(Outcome(picture.key, OutcomeKind.BAD, *seen))
            return
        assert picture.image_id is not None
        items = [] if picture.kind is DecodedKind.KNOWN else self._new_items(picture)
        if not items:
            known = Outcome(picture.key, OutcomeKind.KNOWN, picture.image_id, picture.stat)
            on_outcome(known)
        for item in items:
            self._batch.append(item)
            if len(self._batch) >= self._batch_size:
                self._submit_batch()
                self._collect(on_outcome)

    def _new_items(self, picture: Decoded) -> list[_Item]:
        """The views of a picture that have not gone to the network yet."""
        assert picture.image_id is not None and picture.pixels is not None
        items = []
        for place, view in enumerate(picture.views):
            mark = picture.image_id + view.to_bytes(4, "big")
            if mark not in self._started:
                self._started.add(mark)
                items.append(_Item(picture.image_id, view, picture.pixels[place]))
        if items:
            seen = (picture.image_id, picture.stat)
            computed = Outcome(picture.key, OutcomeKind.COMPUTED, *seen)
            items[-1] = items[-1]._replace(completes=computed)
        return items

    def _submit_batch(self) -> None:
        """Hand the waiting pictures to the network."""
        batch, self._batch = self._batch, []
        if batch:
            pixels = np.stack([item.pixels for item in batch if item.pixels is not None])
            # Their pixels are copied: what waits for the network does not hold them twice.
            waiting = [item._replace(pixels=None) for item in batch]
            self._inference_pool().submit(pixels, waiting)

    def _collect(self, on_outcome: OnOutcome, leave: int | None = None) -> None:
        """Keep the rows of batches that are computed; wait until at most ``leave`` are not."""
        if self._inference is None:
            return
        results = self._inference.results(leave)
        while True:
            started = time.perf_counter()
            result = next(results, None)
            self.timings.waited_for_backbone += time.perf_counter() - started
            self.timings.backbone = self._inference.busy_seconds
            if result is None:
                return
            batch, outputs = result
            self._keep(batch, outputs)
            for item in batch:
                if item.completes is not None:
                    on_outcome(item.completes)

    def _keep(self, batch: list[_Item], outputs: list[np.ndarray]) -> None:
        """Give the writer the rows that its stores lack."""
        ids = np.frombuffer(b"".join(item.image_id for item in batch), np.uint8)
        ids = ids.reshape(len(batch), -1)
        views = np.array([item.view for item in batch])
        for view in np.unique(views).tolist():
            here = np.flatnonzero(views == view)
            for output, number in self._views.targets[view]:
                for i in here[~self._stores[number].contains(ids[here])]:
                    self._writer.add(number, batch[i].image_id, outputs[output][i])
        self._writer.poll()

    def _keep_leftovers(self) -> None:
        """Keep the rows of batches that were computed when the pass was interrupted."""
        if self._inference is not None:
            for batch, outputs in self._inference.leftovers():
                self._keep(batch, outputs)

    def _close_writer(self) -> None:
        try:
            self._writer.finish()
        finally:
            self.timings.write = self._writer.write_seconds
            self.timings.waited_for_writer = self._writer.wait_seconds
            self._refresh_stores()

    def _refresh_stores(self) -> None:
        for store in self._stores:
            store.refresh()

    def _inference_pool(self) -> InferencePool[list[_Item]]:
        """The network and its threads, built on first use."""
        if self._inference is None:
            from featpipe.engine.inference_pool import InferencePool

            weights, device = self._plan.weights, self._plan.device
            if self.network is None:
                spaces = self._views.originals
                self.network = weights.backbone.network(
                    weights.tensors([space.tap for space in spaces]),
                    spaces,
                    device=device,
                    batch_size=self._batch_size,
                )
            pool: InferencePool[list[_Item]] = InferencePool(
                self.network, device=device, batch_bytes=batch_bytes(self.network)
            )
            self._inference = self._resources.enter_context(pool)
        return self._inference


def batch_bytes(network: Inference) -> int:
    """Memory that a network takes for what it computes at once; 0 where it is not torch's."""
    if not hasattr(network, "compute_batch"):
        return 0
    return int(network.compute_batch * network.activation_bytes)  # type: ignore[attr-defined]


def default_workers(device: str) -> int:
    """Decoding processes: one per core, half of that where the cores compute features too.

    ``device`` is empty where nothing is computed but pixels.
    """
    cores = cpu_count()
    wanted = cores if device != "cpu" else max(cores // 2, min(cores, 2))
    return min(wanted, MAX_DEFAULT_WORKERS)


def _ids_in_every(stores: Sequence[FeatureStore]) -> NDArray[np.uint8]:
    """Image ids (n, 32) that have a row in all stores: they need not be decoded."""
    ids = stores[0].index.ids
    for store in stores[1:]:
        ids = ids[store.contains(ids)]
    return ids
