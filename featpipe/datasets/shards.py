"""Sharded extraction: each of n jobs extracts every n-th record; the job that finds all shards
written merges them into one data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featpipe.base.dataset_names import SHARD_MARK
from featpipe.base.errors import NotFoundError
from featpipe.datasets.dataset import NO_LABEL, SPLIT_GIVEN, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.splits import split_unsplit
from featpipe.sources.records import Record
from featpipe.specs.shards import Shard


def shard_name(name: str, shard: Shard) -> str:
    """Name of a part's own data set: ``pets`` and 2/8 → ``pets.shard-2-of-8``."""
    return f"{name}{SHARD_MARK}{shard.number}-of-{shard.count}"


def list_digest(records: Sequence[Record]) -> str:
    """SHA-256 (hex) of a whole list: paths, labels and splits, in order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.path, record.label, record.split]).encode("ascii"))
    return digest.hexdigest()


def merge_shards(cache: Path, name: str, count: int, whole_list: str) -> Dataset | None:
    """Data set ``name`` from its shards once all are there; None while some are missing.

    A shard that was made from another list counts as missing. Several jobs may merge at once:
    all of them get the same.

    Parameters
    ----------
    cache : Path
    name : str
        Of the whole data set.
    count : int
        Number of shards.
    whole_list : str
        Digest of the whole list; see :func:`list_digest`.
    """
    shards = []
    for number in range(1, count + 1):
        try:
            shard = load_dataset(cache, shard_name(name, Shard(number, count)))
        except NotFoundError:
            return None
        if shard.info.list != whole_list:
            return None
        shards.append(shard)
    return _merged(name, shards, sum(map(len, shards)))


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
        # A part may hold nothing but pictures that lie beside the split folders.
        info=next((s.info for s in shards if s.info.split == SPLIT_GIVEN), shards[0].info),
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
