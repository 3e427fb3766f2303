"""``featpipe evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import (
    AsJson,
    Cache,
    HeadFolder,
    Quiet,
    Verbose,
    cache_root,
    command_app,
    flag_of,
    given,
)
from featpipe.specs.evaluate import EvaluateSpec

app = command_app()


@app.command()
def evaluate(
    context: typer.Context,
    head: HeadFolder,
    on: Annotated[str | None, flag_of(EvaluateSpec, "on")] = None,
    split: Annotated[str | None, flag_of(EvaluateSpec, "split")] = None,
    tta: Annotated[bool, flag_of(EvaluateSpec, "tta")] = False,
    augment: Annotated[str | None, flag_of(EvaluateSpec, "augment")] = None,
    augment_seed: Annotated[int | None, flag_of(EvaluateSpec, "augment_seed")] = None,
    scales: Annotated[str | None, flag_of(EvaluateSpec, "scales")] = None,
    frame: Annotated[str | None, flag_of(EvaluateSpec, "frame")] = None,
    maps: Annotated[bool, flag_of(EvaluateSpec, "maps")] = False,
    weights: Annotated[str | None, flag_of(EvaluateSpec, "weights")] = None,
    device: Annotated[str | None, flag_of(EvaluateSpec, "device")] = None,
    batch_size: Annotated[str | None, flag_of(EvaluateSpec, "batch_size")] = None,
    workers: Annotated[str | None, flag_of(EvaluateSpec, "workers")] = None,
    max_pixels: Annotated[int | None, flag_of(EvaluateSpec, "max_pixels")] = None,
    allow_code: Annotated[list[str] | None, flag_of(EvaluateSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a head; write metrics.json and report.html beside it.

    The split is test, or val where there is no test. predictions.csv, beside them too, has the
    probabilities of every picture. With --scales, pictures of each size are computed where they
    are not cached, and their logits are averaged.

    Example: featpipe evaluate runs/pets-mlp-1 --scales 180,224,288
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting
        from featpipe.stages.evaluate import evaluate as score

        spec = EvaluateSpec.from_options(given(context, EvaluateSpec))
        with permitted(spec.allow_code):
            done = score(head, spec, cache=cache_root(cache), progress=console.progress)
        console.result(done.as_json(), formatting.of_evaluation(done))
