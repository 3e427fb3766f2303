"""Which pictures views hold the rows of: mostly those of train alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import NotFoundError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import NO_SPLIT, SPLITS, Dataset
from featpipe.datasets.source_command import extract_command
from featpipe.datasets.spaces import extract_options, view_options
from featpipe.specs.extract import ALL_PICTURES


def require_covered(
    dataset: Dataset, spaces: Sequence[FeatureSpace], weights: str, rows: NDArray[np.intp]
) -> None:
    """Check that views hold the rows of given pictures: mostly they cover train alone.

    Parameters
    ----------
    dataset : Dataset
    spaces : sequence of FeatureSpace
    weights : str
        How their weights are named; for the message.
    rows : ndarray of int
        Row numbers of the pictures.

    Raises
    ------
    NotFoundError
        A view does not cover one of them; the command that computes it is named.
    """
    for space in spaces:
        if (drawn := space.augmentation) is None:
            continue
        missing = np.setdiff1d(rows, dataset.covered_by(space))
        if not len(missing):
            continue
        numbers = np.unique(dataset.split[missing]).tolist()
        named = [ALL_PICTURES] if NO_SPLIT in numbers else [SPLITS[number] for number in numbers]
        covered = ", ".join(dataset.info.covers.get(space.id, ())) or "no split"
        options = extract_options([one.original for one in spaces], weights)
        of_views = view_options(drawn.policy, drawn.seed, named, space.view)
        raise NotFoundError(
            f"expected view {space.view} ({drawn}) of all {len(rows)} pictures, found it of "
            f"{covered} alone in data set '{dataset.name}'; compute it of {', '.join(named)} too: "
            f"{extract_command(dataset, options, of_views)}"
        )
