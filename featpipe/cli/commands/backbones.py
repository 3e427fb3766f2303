"""``featpipe backbones``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Quiet, Verbose, command_app
from featpipe.specs.extract import MAX_SIZE, ExtractSpec

app = command_app()


@app.command()
def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them, to see its taps.")
    ] = None,
    size: Annotated[
        int, typer.Option(min=1, max=MAX_SIZE, help="Input side the shapes are given for.")
    ] = ExtractSpec.size,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the backbones, or one backbone's taps with their shapes.

    Example: featpipe backbones vgg16 --size 180
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.backbones.catalog import BACKBONES, get_backbone
        from featpipe.cli import formatting

        if name is None:
            console.result({"backbones": list(BACKBONES)}, "\n".join(BACKBONES))
            return
        taps = formatting.tap_rows(get_backbone(name), size)
        document = {"backbone": name, "size": size, "taps": taps}
        console.result(document, formatting.of_taps(taps))
