"""The commands as functions: the same names, the same options, the same defaults."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featpipe.base.cache import default_cache
from featpipe.datasets.shards import parse_shard
from featpipe.datasets.splits import DEFAULT_FRACTIONS, DEFAULT_VAL_FRACTION
from featpipe.engine.options import parse_options
from featpipe.stages import evaluate as evaluation
from featpipe.stages import extract as extraction
from featpipe.stages import predict as prediction
from featpipe.stages import train as training
from featpipe.stages.evaluate import Evaluation
from featpipe.stages.extract import ExtractResult
from featpipe.stages.predict import Prediction
from featpipe.stages.train import TrainResult

PathLike = str | os.PathLike[str]


def extract(
    data: PathLike,
    *,
    name: str,
    cache: PathLike | None = None,
    split: Sequence[float] = DEFAULT_FRACTIONS,
    root: PathLike | None = None,
    follow_links: bool = False,
    max_bad: float = 1.0,
    retry_quarantined: bool = False,
    rehash: bool = False,
    shard: str | None = None,
    **options: Any,
) -> ExtractResult:
    """Compute what is missing of the features of DATA and freeze its list as data set ``name``.

    Parameters
    ----------
    data : str or path
        An image folder, a ``.csv``, ``.tsv`` or ``.jsonl`` list, or ``sklearn:digits``.
    name : str
    cache : path, optional
        Default: ``$FEATPIPE_CACHE``, else ``./cache``.
    split : sequence of three floats
        Shares of train, val and test where DATA has no splits.
    root : path, optional
        For a list: the folder its paths may not leave.
    follow_links : bool
        For a list: whether links may lead its paths out of that folder.
    max_bad : float
        Largest share of unreadable pictures, 0..1.
    retry_quarantined : bool
    rehash : bool
        Read also the files that have not changed by size and times.
    shard : str, optional
        ``i/n``: only that part, for one of n jobs.
    **options
        ``backbone, weights, tap, pool, size, resize, decoder, precision, dtype, device,
        batch_size, workers, max_pixels``; see :class:`featpipe.engine.plan.FeatureRequest` and
        :class:`featpipe.engine.loop.EngineOptions`.

    Raises
    ------
    FeatpipeError
    """
    request, engine_options = parse_options(options)
    return extraction.extract(
        data,
        name=name,
        cache=_root(cache),
        request=request,
        options=engine_options,
        fractions=split,
        root=None if root is None else Path(root),
        follow_links=follow_links,
        max_bad=max_bad,
        retry_quarantined=retry_quarantined,
        rehash=rehash,
        shard=None if shard is None else parse_shard(shard),
    )


def train_head(
    name: str,
    *,
    head: str = "linear",
    cache: PathLike | None = None,
    tap: str | None = None,
    pool: str | None = None,
    sweep: bool = False,
    seeds: int = 1,
    seed: int = 0,
    val: float = DEFAULT_VAL_FRACTION,
    out: PathLike | None = None,
    overwrite: bool = False,
    device: str = "auto",
    **params: Any,
) -> TrainResult:
    """Train a head on a data set's cached features; see :func:`featpipe.stages.train.train_head`.

    ``**params`` are the head's hyper-parameters, such as ``hidden=512, dropout=0.3`` for
    ``mlp`` or ``C=0.01`` for ``logistic``; with ``sweep=True`` they are not varied.
    """
    return training.train_head(
        name,
        cache=_root(cache),
        head=head,
        params=params,
        tap=tap,
        pool=pool,
        sweep=sweep,
        seeds=seeds,
        seed=seed,
        val_fraction=val,
        out=None if out is None else Path(out),
        overwrite=overwrite,
        device=device,
    )


def evaluate(
    head: PathLike, *, on: str | None = None, split: str = "test", cache: PathLike | None = None
) -> Evaluation:
    """Score a head on a split; see :func:`featpipe.stages.evaluate.evaluate`."""
    return evaluation.evaluate(Path(head), cache=_root(cache), on=on, split=split)


def predict(
    head: PathLike,
    paths: Sequence[PathLike] | PathLike,
    *,
    cache: PathLike | None = None,
    weights: str | None = None,
    device: str = "auto",
) -> list[Prediction]:
    """Classify files and folders; see :func:`featpipe.stages.predict.predict`."""
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = prediction.predict(
        Path(head), several, cache=_root(cache), weights=weights, device=device
    )
    return list(found)


def _root(cache: PathLike | None) -> Path:
    return default_cache() if cache is None else Path(cache)
