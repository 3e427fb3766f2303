"""What is known of the pictures of a source before any of them is opened."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import PIL

from featpipe.base.errors import NotFoundError, UsageError
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.draft import DatasetDraft, source_info
from featpipe.datasets.files import load_dataset
from featpipe.decoding.pixels import DECODER_EDITION
from featpipe.sources import Source, label_warnings, open_source
from featpipe.specs.extract import ALL_PICTURES, EngineOptions, ExtractSpec
from featpipe.store.feature_store import FeatureStore

log = logging.getLogger("featpipe")


def open_data(data: str | os.PathLike[str], spec: ExtractSpec) -> Source:
    """The source; what is odd about its labels is said at once."""
    source = open_source(data, root=spec.root, follow_links=spec.follow_links)
    for warning in label_warnings(source):
        log.warning("%s", warning)
    return source


def check_views_of(source: Source, spec: ExtractSpec) -> None:
    """Refuse views of splits that a source cannot have, before anything is computed.

    Raises
    ------
    UsageError
    """
    if spec.policy == "flip" and spec.views > 1:
        log.warning(
            "--augment flip makes one picture of each: views 1, 3, … are mirrored, 2, 4, … the "
            "picture itself; --views 1 is enough"
        )
    if not spec.views or ALL_PICTURES in spec.views_of:
        return
    given = {record.split for record in source.records if record.split}
    if not given and any(record.label is not None for record in source.records):
        given = {name for name, share in zip(SPLITS, spec.split, strict=True) if share}
    missing = [name for name in spec.views_of if name not in given]
    if missing:
        found = ", ".join(name for name in SPLITS if name in given) or "none"
        raise UsageError(
            f"expected --views-of to name splits that {source.spec} has (found: {found}), found "
            f"{missing[0]!r}; name one of those, or {ALL_PICTURES!r}"
        )


def warn_of_other_source(source: Source, before: Dataset | None, name: str) -> None:
    """Say that the list of a data set is replaced by that of other pictures."""
    now = source_info(source)
    # A folder that was moved, or is named in another way, is still the same source.
    if before is None or before.source.spec == now.spec:
        return
    if before.source.root != (now.root or now.spec):
        log.warning(
            "data set '%s' was made from %s (%d pictures): its list is replaced, features stay",
            *(name, before.source.spec, len(before)),
        )


def look_up(
    source: Source, before: Dataset | None, stores: list[FeatureStore], spec: ExtractSpec
) -> DatasetDraft:
    """What is known of every record of a source without opening a picture."""
    draft = DatasetDraft(source, _decoder(spec))
    draft.recall(before, retry_quarantined=spec.retry_quarantined, rehash=spec.rehash)
    # An unchanged file still has work to do where a store lacks its row.
    ids = draft.ids[draft.fine]
    has_row = np.ones(len(ids), bool)
    for store in stores:
        has_row &= store.contains(ids)
    draft.require_rows(has_row)
    return draft


def split_sizes(dataset: Dataset | None) -> dict[str, int]:
    """Usable pictures per split; a part of a sharded data set has no splits of its own yet."""
    return {s: len(dataset.in_split(s)) for s in dataset.split_names} if dataset else {}


def _decoder(options: EngineOptions) -> str:
    """What decides whether a picture is readable; a change tries quarantined ones again."""
    return f"edition {DECODER_EDITION}, pillow {PIL.__version__}, {options.max_pixels} pixels"


def load_before(cache: Path, name: str) -> Dataset | None:
    """The data set that already has the name; None where there is none."""
    try:
        return load_dataset(cache, name)
    except NotFoundError:
        return None
