"""``featpipe advise``."""

from __future__ import annotations

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
from featpipe.specs.advise import AdviseSpec

app = command_app()


@app.command()
def advise(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    val: Annotated[float | None, flag_of(AdviseSpec, "val")] = None,
    seed: Annotated[int | None, flag_of(AdviseSpec, "seed")] = None,
    max_pictures: Annotated[int | None, flag_of(AdviseSpec, "max_pictures")] = None,
    allow_code: Annotated[list[str] | None, flag_of(AdviseSpec, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what to try next, from linear heads on every cached tap.

    Facts first: pictures per class, validation accuracy by tap, the gap to training, the learning
    curve. Then advice, as commands to copy. Opens no picture and writes nothing.

    Example: featpipe advise pets
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_advice
        from featpipe.stages.advise import advise as measure

        spec = AdviseSpec.from_options(given(context, AdviseSpec))
        with permitted(spec.allow_code):
            done = measure(name, spec, cache=cache_root(cache), progress=console.progress)
        console.result(done, formatting_advice.of_advice(done))
