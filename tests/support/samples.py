"""Tiny pictures, pretended data sets, and the folder of sample data."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.datasets.dataset import NO_LABEL, NO_SPLIT, SPLITS, Dataset, DatasetInfo, SourceInfo
from featpipe.datasets.files import save_dataset
from featpipe.store.feature_store import FeatureStore

SHARED = Path(__file__).resolve().parents[3] / "shared"


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


def small_preprocessing(size: int = 8) -> Preprocessing:
    return Preprocessing(size=size, resize="crop", mean=(0.25, 0.5, 0.75), std=(1.0, 0.5, 0.125))


def small_space(**changes: Any) -> FeatureSpace:
    """A feature space of four float16 numbers a picture; no backbone is needed to fill it."""
    fields: dict[str, Any] = {
        "backbone": "tiny",
        "weights": "ab" * 32,
        "tap": "block1_pool",
        "pooling": "avg",
        "preprocessing": small_preprocessing(),
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
            if len(space.shape) == 3:
                # A band of lines, which a network can learn as well.
                rows[k][:, label[i] % 2 * space.shape[1] // 2 :][:, : space.shape[1] // 2] += 2.0
            else:
                rows[k].reshape(-1)[label[i] % rows[k].size] += 6.0
        store = FeatureStore(cache, space)
        store.prepare()
        store.append(unique, rows, {})
    dataset = Dataset(
        name=name,
        source=SourceInfo("folder", "pretended", str(cache / "pretended")),
        classes=known,
        paths=paths,
        label=label,
        split=np.array([SPLITS.index(s) if s else NO_SPLIT for _, _, s in samples], np.int8),
        image_sha256=ids,
        status=np.zeros(len(samples), np.int8),
        stat=np.full((len(samples), 3), -1),
        spaces=[space.canonical_json for space in spaces],
        info=DatasetInfo(weights={space.id: "random:0" for space in spaces}),
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
