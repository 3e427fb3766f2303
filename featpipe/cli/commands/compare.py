"""``featpipe compare``."""

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
)
from featpipe.specs.compare import CompareSpec

app = command_app()


@app.command()
def compare(
    context: typer.Context,
    heads: Annotated[
        list[Path],
        typer.Argument(
            metavar="HEAD...", help="Run folders of two heads or more.", show_default=False
        ),
    ],
    on: Annotated[str | None, flag_of(CompareSpec, "on")] = None,
    split: Annotated[str | None, flag_of(CompareSpec, "split")] = None,
    out: Annotated[Path | None, flag_of(CompareSpec, "out")] = None,
    allow_code: Annotated[list[str] | None, flag_of(CompareSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score heads on the very same pictures and test which differ.

    Example: featpipe compare runs/pets-*
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli.comparing import of_comparison
        from featpipe.stages.compare import compare as compare_heads

        spec = CompareSpec.from_options(given(context, CompareSpec))
        with permitted(spec.allow_code):
            done = compare_heads(heads, spec, cache=cache_root(cache))
        console.result(done.as_json(), of_comparison(done.document))
