"""Features of whole pictures, of any aspect, computed one by one and kept nowhere.

Feature rows have one shape, so a cache holds squares alone. Score maps are for looking at, and a
square would cut them off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Inference
from featpipe.base.errors import Reason
from featpipe.base.ids import DIGEST_BYTES
from featpipe.base.preprocessing import WHOLE
from featpipe.decoding.pool import DecodePool
from featpipe.decoding.worker_process import Decoded, DecodedKind, Task
from featpipe.engine.extractor import batch_bytes, default_workers
from featpipe.engine.inference_pool import InferencePool
from featpipe.engine.plan import FeaturePlan
from featpipe.specs.extract import EngineOptions


@dataclass(frozen=True)
class WholePicture:
    """What became of one picture.

    Attributes
    ----------
    key : int
        Its task's.
    image_id : bytes or None
        SHA-256 of its bytes; None where they could not be read.
    pixels : ndarray of uint8, shape (height, width, 3), or None
        RGB; the shorter side is the size.
    features : list of ndarray
        Its features (*shape) in every space; empty where it could not be read.
    reason : Reason or None
        Why it could not be read.
    """

    key: int
    image_id: bytes | None
    pixels: NDArray[np.uint8] | None = None
    features: Sequence[np.ndarray] = ()
    reason: Reason | None = None


class WholePictures:
    """Decodes whole pictures and computes their features; a context manager.

    Parameters
    ----------
    plan : FeaturePlan
        Its spaces say what is computed; their size is the shorter side of the pictures.
    options : EngineOptions
    """

    def __init__(self, plan: FeaturePlan, options: EngineOptions) -> None:
        self._plan, self._options = plan, options
        self._resources = ExitStack()

    def __enter__(self) -> WholePictures:
        plan, options = self._plan, self._options
        has_network = plan.weights.backbone.has_weights
        with ExitStack() as resources:
            self._pool = resources.enter_context(
                DecodePool(
                    dataclasses.replace(plan.spaces[0].preprocessing, resize=WHOLE),
                    workers=options.workers or default_workers(plan.device if has_network else ""),
                    known=np.empty((0, DIGEST_BYTES), np.uint8),
                    max_pixels=options.max_pixels,
                )
            )
            network = _network(plan)
            pool: InferencePool[Decoded] = InferencePool(
                network, device=plan.device, batch_bytes=batch_bytes(network)
            )
            self._inference = resources.enter_context(pool)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._inference.cancel()
        self._resources.__exit__(kind, error, trace)

    def compute(self, tasks: Iterable[Task]) -> Iterator[WholePicture]:
        """One result per task, in no particular order.

        Raises
        ------
        FeatureOverflowError, OutOfMemoryError
        """
        for picture in self._pool.decode(tasks):
            if picture is None:
                continue
            if picture.kind is DecodedKind.BAD:
                reason = Reason(picture.stage, picture.reason)
                yield WholePicture(picture.key, picture.image_id, reason=reason)
                continue
            assert picture.pixels is not None
            self._inference.submit(picture.pixels, picture)
            yield from self._finished(None)
        yield from self._finished(0)

    def _finished(self, leave: int | None) -> Iterator[WholePicture]:
        for picture, (*features,) in self._inference.results(leave):
            assert picture.pixels is not None
            rows = [row[0] for row in features]
            yield WholePicture(picture.key, picture.image_id, picture.pixels[0], rows)


def _network(plan: FeaturePlan) -> Inference:
    weights, spaces = plan.weights, plan.spaces
    if not weights.backbone.has_weights:
        return weights.backbone.network({}, spaces, device=plan.device, batch_size=1)
    from featpipe.backbones.network import Network

    tensors = weights.tensors([space.tap for space in spaces])
    return Network(
        weights.backbone,
        tensors,
        spaces,
        device=plan.device,
        batch_size=1,
        fixed_batch=False,
    )
