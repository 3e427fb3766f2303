"""``featpipe bench``: measure this machine, and featpipe beside what else people use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Quiet, Verbose, flag_of, hyper_parameter
from featpipe.specs.extract import EngineOptions, FeatureOptions

if TYPE_CHECKING:
    from featpipe.bench.measure import Report

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    help=(
        "Measure featpipe beside other tools, on this machine: in turns, as ratios.\n\n"
        "Peers are measured where they are installed: pip install '.[bench]'.\n\n"
        "Example: featpipe bench extract --quick"
    ),
)

Device = Annotated[str, flag_of(EngineOptions, "device")]
Quick = Annotated[bool, typer.Option("--quick", help="Little work, one round: a first look.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; medians of them are reported.")]
Folder = Annotated[
    Path | None,
    typer.Option(help="Where to write what is measured.  [default: a temporary folder]"),
]


def _report(console: Console, folder: Path | None, measure: Callable[[Path], Report]) -> None:
    import tempfile

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="featpipe-bench-", dir=folder) as temporary:
        report = measure(Path(temporary))
    console.result(report.as_json(), report.as_text())


@app.command("extract")
def extract(
    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures.  [default: made-up photographs]")
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Pictures per round.  [default: 480; 20000 on a GPU]")
    ] = None,
    backbone: Annotated[str, flag_of(FeatureOptions, "backbone")] = FeatureOptions.backbone,
    tap: Annotated[
        str | None,
        typer.Option(help="Where features are taken.  [default: block5_pool of VGG]"),
    ] = None,
    rounds: Rounds = 3,
    quick: Quick = False,
    device: Device = EngineOptions.device,
    folder: Folder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Pictures per second: end to end, each stage alone, and beside peers.

    Example: featpipe bench extract --backbone resnet50 --tap layer4 --count 500
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.bench.extract import bench_extract

        _report(
            console,
            folder,
            lambda where: bench_extract(
                where,
                count=32 if quick else count,
                rounds=1 if quick else rounds,
                device=device,
                data=data,
                backbone=backbone,
                tap=tap,
                progress=console.progress,
            ),
        )


@app.command("read")
def read(
    rows: Annotated[int, typer.Option(min=1, help="Rows of 50 kB to read.")] = 20_000,
    many: Annotated[int, typer.Option(min=1, help="Rows of a store to open.")] = 1_000_000,
    rounds: Rounds = 5,
    quick: Quick = False,
    folder: Folder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Gigabytes per second from the store, and how long a large one takes to open.

    Example: featpipe bench read --rows 50000
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.bench.read import bench_read

        _report(
            console,
            folder,
            lambda where: bench_read(
                where,
                rows=2_000 if quick else rows,
                many=50_000 if quick else many,
                rounds=1 if quick else rounds,
                progress=console.progress,
            ),
        )


@app.command("heads")
def heads(
    rows: Annotated[int, typer.Option(min=50, help="Rows to train on.")] = 1500,
    width: Annotated[int, typer.Option(min=1, help="Numbers of a row.")] = 25_088,
    classes: Annotated[int, typer.Option(min=2, help="Classes.")] = 2,
    rounds: Rounds = 3,
    quick: Quick = False,
    device: Device = EngineOptions.device,
    folder: Folder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Heads per second: many at once, exact logistic regression, train-head as a command.

    Example: featpipe bench heads --width 512 --classes 10
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.bench.heads import bench_heads

        _report(
            console,
            folder,
            lambda where: bench_heads(
                where,
                rows=300 if quick else rows,
                width=2048 if quick else width,
                classes=classes,
                rounds=1 if quick else rounds,
                device=device,
                progress=console.progress,
            ),
        )


@app.command("suffix")
def suffix(
    backbone: Annotated[str, flag_of(FeatureOptions, "backbone")] = FeatureOptions.backbone,
    tap: Annotated[str, typer.Option(help="What is trained lies behind it.")] = "block4_pool",
    size: Annotated[int, typer.Option(min=1, help="Side of the pictures, pixels.")] = 180,
    top: Annotated[str, hyper_parameter("top")] = "linear",
    compute: Annotated[str, hyper_parameter("compute")] = "auto",
    rows: Annotated[int, typer.Option(min=1, help="Rows of an epoch.")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 32,
    rounds: Rounds = 3,
    quick: Quick = False,
    device: Device = EngineOptions.device,
    folder: Folder = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """An epoch of a suffix on maps in memory, beside a bare PyTorch loop.

    Example: featpipe bench suffix --tap block5_pool --top own
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.bench.suffixes import bench_suffix

        _report(
            console,
            folder,
            lambda where: bench_suffix(
                where,
                backbone=backbone,
                tap=tap,
                size=size,
                top=top,
                compute=compute,
                rows=32 if quick else rows,
                batch_size=batch_size,
                rounds=1 if quick else rounds,
                device=device,
                progress=console.progress,
            ),
        )


@app.command("networks")
def networks(
    kind: Annotated[str, typer.Option(help="lenet, lenet3x3, mnist-cnn, simplecnn.")] = "lenet",
    rows: Annotated[int, typer.Option(min=50, help="Pictures of an epoch.")] = 60_000,
    side: Annotated[int, typer.Option(min=8, help="Height and width, pixels.")] = 28,
    channels: Annotated[int, typer.Option(min=1, help="Channels.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures per step.")] = 128,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd or rmsprop.")] = "adamw",
    rounds: Rounds = 3,
    quick: Quick = False,
    device: Device = EngineOptions.device,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """An epoch of a small network on pixels, beside a bare PyTorch loop.

    Example: featpipe bench networks --batch-size 1024
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.bench.networks import bench_networks

        _report(
            console,
            None,
            lambda _: bench_networks(
                kind=kind,
                rows=2_000 if quick else rows,
                side=side,
                channels=channels,
                batch_size=batch_size,
                optimizer=optimizer,
                rounds=1 if quick else rounds,
                device=device,
                progress=console.progress,
            ),
        )
