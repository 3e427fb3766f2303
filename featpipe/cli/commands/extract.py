"""``featpipe extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import EXIT_QUARANTINED, Console, reporting_errors
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
from featpipe.specs.extract import ExtractSpec

app = command_app()


@app.command()
def extract(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Image folder, folder of idx files, .csv/.tsv/.jsonl list, or sklearn:digits.",
            show_default=False,
        ),
    ],
    name: Annotated[str, flag_of(ExtractSpec, "name")],
    backbone: Annotated[str | None, flag_of(ExtractSpec, "backbone")] = None,
    weights: Annotated[str | None, flag_of(ExtractSpec, "weights")] = None,
    tap: Annotated[list[str] | None, flag_of(ExtractSpec, "tap", metavar="TAP")] = None,
    pool: Annotated[list[str] | None, flag_of(ExtractSpec, "pool", metavar="POOL")] = None,
    size: Annotated[int | None, flag_of(ExtractSpec, "size")] = None,
    resize: Annotated[str | None, flag_of(ExtractSpec, "resize")] = None,
    channels: Annotated[str | None, flag_of(ExtractSpec, "channels")] = None,
    decoder: Annotated[str | None, flag_of(ExtractSpec, "decoder")] = None,
    precision: Annotated[str | None, flag_of(ExtractSpec, "precision")] = None,
    dtype: Annotated[str | None, flag_of(ExtractSpec, "dtype")] = None,
    device: Annotated[str | None, flag_of(ExtractSpec, "device")] = None,
    batch_size: Annotated[str | None, flag_of(ExtractSpec, "batch_size")] = None,
    workers: Annotated[str | None, flag_of(ExtractSpec, "workers")] = None,
    max_pixels: Annotated[int | None, flag_of(ExtractSpec, "max_pixels")] = None,
    views: Annotated[int | None, flag_of(ExtractSpec, "views")] = None,
    augment: Annotated[str | None, flag_of(ExtractSpec, "augment")] = None,
    augment_seed: Annotated[int | None, flag_of(ExtractSpec, "augment_seed")] = None,
    views_of: Annotated[list[str] | None, flag_of(ExtractSpec, "views_of", metavar="SPLIT")] = None,
    split: Annotated[str | None, flag_of(ExtractSpec, "split")] = None,
    root: Annotated[Path | None, flag_of(ExtractSpec, "root")] = None,
    follow_links: Annotated[bool, flag_of(ExtractSpec, "follow_links")] = False,
    max_bad: Annotated[str | None, flag_of(ExtractSpec, "max_bad")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Same as --max-bad 0%.")] = False,
    retry_quarantined: Annotated[bool, flag_of(ExtractSpec, "retry_quarantined")] = False,
    rehash: Annotated[bool, flag_of(ExtractSpec, "rehash")] = False,
    shard: Annotated[str | None, flag_of(ExtractSpec, "shard")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read; write nothing.")
    ] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compute features of DATA once; freeze its list as a data set.

    Run it again and nothing is computed; add pictures and only those are. Layouts: class
    folders, train/val/test folders with class folders, or pictures alone.

    Example: featpipe extract photos/ --name pets --tap block5_pool --tap block4_pool
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console), permitted([backbone]):
        from featpipe.cli import formatting
        from featpipe.stages.dry_run import plan_extraction
        from featpipe.stages.extract import extract as extract_features

        options = given(context, ExtractSpec)
        if strict:
            options["max_bad"] = "0%"
        spec = ExtractSpec.from_options(options)
        if dry_run:
            plan = plan_extraction(data, spec, cache=cache_root(cache))
            console.result(plan.as_json(), formatting.of_plan(plan))
            return
        done = extract_features(data, spec, cache=cache_root(cache), progress=console.progress)
        console.result(done.as_json(), formatting.of_extraction(done))
        if done.quarantined:
            raise typer.Exit(EXIT_QUARANTINED)
