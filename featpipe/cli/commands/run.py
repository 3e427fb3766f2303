"""``featpipe run``: recipes."""

from __future__ import annotations

import json
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
from featpipe.specs.code import AllowCode

app = command_app()


@app.command()
def run(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A TOML file, or the name of a recipe that comes with featpipe.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Instead of the recipe's data.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run folders.  [default: runs]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace heads that --out holds.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Instead of the recipe's.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Validate the recipe, run nothing.")
    ] = False,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the recipes that come with featpipe.")
    ] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")
    ] = False,
    allow_code: Annotated[list[str] | None, flag_of(AllowCode, "allow_code")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Extract, train and evaluate as a recipe says.

    Example: featpipe run quickstart
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli.tables import aligned
        from featpipe.specs.schema import recipe_schema
        from featpipe.specs.shipped_recipes import shipped_recipes, summary

        if schema:
            print(json.dumps(recipe_schema(), indent=2))
        elif list_recipes:
            recipes = [
                {"recipe": name, "path": str(path), "summary": summary(path)}
                for name, path in shipped_recipes().items()
            ]
            lines = aligned([[row["recipe"], row["summary"]] for row in recipes], left=2)
            console.result({"recipes": recipes}, "\n".join(lines) or "none")
        elif recipe is None:
            raise typer.BadParameter("expected RECIPE, --list or --schema, found none of them")
        elif check:
            _check(console, recipe, data)
        else:
            code = AllowCode.from_options(given(context, AllowCode))
            with permitted(code.allow_code):
                _run(console, recipe, data, out, device, overwrite, cache)


def _check(console: Console, recipe: str, data: str | None) -> None:
    from featpipe.specs.recipe import load_recipe
    from featpipe.specs.shipped_recipes import find_recipe
    from featpipe.stages.recipe import check_data

    loaded = load_recipe(find_recipe(recipe))
    if data is None:
        check_data(loaded)
    console.result({"recipe": recipe, "valid": True}, f"{recipe}: valid")


def _run(
    console: Console,
    recipe: str,
    data: str | None,
    out: Path | None,
    device: str | None,
    overwrite: bool,
    cache: Path | None,
) -> None:
    from featpipe.cli import formatting
    from featpipe.specs.recipe import load_recipe
    from featpipe.specs.shipped_recipes import find_recipe
    from featpipe.stages.recipe import run_recipe

    done = run_recipe(
        load_recipe(find_recipe(recipe)),
        cache=cache_root(cache),
        data=data,
        out=out,
        device=device,
        overwrite=overwrite,
        progress=console.progress,
    )
    console.result(done.as_json(), formatting.of_recipe(done))
    if any(extracted.quarantined for extracted in done.extracts):
        raise typer.Exit(EXIT_QUARANTINED)
