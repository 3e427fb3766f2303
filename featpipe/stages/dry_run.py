"""What an extraction would do."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import SPLITS
from featpipe.datasets.draft import DatasetDraft
from featpipe.engine.plan import plan_features
from featpipe.specs.extract import ExtractSpec
from featpipe.stages.known_pictures import (
    load_before,
    look_up,
    open_data,
    split_sizes,
    warn_of_other_source,
)
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.stages.documents import DryRunDocument


@dataclass(frozen=True)
class DryRun:
    """What an extraction would do, as far as the last run's record of the files tells.

    Attributes
    ----------
    dataset : str
    spaces : list of FeatureSpace
    images : int
        Records of the source: unchanged + to_read + quarantined.
    unchanged, to_read, quarantined : int
        Pictures that are cached; that are new or changed; that could not be read before.
    classes : dict of str to int
        Records of each class.
    split_by : {"given", "content", "none"}
        Whether DATA has splits, or they follow from the content, or there are none: no labels.
    splits : dict of str to int
        Records in each split. Splits by content are empty while there are pictures to read: what
        was not read has no split yet.
    """

    dataset: str
    spaces: list[FeatureSpace]
    images: int
    unchanged: int
    to_read: int
    quarantined: int
    classes: dict[str, int]
    split_by: str
    splits: dict[str, int]

    def as_json(self) -> DryRunDocument:
        """The plan as the command prints it."""
        return {
            "dataset": self.dataset,
            "spaces": [{"id": s.id, "tap": s.tap} for s in self.spaces],
            "images": self.images,
            "unchanged": self.unchanged,
            "to_read": self.to_read,
            "quarantined": self.quarantined,
            "classes": self.classes,
            "split_by": self.split_by,
            "splits": self.splits,
        }


def plan_extraction(data: str | os.PathLike[str], spec: ExtractSpec, *, cache: Path) -> DryRun:
    """Decide without acting: no picture is opened, nothing is written.

    ``to_read`` pictures are new or changed; those whose content turns out to be known are
    read but not decoded.
    """
    source = open_data(data, spec)
    plan = plan_features(spec, cache, remember=False)
    stores = [FeatureStore(cache, space) for space in plan.spaces]
    before = load_before(cache, spec.name)
    warn_of_other_source(source, before, spec.name)
    draft = look_up(source, before, stores, spec)
    return DryRun(
        dataset=spec.name,
        spaces=plan.spaces,
        images=len(source.records),
        unchanged=len(draft.fine),
        to_read=len(draft.todo),
        quarantined=len(draft.reasons),
        classes=_counts(record.label for record in source.records),
        **_planned_splits(draft, spec),
    )


def _planned_splits(draft: DatasetDraft, spec: ExtractSpec) -> dict[str, Any]:
    """``split_by`` and ``splits`` of a :class:`DryRun`."""
    records = draft.source.records
    given = _counts(record.split for record in records)
    if given:
        return {"split_by": "given", "splits": {s: given[s] for s in SPLITS if s in given}}
    if all(record.label is None for record in records):
        return {"split_by": "none", "splits": {}}
    if len(draft.todo):
        return {"split_by": "content", "splits": {}}
    return {"split_by": "content", "splits": split_sizes(draft.freeze(spec.name, spec.split))}


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    """How often each name occurs, sorted; what has none is left out."""
    return dict(sorted(Counter(name for name in names if name is not None).items()))
