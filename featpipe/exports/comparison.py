"""Does an exported network answer as ``predict``? Compared on real pictures where there are any."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone, Tensors
from featpipe.base.errors import CheckError, FeatpipeError
from featpipe.base.preprocessing import WHITE
from featpipe.base.space import FeatureSpace
from featpipe.base.text import one_line
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.decoding.pixels import load_pixels
from featpipe.exports.documents import CheckDocument
from featpipe.exports.model_files import DENSE_OUTPUTS, Answer
from featpipe.runs.trained_head import TrainedHead
from featpipe.sources import image_reader
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows

log = logging.getLogger("featpipe")

PICTURES = 8
"""Pictures that are compared."""
TOLERANCE = 1e-4
"""Largest difference of a probability."""
_TRIES = 32
"""Pictures of a split that are tried: where its folder is gone, all would fail."""
_SPLITS = ("test", "val", "train")
MADE_UP = "made-up pictures"


@dataclass(frozen=True)
class Sample:
    """Pictures to compare on.

    Attributes
    ----------
    source : str
        Where they are from, in words.
    pixels : ndarray of uint8, shape (n, size, size, 3)
        As featpipe decodes them.
    ids : ndarray of uint8, shape (n, 32), or None
        Their image ids; None of made-up ones.
    """

    source: str
    pixels: NDArray[np.uint8]
    ids: NDArray[np.uint8] | None = None

    @property
    def image(self) -> NDArray[np.float32]:
        """What the exported network takes: (n, 3, size, size), 0..1."""
        image = self.pixels.astype(np.float32) / np.float32(WHITE)
        return np.ascontiguousarray(image.transpose(0, 3, 1, 2))  # N H W C → N C H W

    @property
    def two(self) -> NDArray[np.float32]:
        """Two pictures, to trace a network with: one alone would fix their number."""
        image = self.image
        return image[:2] if len(image) > 1 else image.repeat(2, axis=0)

    @property
    def larger(self) -> NDArray[np.float32]:
        """Two pictures of other sides: (2, 3, 3/2 size, 2 size), repeated beyond their edges."""
        side = self.pixels.shape[1]
        return np.pad(self.two, [(0, 0), (0, 0), (0, (side + 1) // 2), (0, side)], mode="wrap")


def sample_of(trained: TrainedHead, cache: Path) -> Sample:
    """Pictures of the head's data set, of test if there are such; made-up ones if none is there."""
    try:
        dataset = load_dataset(cache, str(trained.dataset["name"]))
    except FeatpipeError:
        return _made_up(trained.space)
    for split in _SPLITS:
        found = list(_readable(dataset, split, trained.space))
        if found:
            rows, pixels = zip(*found, strict=True)
            source = f"{split} pictures of {dataset.name}"
            return Sample(source, np.stack(pixels), dataset.image_sha256[list(rows)])
    return _made_up(trained.space)


def _readable(
    dataset: Dataset, split: str, space: FeatureSpace
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Number and pixels of a few pictures of a split that are there, unchanged, evenly spaced."""
    rows = np.flatnonzero(dataset.usable & (dataset.split == SPLITS.index(split)))
    order = rows[np.random.default_rng(0).permutation(len(rows))[:_TRIES]]
    read = image_reader(dataset.source.kind, dataset.source.root)
    found = 0
    for row in order.tolist():
        try:
            data = read(dataset.paths[row])
            if hashlib.sha256(data).digest() != dataset.image_sha256[row].tobytes():
                continue
            pixels = load_pixels(data, space.preprocessing)
        # A file may be gone, changed, or be larger than what is allowed without being asked.
        except (OSError, FeatpipeError, MemoryError):
            continue
        yield row, pixels
        found += 1
        if found == PICTURES:
            return


def _made_up(space: FeatureSpace) -> Sample:
    """Noise on flat colours."""
    size = space.preprocessing.size
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 156, (PICTURES, 1, 1, 3))
    noise = rng.integers(0, 100, (PICTURES, size, size, 3))
    return Sample(MADE_UP, (colours + noise).astype(np.uint8))


def compare(
    answer: Answer,
    sample: Sample,
    trained: TrainedHead,
    backbone: Backbone,
    tensors: Tensors,
    cache: Path,
) -> CheckDocument:
    """Compare an exported network with the head.

    Parameters
    ----------
    answer : callable
        The exported network.
    sample : Sample
    trained : TrainedHead
    backbone : Backbone
    tensors : mapping of str to ndarray
        Of the backbone, up to the head's taps.
    cache : Path

    Raises
    ------
    CheckError
        A label is another, or a probability differs by more than 1e-4.
    """
    expected = _predicted(sample, trained, backbone, tensors, cache)
    exact = expected
    if trained.space.precision != "fp32":
        exact = _computed(sample.pixels, trained, backbone, tensors, precision="fp32")
    # One alone, then all: the number of pictures must be free.
    parts = [_asked(answer, sample.image[:1])[1], _asked(answer, sample.image)[1]]
    _require(parts[0], exact[:1], sample.source)
    _require(parts[1], exact, sample.source)
    found = parts[1]
    differ = int((found.argmax(1) != expected.argmax(1)).sum())
    if differ:
        log.warning(
            "'featpipe predict', with features in %s, gives other labels than the exported network "
            "to %d of %d %s; extract with --precision fp32 for a network that agrees with it",
            *(trained.space.precision, differ, len(found), sample.source),
        )
    return {
        "pictures": len(found),
        "source": sample.source,
        "max_difference": _largest(found, exact),
        "predict_max_difference": _largest(found, expected),
        "predict_labels_differ": differ,
    }


def compare_larger(answer: Answer, model: Answer, sample: Sample) -> None:
    """Compare an exported network with what it was made from, on pictures of other sides.

    Raises
    ------
    CheckError
    """
    for name, found, expected in zip(
        DENSE_OUTPUTS, _asked(answer, sample.larger), model(sample.larger), strict=True
    ):
        spread = max(1.0, float(np.abs(expected).max()))
        if found.shape != expected.shape or not _largest(found, expected) <= TOLERANCE * spread:
            raise CheckError(
                f"expected the exported network to give the {name} of shape {expected.shape} that "
                f"the head gives of larger pictures, found another of shape {found.shape}; no file "
                "was written: try the other --format"
            )


def _predicted(
    sample: Sample, trained: TrainedHead, backbone: Backbone, tensors: Tensors, cache: Path
) -> NDArray[np.float64]:
    """What ``predict`` says: from the cache where it has the features, else they are computed."""
    ids = sample.ids
    if ids is not None:
        stores = [FeatureStore(cache, space) for space in trained.spaces]
        if all(store.contains(ids).all() for store in stores):
            return trained.predict_proba(open_rows(cache, trained.spaces, ids))
    return _computed(sample.pixels, trained, backbone, tensors)


def _computed(
    pixels: NDArray[np.uint8],
    trained: TrainedHead,
    backbone: Backbone,
    tensors: Tensors,
    *,
    precision: str | None = None,
) -> NDArray[np.float64]:
    spaces: Sequence[FeatureSpace] = trained.spaces
    if precision is not None:
        policy = backbone.policy(precision)
        spaces = [dataclasses.replace(s, precision=precision, policy=policy) for s in spaces]
    network = backbone.network(tensors, spaces, device="cpu", batch_size=len(pixels))
    parts = network(pixels)
    if len(parts) == 1:
        return trained.predict_proba(parts[0])
    return trained.predict_proba(
        np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    )


def _asked(answer: Answer, image: NDArray[np.float32]) -> list[np.ndarray]:
    try:
        return answer(image)
    # Each library has errors of its own.
    except Exception as error:
        raise CheckError(
            f"expected the exported network to take pictures of shape {image.shape}, found: "
            f"{one_line(error)}; no file was written: try the other --format"
        ) from error


def _largest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max())


def _require(found: np.ndarray, expected: np.ndarray, source: str) -> None:
    """Refuse answers that are not those of the head."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        raise CheckError(
            f"expected probabilities of shape {expected.shape} from the exported network, found "
            f"{found.shape} or values that are no numbers; no file was written"
        )
    largest = _largest(found, expected)
    if largest > TOLERANCE or (_clear_labels(found, expected) != 0).any():
        wrong = int((found.argmax(1) != expected.argmax(1)).sum())
        raise CheckError(
            f"expected the exported network to answer as 'featpipe predict' does, found "
            f"probabilities that differ by up to {largest:.1e} and {wrong} other labels of "
            f"{len(found)} {source}; no file was written: try the other --format"
        )


def _clear_labels(found: np.ndarray, expected: np.ndarray) -> NDArray[np.int64]:
    """Difference of labels, 0 where the head itself is undecided within the tolerance."""
    best = np.sort(expected, axis=1)
    is_clear = (
        best[:, -1] - best[:, -2] > TOLERANCE if expected.shape[1] > 1 else np.ones(len(best), bool)
    )
    return np.where(is_clear, found.argmax(1) - expected.argmax(1), 0)
