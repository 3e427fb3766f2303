"""A scikit-learn transformer: picture paths in, cached features out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from featpipe.backbones.catalog import get_backbone
from featpipe.base.cache import default_cache
from featpipe.base.errors import DataError, UsageError
from featpipe.base.own_code import permitted
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import Extractor
from featpipe.engine.outcome import Outcome
from featpipe.engine.plan import plan_features
from featpipe.integrations.tables import feature_names
from featpipe.specs.extract import FeatureOptions
from featpipe.store.feature_store import FeatureStore
from featpipe.store.lease import shared_lease


class CachedFeatures(TransformerMixin, BaseEstimator):
    """Backbone features of picture files, computed once and cached.

    Stateless: ``fit`` learns nothing. A grid search over later pipeline steps, or over ``tap``
    and ``pool``, computes each picture once per feature space. ``set_output(transform="pandas")``
    gives data frames.

    Parameters
    ----------
    cache : path, optional
        Cache root; default: ``$FEATPIPE_CACHE``, else ``./cache``.
    backbone, weights, tap, pool, size, resize, channels, decoder, precision, dtype, device, \
batch_size, workers, max_pixels
        As in ``featpipe extract``; None means its default. ``tap`` and ``pool`` take one name. A
        ``backbone`` of ``package.module:factory`` is code of your own, which is run.
    """

    def __init__(
        self,
        cache: str | os.PathLike[str] | None = None,
        backbone: str | None = None,
        weights: str | None = None,
        tap: str | None = None,
        pool: str | None = None,
        size: int | None = None,
        resize: str | None = None,
        channels: str | None = None,
        decoder: str | None = None,
        precision: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.cache = cache
        self.backbone = backbone
        self.weights = weights
        self.tap = tap
        self.pool = pool
        self.size = size
        self.resize = resize
        self.channels = channels
        self.decoder = decoder
        self.precision = precision
        self.dtype = dtype
        self.device = device
        self.batch_size = batch_size
        self.workers = workers
        self.max_pixels = max_pixels

    def fit(self, X: Any, y: Any = None) -> CachedFeatures:
        """Return self; there is nothing to learn."""
        return self

    def transform(self, X: Sequence[str | os.PathLike[str]]) -> NDArray[np.float32]:
        """Features of picture files.

        Parameters
        ----------
        X : array-like of path, shape (n,) or (n, 1)
            Picture files.

        Returns
        -------
        ndarray of float32, shape (n, features)
            Feature maps are flattened in the order C H W.

        Raises
        ------
        DataError
            A picture is unreadable, or there is none: a transformer cannot leave out rows.
        """
        paths = [os.fspath(path) for path in np.asarray(X, dtype=object).reshape(-1)]
        root = default_cache() if self.cache is None else Path(self.cache)
        with permitted([self.backbone]):
            spec = self._spec()
            plan = plan_features(spec, root)
        store = FeatureStore(root, plan.spaces[0])
        if not paths:
            raise DataError("expected at least one picture, found none")

        def refuse_bad(outcome: Outcome) -> None:
            if outcome.reason is not None:
                raise DataError(
                    f"expected readable pictures, found {paths[outcome.key]!r} "
                    f"({outcome.reason}); leave it out"
                )

        tasks = (Task(i, os.path.abspath(path)) for i, path in enumerate(paths))
        with shared_lease(root):
            with Extractor(plan, [store], spec) as extractor:
                ids = extractor.compute_ids(tasks, len(paths), refuse_bad).ids
            return np.asarray(store.rows(ids)).reshape(len(paths), -1).astype(np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns: ``vgg16-block5_pool_0``, …; needs neither pictures nor weights.

        Parameters
        ----------
        input_features : object
            Ignored; scikit-learn passes it.
        """
        with permitted([self.backbone]):
            spec = self._spec()
            backbone = get_backbone(spec.backbone)
        tap, size = backbone.tap(spec.taps[0]).name, spec.size or backbone.default_size
        shape = backbone.output_shape(tap, spec.pool[0], size, spec.channels)
        return np.array(feature_names(backbone.name, tap, shape), dtype=object)

    def _spec(self) -> FeatureOptions:
        options = {k: v for k, v in self.get_params(deep=False).items() if k != "cache"}
        spec = FeatureOptions.from_options(options)
        if len(spec.taps) != 1 or len(spec.pool) != 1:
            raise UsageError(f"expected one tap and one pool, found {self.tap!r}, {self.pool!r}")
        return spec

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags
