"""What an extraction would do."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.base.space import Augmentation, FeatureSpace
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.draft import DatasetDraft
from featpipe.engine.plan import plan_features
from featpipe.specs.extract import ExtractSpec
from featpipe.stages.known_pictures import (
    check_views_of,
    load_before,
    look_up,
    open_data,
    split_sizes,
    warn_of_other_source,
)
from featpipe.stages.views import ViewPass
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.stages.documents import DryRunDocument


@dataclass(frozen=True)
class PlannedViews:
    """The views that an extraction would compute.

    Attributes
    ----------
    augmentation : Augmentation
    number : int
        Views of each picture.
    of : tuple of str
        Splits whose pictures have them; ``all`` for every usable picture.
    to_compute : int or None
        Views that are missing; None where it is not known yet which pictures are in those splits,
        or which of them are equal.
    spaces : list of FeatureSpace
    """

    augmentation: Augmentation
    number: int
    of: tuple[str, ...]
    to_compute: int | None
    spaces: list[FeatureSpace] = field(repr=False)


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
    views : PlannedViews or None
        Where views are asked for.
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
    views: PlannedViews | None = None

    def as_json(self) -> DryRunDocument:
        """The plan as the command prints it."""
        spaces = [*self.spaces, *(self.views.spaces if self.views else [])]
        document: DryRunDocument = {
            "dataset": self.dataset,
            "spaces": [{"id": s.id, "tap": s.tap, "view": s.view} for s in spaces],
            "images": self.images,
            "unchanged": self.unchanged,
            "to_read": self.to_read,
            "quarantined": self.quarantined,
            "classes": self.classes,
            "split_by": self.split_by,
            "splits": self.splits,
        }
        if self.views is not None:
            document["views"] = {
                "policy": self.views.augmentation.policy,
                "version": self.views.augmentation.version,
                "seed": self.views.augmentation.seed,
                "number": self.views.number,
                "of": list(self.views.of),
                "to_compute": self.views.to_compute,
            }
        return document


def plan_extraction(data: str | os.PathLike[str], spec: ExtractSpec, *, cache: Path) -> DryRun:
    """Decide without acting: no picture is opened, nothing is written.

    ``to_read`` pictures are new or changed; those whose content turns out to be known are
    read but not decoded.
    """
    source = open_data(data, spec)
    check_views_of(source, spec)
    plan = plan_features(spec, cache, remember=False)
    stores = [FeatureStore(cache, space) for space in plan.spaces]
    before = load_before(cache, spec.name)
    warn_of_other_source(source, before, spec.name)
    draft = look_up(source, before, stores, spec)
    frozen = functools.cache(lambda: draft.freeze(spec.name, spec.split))
    return DryRun(
        dataset=spec.name,
        spaces=plan.spaces,
        images=len(source.records),
        unchanged=len(draft.fine),
        to_read=len(draft.todo),
        quarantined=len(draft.reasons),
        classes=_counts(record.label for record in source.records),
        **_planned_splits(draft, frozen),
        views=_planned_views(draft, frozen, ViewPass(plan, spec, cache)),
    )


def _planned_views(
    draft: DatasetDraft, frozen: Callable[[], Dataset], views: ViewPass
) -> PlannedViews | None:
    if not views.numbers:
        return None
    to_compute = None if len(draft.todo) else views.missing_of(frozen())
    return PlannedViews(
        views.augmentation, len(views.numbers), views.splits, to_compute, views.plan.spaces
    )


def _planned_splits(draft: DatasetDraft, frozen: Callable[[], Dataset]) -> dict[str, Any]:
    """``split_by`` and ``splits`` of a :class:`DryRun`."""
    records = draft.source.records
    given = _counts(record.split for record in records)
    if given:
        return {"split_by": "given", "splits": {s: given[s] for s in SPLITS if s in given}}
    if all(record.label is None for record in records):
        return {"split_by": "none", "splits": {}}
    if len(draft.todo):
        return {"split_by": "content", "splits": {}}
    return {"split_by": "content", "splits": split_sizes(frozen())}


def _counts(names: Iterable[str | None]) -> dict[str, int]:
    """How often each name occurs, sorted; what has none is left out."""
    return dict(sorted(Counter(name for name in names if name is not None).items()))
