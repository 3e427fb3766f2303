"""Sharded extraction: each job lists every n-th record; whoever finds all shards merges them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe.base.errors import NotFoundError, UsageError
from featpipe.datasets.files import NO_LABEL, SHARD_MARK, Dataset, load_dataset, save_dataset
from featpipe.datasets.splits import split_by_content
from featpipe.sources.records import Record

MAX_SHARDS = 10_000


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``.

    Raises
    ------
    UsageError
        There is no such part.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= MAX_SHARDS:
            raise UsageError(
                f"expected --shard i/n with i from 1 to n (at most {MAX_SHARDS}), found {self}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def dataset_name(self, name: str) -> str:
        """Name of the part's own data set file."""
        return f"{name}{SHARD_MARK}{self.number}-of-{self.count}"

    @property
    def slice(self) -> slice:
        """Which records of the whole list are this part's."""
        return slice(self.number - 1, None, self.count)


def parse_shard(text: str) -> Shard:
    """``2/8`` → the second of eight.

    Raises
    ------
    UsageError
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match:
        raise UsageError(f"expected --shard i/n, like 2/8, found {text!r}")
    return Shard(int(match[1]), int(match[2]))


def list_digest(records: Sequence[Record]) -> str:
    """SHA-256 (hex) of a whole list: paths, labels and splits, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.path, record.label, record.split]).encode("ascii"))
    return digest.hexdigest()


def merge_shards(cache: Path, name: str, count: int, whole_list: str) -> Dataset | None:
    """Write data set ``name`` from its shards once all are there; None while some are missing.

    A shard that was made from another list than ``whole_list`` (see :func:`list_digest`) is as
    good as missing. Several jobs may merge at once: each writes the same.
    """
    shards = []
    for number in range(1, count + 1):
        try:
            shard = load_dataset(cache, Shard(number, count).dataset_name(name))
        except NotFoundError:
            return None
        if shard.info.get("list") != whole_list:
            return None
        shards.append(shard)
    merged = _merged(name, shards, sum(map(len, shards)))
    save_dataset(cache, merged)
    return merged


def _merged(name: str, shards: list[Dataset], total: int) -> Dataset:
    count = len(shards)
    classes = sorted({label for shard in shards for label in shard.classes})
    whole = Dataset(
        name=name,
        source=shards[0].source,
        classes=classes,
        paths=[""] * total,
        label=np.full(total, NO_LABEL, np.int64),
        split=np.empty(total, np.int8),
        image_sha256=np.empty((total, 32), np.uint8),
        status=np.empty(total, np.int8),
        stat=np.empty((total, 3), np.int64),
        spaces=[s for s in shards[0].spaces if all(s in shard.spaces for shard in shards)],
        info=shards[0].info,
    )
    for offset, shard in enumerate(shards):
        place = slice(offset, None, count)
        whole.paths[place] = shard.paths
        whole.split[place] = shard.split
        whole.image_sha256[place] = shard.image_sha256
        whole.status[place] = shard.status
        whole.stat[place] = shard.stat
        number = np.array([*map(classes.index, shard.classes), NO_LABEL], np.int64)
        whole.label[place] = number[shard.label]
        whole.reasons |= {offset + row * count: why for row, why in shard.reasons.items()}
    whole.reasons = dict(sorted(whole.reasons.items()))
    split_unsplit(whole)
    return whole


def split_unsplit(dataset: Dataset) -> None:
    """Split a labelled data set by content where its source gave no splits."""
    shares, usable = dataset.info["split"], dataset.usable
    if shares != "given" and dataset.classes and usable.any():
        dataset.split[usable] = split_by_content(
            dataset.image_sha256[usable], dataset.label[usable], shares
        )
