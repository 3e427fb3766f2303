"""``featpipe audit``."""

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
from featpipe.specs.audit import AuditSpec

app = command_app()


@app.command()
def audit(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    out: Annotated[Path | None, flag_of(AuditSpec, "out")] = None,
    overwrite: Annotated[bool, flag_of(AuditSpec, "overwrite")] = False,
    distance: Annotated[float | None, flag_of(AuditSpec, "distance")] = None,
    folds: Annotated[int | None, flag_of(AuditSpec, "folds")] = None,
    seed: Annotated[int | None, flag_of(AuditSpec, "seed")] = None,
    max_pairs: Annotated[int | None, flag_of(AuditSpec, "max_pairs")] = None,
    max_outliers: Annotated[int | None, flag_of(AuditSpec, "max_outliers")] = None,
    min_class: Annotated[int | None, flag_of(AuditSpec, "min_class")] = None,
    space: Annotated[str | None, flag_of(AuditSpec, "space")] = None,
    tap: Annotated[str | None, flag_of(AuditSpec, "tap")] = None,
    pool: Annotated[str | None, flag_of(AuditSpec, "pool")] = None,
    backbone: Annotated[str | None, flag_of(AuditSpec, "backbone")] = None,
    weights: Annotated[str | None, flag_of(AuditSpec, "weights")] = None,
    size: Annotated[int | None, flag_of(AuditSpec, "size")] = None,
    resize: Annotated[str | None, flag_of(AuditSpec, "resize")] = None,
    channels: Annotated[str | None, flag_of(AuditSpec, "channels")] = None,
    decoder: Annotated[str | None, flag_of(AuditSpec, "decoder")] = None,
    precision: Annotated[str | None, flag_of(AuditSpec, "precision")] = None,
    dtype: Annotated[str | None, flag_of(AuditSpec, "dtype")] = None,
    view: Annotated[int | None, flag_of(AuditSpec, "view")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find duplicates, probable label errors and outliers of a data set.

    Writes a page with the pictures, and fixes.csv to edit and to give to 'featpipe relabel'.

    Example: featpipe audit pets
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_audit
        from featpipe.stages.audit import audit as search

        spec = AuditSpec.from_options(given(context, AuditSpec))
        done = search(name, spec, cache=cache_root(cache), progress=console.progress)
        console.result(done, formatting_audit.of_audit(done))
