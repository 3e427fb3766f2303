"""The Typer application: all commands under their names."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.cli.commands import bench, cache, weights
from featpipe.cli.commands.backbones import backbones
from featpipe.cli.commands.doctor import doctor
from featpipe.cli.commands.evaluate import evaluate
from featpipe.cli.commands.extract import extract
from featpipe.cli.commands.predict import predict
from featpipe.cli.commands.run import run as run_recipe
from featpipe.cli.commands.train_head import train_head
from featpipe.cli.process import configure_streams
from featpipe.cli.signals import ignore_signals

app = typer.Typer(
    name="featpipe",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Run a frozen, ImageNet-pretrained VGG16 over your pictures once, keep the features, "
        "then train, compare and use light heads in seconds.\n\n"
        "The way: extract, train-head, evaluate, predict; or all of it from a recipe: run.\n\n"
        "Example: featpipe run quickstart\n\n"
        "Exit codes: 0 done, 1 error, 2 usage, 3 done but some pictures quarantined, "
        "10 nothing of that name, 12 feature space mismatch, 13 damage found, 74 I/O error or "
        "disk full, 130/143 interrupted."
    ),
)


def run() -> None:
    """Run the command line and exit."""
    configure_streams()
    try:
        app(prog_name="featpipe")
    finally:
        ignore_signals()


def _version(wanted: bool) -> None:
    if wanted:
        from featpipe._version import __version__

        typer.echo(f"featpipe {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


app.command("extract")(extract)
app.command("train-head")(train_head)
app.command("evaluate")(evaluate)
app.command("predict")(predict)
app.command("run")(run_recipe)
app.command("backbones")(backbones)
app.command("doctor")(doctor)
app.add_typer(bench.app, name="bench")
app.add_typer(cache.app, name="cache")
app.add_typer(weights.app, name="weights")
