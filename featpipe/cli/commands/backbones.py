"""``featpipe backbones``."""

from __future__ import annotations

import dataclasses
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
            min=1, max=MAX_SIZE, help="Input side the taps are given for.  [default: its own]"
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every tap, not only the ends of larger parts.")
    ] = False,
    parameters: Annotated[
        bool, typer.Option("--parameters", help="List the tensors instead of the taps.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the backbones, or what each tap of one gives, costs and sees.

    Example: featpipe backbones vgg16 --size 180
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console), permitted([name]):
        if name is None:
            _list_families(console, size=size, every=every, parameters=parameters)
        elif parameters:
            _list_tensors(console, name)
        else:
            _list_taps(console, name, size, every=every)


def _list_families(console: Console, **given: object) -> None:
    from featpipe.backbones.catalog import FAMILIES
    from featpipe.base.errors import UsageError
    from featpipe.cli import formatting_backbones

    flags = [{"every": "--all"}.get(flag, f"--{flag}") for flag, value in given.items() if value]
    if flags:
        raise UsageError(f"expected the NAME of a backbone with {flags[0]}, found none")
    families = [(family.title, family.names()) for family in FAMILIES]
    document = {
        "backbones": [name for _, names in families for name in names],
        "families": [{"title": title, "names": names} for title, names in families],
    }
    console.result(document, formatting_backbones.of_families(families))


def _list_tensors(console: Console, name: str) -> None:
    from featpipe.backbones.catalog import get_backbone
    from featpipe.cli import formatting_backbones

    backbone = get_backbone(name)
    rows = [
        {"name": tensor, "shape": shape, "dtype": backbone.dtype(tensor)}
        for tensor, shape in backbone.tensor_shapes.items()
    ]
    text = formatting_backbones.of_tensors(rows) if rows else f"{name} has no tensors"
    console.result({"backbone": name, "parameters": rows}, text)


def _list_taps(console: Console, name: str, size: int | None, *, every: bool) -> None:
    from featpipe.backbones.catalog import get_backbone
    from featpipe.backbones.tap_table import tap_table
    from featpipe.cli import formatting_backbones

    backbone = get_backbone(name)
    table = tap_table(backbone, size)
    text = formatting_backbones.of_taps(table, usual_size=backbone.default_size, every=every)
    console.result(dataclasses.asdict(table), text)
