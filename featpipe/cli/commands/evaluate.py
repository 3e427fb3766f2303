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
    allow_code: Annotated[list[str] | None, flag_of(EvaluateSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a head; write metrics.json and report.html beside it.

    The split is test, or val where there is no test. predictions.csv, beside them too, has the
    probabilities of every picture.

    Example: featpipe evaluate runs/pets-mlp-1
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting
        from featpipe.stages.evaluate import evaluate as score

        spec = EvaluateSpec.from_options(given(context, EvaluateSpec))
        with permitted(spec.allow_code):
            done = score(head, spec, cache=cache_root(cache))
        console.result(done.as_json(), formatting.of_evaluation(done))
