"""Garbage of a feature store: rows that no data set names.

Segments are immutable, so rows go with their segment: one without a named row is deleted, one
with some is replaced by a segment of these alone. What replaces a segment is durable before the
segment is deleted, and is the same file however often the work is begun anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import remove_file, remove_leftovers, remove_tree, sync_folder
from featpipe.base.errors import DamageError
from featpipe.base.ids import DIGEST_BYTES
from featpipe.store.feature_store import FeatureStore
from featpipe.store.index import Index, segment_names
from featpipe.store.segments import (
    Segment,
    build_segment,
    file_digest,
    read_segment,
    stored_provenance,
    whole_rows,
    write_segment,
)

_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class StoreGarbage:
    """Garbage of one feature store.

    Attributes
    ----------
    name : str
        Of the store's folder.
    rows, kept : int
        Rows that go; rows that stay.
    young : int
        Rows that no data set names either, but that stay because they are young.
    deleted, replaced : int
        Segments without, and with, a row that stays.
    bytes : int
        Room it takes on the disk.
    """

    name: str
    rows: int
    kept: int
    young: int
    deleted: int
    replaced: int
    bytes: int


def collect_store(
    store: FeatureStore, named: NDArray[np.uint8], *, before: float, dry_run: bool
) -> StoreGarbage:
    """Delete the rows of a store that no data set names; and a store without rows and names.

    Only for the holder of the sole lease, unless ``dry_run``; see :mod:`featpipe.store.lease`.

    Parameters
    ----------
    store : FeatureStore
    named : ndarray of uint8, shape (n, 32)
        Image ids whose rows stay, sorted, each once.
    before : float
        Segments that were written later (seconds since the epoch) stay whole.
    dry_run : bool
        Only say what would be done.

    Raises
    ------
    DamageError
        A segment that would be replaced is damaged.
    StorageError
    """
    doomed: list[tuple[Segment, NDArray[np.bool_]]] = []
    kept = young = 0
    names = Index(ids=named)
    for name in segment_names(store.folder):
        segment = read_segment(store.segments_folder / f"{name}.h5", store.space)
        stays = names.find(segment.ids) >= 0
        unnamed = int((~stays).sum())
        if segment.path.stat().st_mtime > before:
            young += unnamed
        elif unnamed:
            doomed.append((segment, stays))
        kept += len(stays)
    rows = sum(int((~stays).sum()) for _, stays in doomed)
    replaced = sum(bool(stays.any()) for _, stays in doomed)
    found = StoreGarbage(
        name=store.folder.name,
        rows=rows,
        kept=kept - rows,
        young=young,
        deleted=len(doomed) - replaced,
        replaced=replaced,
        bytes=sum(_bytes(store, segment, stays) for segment, stays in doomed),
    )
    if not dry_run:
        _collect(store, doomed)
        if not len(named) and not segment_names(store.folder):
            remove_tree(store.folder)
    return found


def _collect(store: FeatureStore, doomed: list[tuple[Segment, NDArray[np.bool_]]]) -> None:
    remove_leftovers(store.segments_folder)
    # Whole segments first: that makes room for those that are written again.
    for segment, stays in sorted(doomed, key=lambda pair: bool(pair[1].any())):
        if stays.any():
            _write_again(store, segment, stays)
        remove_file(segment.path)
    sync_folder(store.segments_folder)
    # An index that lists a deleted segment is made anew, which the next command need not do.
    store.refresh()
    _ = store.index


def _write_again(store: FeatureStore, segment: Segment, stays: NDArray[np.bool_]) -> None:
    """Store the rows that stay as a segment of their own, durably."""
    path = segment.path
    rows = [row for row, here in zip(whole_rows(segment, store.space), stays, strict=True) if here]
    whole = [row for row in rows if row is not None]
    if len(whole) < len(rows) or file_digest(path) != path.stem:
        raise DamageError(
            f"expected a whole segment in {path}, found a damaged one; run 'featpipe cache "
            "repair', and then the same command again"
        )
    # With the provenance of the old one: the same rows give the same file.
    data = build_segment(store.space, segment.ids[stays], np.stack(whole), stored_provenance(path))
    write_segment(store.segments_folder, data)
    # It may be there from a process that died before it made the name durable.
    sync_folder(store.segments_folder)


def _bytes(store: FeatureStore, segment: Segment, stays: NDArray[np.bool_]) -> int:
    """Room that the rows of a segment take that do not stay."""
    if not stays.any():
        return segment.path.stat().st_size
    row = math.prod(store.space.shape) * np.dtype(store.space.dtype).itemsize
    return int((~stays).sum()) * (row + DIGEST_BYTES + _CHECKSUM_BYTES)
