"""``featpipe runs``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Quiet, Verbose, command_app, flag_of, given
from featpipe.specs.compare import RunsSpec

app = command_app()


@app.command()
def runs(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[FOLDER]",
            help="Runs in it and up to four folders below it.  [default: runs]",
            show_default=False,
        ),
    ] = Path("runs"),
    sort: Annotated[str | None, flag_of(RunsSpec, "sort")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List every run with its options and scores.

    Example: featpipe runs --sort age
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli.comparing import of_runs
        from featpipe.stages.list_runs import list_runs

        spec = RunsSpec.from_options(given(context, RunsSpec))
        done = list_runs(folder, spec)
        console.result(done.as_json(), of_runs(done))
        for path, reason in done.found.damaged:
            console.warn(f"{path} is not listed: {reason}")
