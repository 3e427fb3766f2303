"""``featpipe train-head``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import (
    AsJson,
    Cache,
    Quiet,
    Verbose,
    cache_root,
    command_app,
    flag_of,
    given,
    hyper_parameter,
)
from featpipe.specs.head_params import HEAD_PARAMS
from featpipe.specs.heads import HeadSpec

app = command_app()


@app.command()
def train_head(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    head: Annotated[str | None, flag_of(HeadSpec, "head")] = None,
    learning_rate: Annotated[float | None, hyper_parameter("learning_rate")] = None,
    weight_decay: Annotated[float | None, hyper_parameter("weight_decay")] = None,
    batch_size: Annotated[int | None, hyper_parameter("batch_size")] = None,
    epochs: Annotated[int | None, hyper_parameter("epochs")] = None,
    patience: Annotated[int | None, hyper_parameter("patience")] = None,
    schedule: Annotated[str | None, hyper_parameter("schedule")] = None,
    compute: Annotated[str | None, hyper_parameter("compute")] = None,
    optimizer: Annotated[str | None, hyper_parameter("optimizer")] = None,
    momentum: Annotated[float | None, hyper_parameter("momentum")] = None,
    top: Annotated[str | None, hyper_parameter("top")] = None,
    backbone_rate_factor: Annotated[float | None, hyper_parameter("backbone_rate_factor")] = None,
    init: Annotated[str | None, hyper_parameter("init")] = None,
    hidden: Annotated[int | None, hyper_parameter("hidden")] = None,
    dropout: Annotated[float | None, hyper_parameter("dropout")] = None,
    C: Annotated[float | None, hyper_parameter("C")] = None,
    folds: Annotated[int | None, hyper_parameter("folds")] = None,
    solver: Annotated[str | None, hyper_parameter("solver")] = None,
    max_iter: Annotated[int | None, hyper_parameter("max_iter")] = None,
    k: Annotated[int | None, hyper_parameter("k")] = None,
    vote_temperature: Annotated[float | None, hyper_parameter("vote_temperature")] = None,
    class_weight: Annotated[str | None, hyper_parameter("class_weight")] = None,
    sweep: Annotated[bool, flag_of(HeadSpec, "sweep")] = False,
    seeds: Annotated[int | None, flag_of(HeadSpec, "seeds")] = None,
    n_shot: Annotated[str | None, flag_of(HeadSpec, "n_shot")] = None,
    tries: Annotated[int | None, flag_of(HeadSpec, "tries")] = None,
    no_views: Annotated[bool, flag_of(HeadSpec, "no_views")] = False,
    augment: Annotated[str | None, flag_of(HeadSpec, "augment")] = None,
    augment_seed: Annotated[int | None, flag_of(HeadSpec, "augment_seed")] = None,
    calibrate: Annotated[bool, flag_of(HeadSpec, "calibrate")] = False,
    seed: Annotated[int | None, flag_of(HeadSpec, "seed")] = None,
    val: Annotated[float | None, flag_of(HeadSpec, "val")] = None,
    out: Annotated[Path | None, flag_of(HeadSpec, "out")] = None,
    overwrite: Annotated[bool, flag_of(HeadSpec, "overwrite")] = False,
    device: Annotated[str | None, flag_of(HeadSpec, "device")] = None,
    tap: Annotated[list[str] | None, flag_of(HeadSpec, "tap", metavar="TAP")] = None,
    pool: Annotated[str | None, flag_of(HeadSpec, "pool")] = None,
    backbone: Annotated[str | None, flag_of(HeadSpec, "backbone")] = None,
    weights: Annotated[str | None, flag_of(HeadSpec, "weights")] = None,
    size: Annotated[int | None, flag_of(HeadSpec, "size")] = None,
    resize: Annotated[str | None, flag_of(HeadSpec, "resize")] = None,
    channels: Annotated[str | None, flag_of(HeadSpec, "channels")] = None,
    decoder: Annotated[str | None, flag_of(HeadSpec, "decoder")] = None,
    precision: Annotated[str | None, flag_of(HeadSpec, "precision")] = None,
    dtype: Annotated[str | None, flag_of(HeadSpec, "dtype")] = None,
    view: Annotated[int | None, flag_of(HeadSpec, "view")] = None,
    space: Annotated[str | None, flag_of(HeadSpec, "space")] = None,
    allow_code: Annotated[list[str] | None, flag_of(HeadSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a head on cached features; no picture is opened.

    The best epoch (or C, or k) by validation loss is kept. The test split is not looked at.

    Example: featpipe train-head pets --head mlp --hidden 512 --dropout 0.3
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting
        from featpipe.stages.train import train_head as train

        options = given(context, HeadSpec)
        for params in HEAD_PARAMS.values():
            options |= given(context, params)
        spec = HeadSpec.from_options(options, as_flags=True)
        with permitted(spec.own_code):
            done = train(name, spec, cache=cache_root(cache), progress=console.progress)
        console.result(done.as_json(), formatting.of_training(done))
