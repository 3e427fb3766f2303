"""``featpipe predict``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import EXIT_QUARANTINED, Console, reporting_errors
from featpipe.cli.options import (
    Cache,
    HeadFolder,
    Quiet,
    Verbose,
    cache_root,
    command_app,
    flag_of,
    given,
)
from featpipe.specs.predict import PredictSpec

app = command_app()


@app.command()
def predict(
    context: typer.Context,
    head: HeadFolder,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Pictures, or folders of them.", show_default=False),
    ],
    weights: Annotated[str | None, flag_of(PredictSpec, "weights")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also the probability of every class.")
    ] = False,
    maps: Annotated[Path | None, flag_of(PredictSpec, "maps")] = None,
    device: Annotated[str | None, flag_of(PredictSpec, "device")] = None,
    batch_size: Annotated[str | None, flag_of(PredictSpec, "batch_size")] = None,
    workers: Annotated[str | None, flag_of(PredictSpec, "workers")] = None,
    max_pixels: Annotated[int | None, flag_of(PredictSpec, "max_pixels")] = None,
    allow_code: Annotated[list[str] | None, flag_of(PredictSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify pictures, preprocessed exactly as in training.

    An unreadable file is a line with an error, not a stop; the exit code is then 3.

    Example: featpipe predict runs/pets-mlp-1 holiday/ cat.jpg --maps maps > labels.csv
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting
        from featpipe.stages.predict import predict as classify

        spec = PredictSpec.from_options(given(context, PredictSpec))
        write = formatting.write_json_lines if as_json else formatting.write_csv
        with permitted(spec.allow_code):
            answers = classify(
                head, paths, spec, cache=cache_root(cache), progress=console.progress
            )
            unreadable = write(
                answers, sys.stdout, all_classes=probabilities, with_maps=spec.maps is not None
            )
        if unreadable:
            lines = "its line says" if unreadable == 1 else "their lines say"
            console.warn(f"{formatting.counted(unreadable, 'file')} could not be read; {lines} why")
            raise typer.Exit(EXIT_QUARANTINED)
