"""Data sets whose cached taps tell the classes apart as well as a test wants."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.cli.app import app
from featpipe.cli.options import given
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import save_dataset
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.head_params import HEAD_PARAMS
from featpipe.specs.heads import HeadSpec
from featpipe.store.feature_store import FeatureStore
from support.samples import small_space, stored_set

CHANNELS = 16


def vgg_space(tap: str, **changes: Any) -> FeatureSpace:
    """A space of maps of VGG16 at 64 px, with fewer channels than it has."""
    preprocessing = Preprocessing(
        size=64, resize="crop", mean=(0.25, 0.5, 0.75), std=(1.0, 0.5, 0.125)
    )
    fields = {
        "backbone": "vgg16",
        "tap": tap,
        "pooling": "none",
        "shape": (CHANNELS, 2, 2),
        "preprocessing": preprocessing,
    }
    return small_space(**{**fields, **changes})


def tapped_set(
    cache: Path,
    samples: Sequence[tuple[str, str | None, str | None]],
    signals: Mapping[FeatureSpace, float],
    **more: Any,
) -> Dataset:
    """A data set in whose spaces a class stands out by its signal, in units of the noise.

    The noise of a picture's numbers is 1 after the mean over places.
    """
    dataset = stored_set(cache, samples, **more)
    unique, first = np.unique(dataset.image_sha256, axis=0, return_index=True)
    for number, (space, signal) in enumerate(signals.items()):
        places = int(np.prod(space.shape[1:]))
        rows = np.empty((len(unique), *space.shape), space.dtype)
        for k, i in enumerate(first):
            rng = np.random.default_rng([number, *unique[k]])
            row = rng.normal(size=space.shape) * places**0.5
            row[dataset.label[i] % CHANNELS] += signal
            rows[k] = row
        store = FeatureStore(cache, space)
        store.prepare()
        store.append(unique, rows, {})
    dataset.spaces = [space.canonical_json for space in signals]
    dataset.info.weights = {space.id: "random:0" for space in signals}
    save_dataset(cache, dataset)
    return dataset


def parsed(command: str) -> ExtractSpec | HeadSpec | None:
    """The spec that a command to copy means; None for comments and other commands.

    Raises what the command line would, if it does not understand the command.
    """
    if command.startswith("# "):
        return None
    program, name, *words = shlex.split(command)
    assert program == "featpipe"
    group: Any = typer.main.get_command(app)
    context = group.get_command(None, name).make_context(name, words)
    if name == "extract":
        return ExtractSpec.from_options(given(context, ExtractSpec))
    if name != "train-head":
        return None
    hyper = {n for params in HEAD_PARAMS.values() for n in params.option_names()}
    known = hyper | set(HeadSpec.option_names())
    options = {n: None if v == () else v for n, v in context.params.items() if n in known}
    return HeadSpec.from_options(options)
