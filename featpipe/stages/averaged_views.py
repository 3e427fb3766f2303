"""The views that a head's probabilities are averaged over: test-time augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.choices import AUGMENTATIONS
from featpipe.base.errors import NotFoundError
from featpipe.base.views import views_in
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.views import (
    Views,
    asked_words,
    find_views,
    fitting_views,
    listed_views,
    only_views,
    views_command,
)
from featpipe.runs.trained_head import TrainedHead
from featpipe.specs.views import ViewChoice
from featpipe.store.row_array import RowArray
from featpipe.store.viewed_rows import open_views


def views_to_average(
    dataset: Dataset, trained: TrainedHead, chosen: NDArray[np.intp], split: str, choice: ViewChoice
) -> Views:
    """The views that a head's probabilities are averaged over: of its own augmentation, if held.

    Parameters
    ----------
    dataset : Dataset
    trained : TrainedHead
    chosen : ndarray of int
        Row numbers of the evaluated pictures.
    split : str
        The one that they are from.
    choice : ViewChoice

    Raises
    ------
    NotFoundError
        There are no such views.
    UsageError
        There are several, and neither the options nor the head say which are meant.
    """
    held = find_views(dataset, trained.spaces, chosen)
    own = views_in(trained.info)
    found = fitting_views(held, choice)
    if own is not None and choice.is_open:
        same = {name: own[name] for name in ("policy", "version", "seed")}
        found = [one for one in found if one.as_json() == {**same, "number": one.number}] or found
    if views := only_views(found, dataset):
        return views
    policy, seed, number = choice.augment, choice.augment_seed, None
    if own is not None and own["policy"] in AUGMENTATIONS and choice.is_open:
        policy, seed, number = own["policy"], own["seed"], own["number"]
    command = _command_for(dataset, trained, split, policy, seed, number)
    raise NotFoundError(
        f"expected views{asked_words(choice)} of every picture of split '{split}' of "
        f"'{dataset.name}' for --tta, found: {listed_views(held)}; make them: {command}"
    )


def views_of_split(
    cache: Path,
    dataset: Dataset,
    trained: TrainedHead,
    views: Views,
    chosen: NDArray[np.intp],
    split: str,
) -> list[RowArray]:
    """The rows of evaluated pictures in each view; parameters as :func:`views_to_average`.

    Raises
    ------
    NotFoundError
        A picture has no row in one of the views.
    """
    one = views.augmentation
    command = _command_for(dataset, trained, split, one.policy, one.seed, views.number)
    remedy = f"compute them: {command}, or leave out --tta"
    return open_views(cache, views, dataset.image_sha256[chosen], remedy=remedy)


def _command_for(
    dataset: Dataset,
    trained: TrainedHead,
    split: str,
    policy: str | None,
    seed: int | None,
    number: int | None,
) -> str:
    return views_command(
        dataset,
        trained.spaces,
        trained.weights_name,
        split,
        policy=policy,
        seed=seed,
        number=number,
    )
