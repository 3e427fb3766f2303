"""``featpipe cache``: look at what is kept."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.formatting import counted
from featpipe.cli.options import AsJson, Cache, Quiet, Verbose, cache_root

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, describe, verify and repair what is kept.\n\nExample: featpipe cache list",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_contents(
    cache: Cache = None, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """List data sets and feature stores.

    Example: featpipe cache list
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.store.verification import summarise

        names, stores = summarise(cache_root(cache))
        lines = [f"data set  {name}" for name in names]
        lines += [
            f"store     {s.name}: {counted(s.rows, 'row')}, {counted(s.segments, 'segment')}, "
            f"{s.bytes / 2**20:.1f} MiB"
            for s in stores
        ]
        document = {"datasets": names, "stores": [dataclasses.asdict(s) for s in stores]}
        console.result(document, "\n".join(lines) or "empty")


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Describe a data set: source, classes, splits, feature spaces, quarantine.

    Example: featpipe cache info pets
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting
        from featpipe.datasets.files import load_dataset

        found = load_dataset(cache_root(cache), name).describe()
        console.result(found, formatting.of_pairs(found))


@app.command()
def verify(
    quick: Annotated[
        bool, typer.Option("--quick", help="Names, layouts and sizes of segments only; no digests.")
    ] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check every file of the cache; exit 13 where one is damaged.

    Example: featpipe cache verify --quick
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.base.errors import DamageError
        from featpipe.stages.maintain import verify as verify_cache

        files, damages = verify_cache(cache_root(cache), quick=quick, progress=console.progress)
        found = [{"path": str(d.path), "problem": d.problem, "rows": d.rows} for d in damages]
        lines = [f"damaged: {d.path}: {d.problem}" + _rows(d.rows) for d in damages]
        lines.append(f"{files} files checked, {len(damages)} damaged")
        console.result({"files": files, "damages": found}, "\n".join(lines))
        if damages:
            raise typer.Exit(DamageError.exit_code)


@app.command()
def repair(
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Set damaged files aside and keep their whole rows; nothing is deleted.

    What is lost is computed by the next extract.

    Example: featpipe cache repair
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.stages.maintain import repair as repair_cache

        done = repair_cache(cache_root(cache), progress=console.progress)
        found = [
            {
                "path": str(r.path),
                "aside": str(r.aside),
                "problem": r.problem,
                "rows_kept": r.rows_kept,
            }
            for r in done
        ]
        lines = [f"{r.path}: {r.rows_kept} rows kept, set aside as {r.aside}" for r in done]
        console.result({"repaired": found}, "\n".join(lines) or "nothing is damaged")


def _rows(rows: list[int]) -> str:
    return f" (rows {', '.join(map(str, rows))})" if rows else ""
