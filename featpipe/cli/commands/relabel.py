"""``featpipe relabel``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
)
from featpipe.specs.audit import RelabelSpec

app = command_app()


@app.command()
def relabel(
    context: typer.Context,
    data_set: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    fixes: Annotated[
        Path,
        typer.Argument(
            metavar="FIXES",
            help="CSV of path,label, as 'audit' writes it: 'action' may say relabel or remove.",
            show_default=False,
        ),
    ],
    name: Annotated[str | None, flag_of(RelabelSpec, "name")] = None,
    out: Annotated[Path | None, flag_of(RelabelSpec, "out")] = None,
    overwrite: Annotated[bool, flag_of(RelabelSpec, "overwrite")] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Give a data set other labels under another name; nothing is computed.

    Also writes the new list as a CSV that 'featpipe extract' takes as DATA.

    Example: featpipe relabel pets audits/pets-1/fixes.csv
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_audit
        from featpipe.stages.relabel import relabel as give_labels

        spec = RelabelSpec.from_options(given(context, RelabelSpec))
        done = give_labels(data_set, fixes, spec, cache=cache_root(cache))
        console.result(done.as_json(), formatting_audit.of_relabelling(done))
