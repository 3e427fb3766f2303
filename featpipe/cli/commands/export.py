"""``featpipe export``."""

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
from featpipe.specs.export import ExportSpec

app = command_app()


@app.command(options_metavar="--format FORMAT --out FILE [OPTIONS]")
def export(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="HEAD|NAME", help="Run folder of a head, or data set.", show_default=False
        ),
    ],
    format: Annotated[str | None, flag_of(ExportSpec, "format", is_required=True)] = None,
    out: Annotated[str | None, flag_of(ExportSpec, "out", is_required=True)] = None,
    overwrite: Annotated[bool, flag_of(ExportSpec, "overwrite")] = False,
    dense: Annotated[bool, flag_of(ExportSpec, "dense")] = False,
    weights: Annotated[str | None, flag_of(ExportSpec, "weights")] = None,
    allow_code: Annotated[list[str] | None, flag_of(ExportSpec, "allow_code")] = None,
    space: Annotated[str | None, flag_of(ExportSpec, "space")] = None,
    tap: Annotated[str | None, flag_of(ExportSpec, "tap")] = None,
    pool: Annotated[str | None, flag_of(ExportSpec, "pool")] = None,
    backbone: Annotated[str | None, flag_of(ExportSpec, "backbone")] = None,
    size: Annotated[int | None, flag_of(ExportSpec, "size")] = None,
    resize: Annotated[str | None, flag_of(ExportSpec, "resize")] = None,
    channels: Annotated[str | None, flag_of(ExportSpec, "channels")] = None,
    decoder: Annotated[str | None, flag_of(ExportSpec, "decoder")] = None,
    precision: Annotated[str | None, flag_of(ExportSpec, "precision")] = None,
    dtype: Annotated[str | None, flag_of(ExportSpec, "dtype")] = None,
    view: Annotated[int | None, flag_of(ExportSpec, "view")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a head as ONNX or for torch, or features as npz or Parquet.

    A head is written with its backbone: pixels in, probabilities out. The file is first compared
    with 'featpipe predict'; a model card is written beside it: README.md in a folder of its own,
    else FILE.README.md.

    Example: featpipe export runs/pets-mlp-1 --format onnx --out pets/model.onnx
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_export
        from featpipe.stages.export import export as write

        spec = ExportSpec.from_options(given(context, ExportSpec))
        with permitted(spec.allow_code):
            done = write(what, spec, cache=cache_root(cache))
        console.result(done, formatting_export.of_export(done))
