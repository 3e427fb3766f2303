"""Which feature spaces a data set lists: those that hold the rows of the pictures they cover."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.spaces import view_options
from featpipe.engine.plan import FeaturePlan
from featpipe.specs.extract import ALL_PICTURES, ExtractSpec
from featpipe.store.feature_store import FeatureStore

log = logging.getLogger("featpipe")


@dataclasses.dataclass(frozen=True)
class LostViews:
    """A view that a data set had, and has no more: pictures came that it does not cover.

    Attributes
    ----------
    space : FeatureSpace
    splits : tuple of str
        What it covered; ``all`` for every usable picture.
    """

    space: FeatureSpace
    splits: tuple[str, ...]


def keep_spaces(
    dataset: Dataset, plan: FeaturePlan, before: Dataset | None, cache: Path
) -> list[LostViews]:
    """Make a data set list the spaces of a plan, and earlier ones that still hold their rows.

    Returns
    -------
    list of LostViews
        Earlier views that no longer do.
    """
    dataset.spaces = [space.canonical_json for space in plan.spaces]
    dataset.info.weights = dict(before.info.weights) if before else {}
    dataset.info.weights |= {space.id: plan.weights.spec for space in plan.spaces}
    return _keep_earlier(dataset, before.spaces if before else [], before, cache)


def keep_views(dataset: Dataset, before: Dataset | None, cache: Path) -> list[LostViews]:
    """Make a data set that was merged list the views it had, where they still hold their rows.

    Its shards know of no views.
    """
    if before is None:
        return []
    views = [text for text in before.spaces if FeatureSpace.from_json(text).view]
    ids = {FeatureSpace.from_json(text).id for text in views}
    names = {space: name for space, name in before.info.weights.items() if space in ids}
    dataset.info.weights = {**dataset.info.weights, **names}
    return _keep_earlier(dataset, views, before, cache)


def _keep_earlier(
    dataset: Dataset, texts: Sequence[str], before: Dataset | None, cache: Path
) -> list[LostViews]:
    lost = []
    for text in texts:
        space = FeatureSpace.from_json(text)
        if before is None or text in dataset.spaces:
            continue
        splits = before.info.covers.get(space.id)
        if splits is not None:
            dataset.info.covers[space.id] = splits
        if holds_rows(dataset, space, cache):
            dataset.spaces.append(text)
        elif space.view:
            dataset.info.covers.pop(space.id, None)
            lost.append(LostViews(space, splits or (ALL_PICTURES,)))
    return lost


def holds_rows(dataset: Dataset, space: FeatureSpace, cache: Path) -> bool:
    """Whether the store of a space has the rows of all pictures that it shall cover."""
    store = FeatureStore(cache, space)
    ids = dataset.image_sha256[dataset.covered_by(space)]
    return store.folder.is_dir() and bool(store.contains(ids).all())


def enter_views(
    dataset: Dataset, spaces: Sequence[FeatureSpace], splits: tuple[str, ...], weights: str
) -> bool:
    """Make a data set list views; whether it did not list them before.

    A view that already covers other splits covers them still.

    Parameters
    ----------
    dataset : Dataset
    spaces : sequence of FeatureSpace
    splits : tuple of str
        Splits that the views hold the rows of; ``all`` for every usable picture.
    weights : str
        How their weights are named.
    """
    before = list(dataset.spaces), dict(dataset.info.covers)
    for space in spaces:
        covered: set[str] = set(splits)
        if space.canonical_json in dataset.spaces:
            covered |= set(dataset.info.covers.get(space.id, (ALL_PICTURES,)))
        else:
            dataset.spaces.append(space.canonical_json)
        dataset.info.weights[space.id] = weights
        dataset.info.covers.pop(space.id, None)
        if ALL_PICTURES not in covered:
            dataset.info.covers[space.id] = tuple(name for name in SPLITS if name in covered)
    return before != (dataset.spaces, dataset.info.covers)


def warn_of_lost_views(lost: Sequence[LostViews], spec: ExtractSpec) -> None:
    """Say which views no longer cover the data set, and which command completes them.

    Nothing is said of those that this extraction itself asks for.
    """
    numbers: dict[tuple[str, int, tuple[str, ...]], int] = {}
    for view in lost:
        drawn = view.space.augmentation
        if drawn is None:
            continue
        is_asked = (spec.policy, spec.augment_seed) == (drawn.policy, drawn.seed)
        if not (is_asked and view.space.view <= spec.views):
            key = (drawn.policy, drawn.seed, view.splits)
            numbers[key] = max(numbers.get(key, 0), view.space.view)
    for (policy, seed, splits), number in numbers.items():
        log.warning(
            "views (%s, seed %d) do not cover all pictures of data set '%s' any more, so it lists "
            "them no longer; complete them with %s",
            *(policy, seed, spec.name, view_options(policy, seed, splits, number)),
        )
