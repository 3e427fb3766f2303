"""The views that heads draw from in training."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import NotFoundError
from featpipe.base.space import FeatureSpace
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
from featpipe.specs.head_params import params_of
from featpipe.specs.heads import HeadSpec
from featpipe.store.row_array import RowArray
from featpipe.store.viewed_rows import ViewedRows, open_views

log = logging.getLogger("featpipe")


class TrainingViews:
    """The views that a head draws from in training.

    Parameters
    ----------
    cache : Path
    dataset : Dataset
    train : ndarray of int
        Row numbers of the training pictures. Nothing is read of other pictures' views.
    spec : HeadSpec
    most : int, optional
        Only so many views are drawn from: the first ones.
    """

    def __init__(
        self,
        cache: Path,
        dataset: Dataset,
        train: NDArray[np.intp],
        spec: HeadSpec,
        most: int | None = None,
    ) -> None:
        self._most = most
        self._cache, self._dataset, self._train, self._spec = cache, dataset, train, spec
        self._of: dict[tuple[FeatureSpace, ...], Views | None] = {}

    def of(self, spaces: tuple[FeatureSpace, ...], weights: str) -> Views | None:
        """The views of feature spaces; None where a head of them is trained without.

        Parameters
        ----------
        spaces : tuple of FeatureSpace
        weights : str
            How their weights are named.

        Raises
        ------
        UsageError
            There are views of several augmentations, and the options leave open which.
        NotFoundError
            The options name an augmentation that there are no views of.
        """
        if spaces not in self._of:
            self._of[spaces] = self._choose(spaces, weights)
        return self._of[spaces]

    def _choose(self, spaces: tuple[FeatureSpace, ...], weights: str) -> Views | None:
        spec = self._spec
        if spec.no_views:
            return None
        held = find_views(self._dataset, spaces, self._train)
        if held and not params_of(spec.head).draws_views:
            log.info(
                "'%s' head: trained on the pictures themselves; views (%s) are drawn in epochs, "
                "and it has none",
                spec.head,
                listed_views(held),
            )
            return None
        found = fitting_views(held, spec)
        if not found and not spec.is_open:
            raise NotFoundError(
                f"expected views{asked_words(spec)} of every training picture of "
                f"'{self._dataset.name}', found: {listed_views(held)}; make them: "
                + self._command(spaces, weights, spec.augment, spec.augment_seed, None)
            )
        without = ", or train without views: --no-views"
        views = only_views(found, self._dataset, otherwise=without)
        return None if views is None else views.first(self._most)

    def beside(self, X: RowArray, spaces: tuple[FeatureSpace, ...], weights: str) -> RowArray:
        """The rows of the training pictures, with those of their views where there are some.

        Raises
        ------
        NotFoundError
            A picture has no row in one of the views.
        """
        views = self.of(spaces, weights)
        if views is None:
            return X
        one = views.augmentation
        command = self._command(spaces, weights, one.policy, one.seed, views.number)
        remedy = f"compute them: {command}, or train without views: --no-views"
        ids = self._dataset.image_sha256[self._train]
        return ViewedRows(X, open_views(self._cache, views, ids, remedy=remedy))

    def _command(
        self,
        spaces: tuple[FeatureSpace, ...],
        weights: str,
        policy: str | None,
        seed: int | None,
        number: int | None,
    ) -> str:
        return views_command(
            self._dataset, spaces, weights, "train", policy=policy, seed=seed, number=number
        )
