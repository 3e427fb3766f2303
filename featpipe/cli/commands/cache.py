"""``featpipe cache``: look at what is kept, mend it, remove it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Cache, Quiet, Verbose, cache_root, flag_of, given
from featpipe.specs.garbage import GarbageSpec

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List, describe, verify, repair and remove what is kept.\n\nExample: featpipe cache list",
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
        from featpipe.cli import formatting_cache
        from featpipe.store.summary import summarise

        datasets, stores = summarise(cache_root(cache))
        document = {
            "datasets": [d.name for d in datasets],
            "dataset_details": [dataclasses.asdict(d) for d in datasets],
            "stores": [dataclasses.asdict(s) for s in stores],
        }
        console.result(document, formatting_cache.of_contents(datasets, stores))


@app.command()
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Describe a data set: source, splits, counts by class, feature spaces, quarantine.

    Example: featpipe cache info pets
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_cache
        from featpipe.datasets.files import load_dataset

        found = load_dataset(cache_root(cache), name).describe()
        console.result(found, formatting_cache.of_dataset(found))


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


@app.command()
def remove(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|SPACE",
            help="Data set; or a feature space's folder, or the beginning of its id.",
            show_default=False,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Remove a data set's list, or a feature space with all its rows.

    Rows of a removed data set stay until 'featpipe cache gc'. Heads stay.

    Example: featpipe cache remove pets
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_cache
        from featpipe.stages.removal import find_removal
        from featpipe.stages.removal import remove as remove_found

        root = cache_root(cache)
        found = find_removal(root, name)
        what = formatting_cache.of_removal(found)
        if not yes and not console.confirm(f"remove {what}"):
            console.warn("nothing was removed")
            raise typer.Exit(1)
        remove_found(root, found)
        console.result(found.as_json(), f"removed {what}")


@app.command()
def gc(
    context: typer.Context,
    grace: Annotated[float | None, flag_of(GarbageSpec, "grace")] = None,
    dry_run: Annotated[bool, flag_of(GarbageSpec, "dry_run")] = False,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Delete rows that no data set names, also those that 'predict' computed.

    Example: featpipe cache gc --dry-run
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting_cache
        from featpipe.stages.maintain import collect_garbage, garbage_document

        spec = GarbageSpec.from_options(given(context, GarbageSpec))
        found = collect_garbage(cache_root(cache), spec, progress=console.progress)
        document = garbage_document(found, dry_run=spec.dry_run)
        console.result(document, formatting_cache.of_garbage(document))


def _rows(rows: list[int]) -> str:
    return f" (rows {', '.join(map(str, rows))})" if rows else ""
