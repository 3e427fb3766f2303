"""The command line: all commands under their names, each imported only when it is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from featpipe.cli.process import configure_streams
from featpipe.cli.signals import ignore_signals

COMMANDS = {
    "extract": "Compute features of DATA once; freeze its list as a data set.",
    "train-head": "Train a head on cached features; no picture is opened.",
    "evaluate": "Score a head; write metrics.json and report.html beside it.",
    "runs": "List every run with its options and scores.",
    "compare": "Score heads on the very same pictures and test which differ.",
    "predict": "Classify pictures, preprocessed exactly as in training.",
    "export": "Write a head as ONNX or for torch, or features as npz or Parquet.",
    "advise": "Say what to try next, from linear heads on every cached tap.",
    "audit": "Find duplicates, probable label errors and outliers of a data set.",
    "relabel": "Give a data set other labels under another name; nothing is computed.",
    "run": "Extract, train and evaluate as a recipe says.",
    "backbones": "List the backbones, or what each tap of one gives, costs and sees.",
    "doctor": "Say what this machine offers and what is ready.",
    "bench": "Measure featpipe beside other tools, on this machine.",
    "cache": "List, describe, verify, repair and remove what is kept.",
    "weights": "List and fetch the backbones' weights.",
}
"""What ``featpipe --help`` says of each command."""

_MODULES = {name: f"featpipe.cli.commands.{name.replace('-', '_')}" for name in COMMANDS}
"""Where each command's Typer application ``app`` is."""


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command is run: its options need its specs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULES:
            return None
        module = importlib.import_module(_MODULES[cmd_name])
        command = typer.main.get_command(module.app)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="featpipe",
    cls=_LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Run a frozen, pretrained network over your pictures once, keep the features, "
        "then train, compare and use light heads in seconds.\n\n"
        "In this order: extract, train-head, evaluate, predict; or all of it by a recipe: run.\n\n"
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
