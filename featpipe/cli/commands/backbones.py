"""``featpipe backbones``."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Quiet, Verbose, command_app
from featpipe.specs.extract import MAX_SIZE

app = command_app()


@app.command()
def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them, to see its taps.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_SIZE, help="Input side the shapes are given for.  [default: its own]"
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the backbones, or one backbone's taps with their shapes.

    Example: featpipe backbones vgg16 --size 180
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console), permitted([name]):
        from featpipe.backbones.catalog import FAMILIES, get_backbone
        from featpipe.cli import formatting

        if name is None:
            names = [name for family in FAMILIES for name in family.names()]
            console.result({"backbones": names}, "\n".join(names))
            return
        backbone = get_backbone(name)
        size = size or backbone.default_size
        taps = formatting.tap_rows(backbone, size)
        document = {"backbone": name, "size": size, "taps": taps}
        console.result(document, formatting.of_taps(taps))
