"""The commands. Each calls one library function; imports wait until a command runs."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from featpipe.cli.commands import bench as bench_commands
from featpipe.cli.commands import cache as cache_commands
from featpipe.cli.commands import weights as weights_commands
from featpipe.cli.console import EXIT_QUARANTINED, Speaker, speaking
from featpipe.cli.options import (
    AsJson,
    Cache,
    Device,
    HeadFolder,
    Pool,
    Quiet,
    Tap,
    Verbose,
    cache_root,
)

app = typer.Typer(
    name="featpipe",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Run a frozen, ImageNet-pretrained VGG16 over your pictures once, keep the features, "
        "then train, compare and use light heads in seconds.\n\n"
        "The road: extract, train-head, evaluate, predict; or all of it from a recipe: run.\n\n"
        "Example: featpipe run pipelines/quickstart.toml\n\n"
        "Exit codes: 0 done, 1 error, 2 usage, 3 done but some pictures quarantined, "
        "10 nothing of that name, 12 feature space mismatch, 13 damage found, 74 I/O error or "
        "disk full, 130/143 interrupted."
    ),
)


def run() -> None:
    """Run the command line and exit."""
    # Names that are no UTF-8 must come out as the bytes they are, whatever the locale.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    try:
        app(prog_name="featpipe")
    finally:
        # All is said and done: what comes, or waits, while Python shuts down changes nothing.
        signal.setitimer(signal.ITIMER_REAL, 0)
        for late in (signal.SIGINT, signal.SIGTERM):
            signal.signal(late, signal.SIG_IGN)


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


@app.command()
def extract(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Image folder, .csv/.tsv/.jsonl list, or sklearn:digits.",
            show_default=False,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the data set.", show_default=False)],
    backbone: Annotated[
        str | None, typer.Option(help="See 'featpipe backbones'.  [default: vgg16]")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="IMAGENET1K_V1, IMAGENET1K_FEATURES, random:SEED, or a .safetensors, .pth or "
            "Keras .h5 file.  [default: IMAGENET1K_V1]"
        ),
    ] = None,
    tap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TAP", help="Where features are taken; may be repeated.  [default: block5_pool]"
        ),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="POOL", help="none, avg or max; may be repeated.  [default: none]"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input side, pixels.  [default: 224]")] = None,
    resize: Annotated[
        str | None, typer.Option(help="crop (central square) or squash.  [default: crop]")
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="pillow, or pillow-draft: large JPEGs are scaled while decoded.  [default: pillow]"
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or fp16.  [default: auto]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Stored as float16 or float32.  [default: float16]")
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[
        str, typer.Option(help="Pictures per pass; halved when memory runs out.")
    ] = "auto",
    workers: Annotated[str, typer.Option(help="Decoding processes.")] = "auto",
    max_pixels: Annotated[
        int | None, typer.Option(help="Larger pictures are quarantined.  [default: 50000000]")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Shares of train,val,test where DATA has none.  [default: 0.7,0.15,0.15]"
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="For a list: the folder its paths may not leave.")
    ] = None,
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="For a list: links may lead out of that folder."),
    ] = False,
    max_bad: Annotated[
        str, typer.Option(help="Most unreadable pictures, in percent, before it is a failure.")
    ] = "100%",
    strict: Annotated[bool, typer.Option("--strict", help="Same as --max-bad 0%.")] = False,
    retry_quarantined: Annotated[
        bool, typer.Option("--retry-quarantined", help="Try unreadable pictures again.")
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option("--rehash", help="Read also files whose size and times have not changed."),
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Only part i of n, as i/n; the last job merges.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be read; touch nothing.")
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
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.datasets.shards import parse_shard
        from featpipe.datasets.splits import DEFAULT_FRACTIONS
        from featpipe.engine.options import parse_options
        from featpipe.stages.extract import extract as extract_features
        from featpipe.stages.extract import plan_extraction

        request, options = parse_options(
            {
                "backbone": backbone,
                "weights": weights,
                "tap": tap or None,
                "pool": pool or None,
                "size": size,
                "resize": resize,
                "decoder": decoder,
                "precision": precision,
                "dtype": dtype,
                "device": device,
                "batch_size": batch_size,
                "workers": workers,
                "max_pixels": max_pixels,
            }
        )
        common: dict[str, Any] = {
            "name": name,
            "cache": cache_root(cache),
            "root": root,
            "follow_links": follow_links,
        }
        if dry_run:
            plan = plan_extraction(data, request=request, options=options, **common)
            speaker.result(plan.as_json(), text.of_plan(plan))
            return
        done = extract_features(
            data,
            request=request,
            options=options,
            fractions=DEFAULT_FRACTIONS if split is None else text.parse_shares(split),
            max_bad=0.0 if strict else text.parse_percent(max_bad),
            retry_quarantined=retry_quarantined,
            rehash=rehash,
            shard=None if shard is None else parse_shard(shard),
            progress=speaker.progress,
            **common,
        )
        speaker.result(done.as_json(), text.of_extraction(done))
        if done.quarantined:
            raise typer.Exit(EXIT_QUARANTINED)


@app.command("train-head")
def train_head(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Data set.", show_default=False)],
    head: Annotated[str, typer.Option(help="linear, mlp or logistic.")] = "linear",
    tap: Tap = None,
    pool: Pool = None,
    learning_rate: Annotated[float | None, typer.Option(help="linear, mlp: of AdamW.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="linear, mlp: of AdamW.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="linear, mlp: rows per step.")] = None,
    epochs: Annotated[int | None, typer.Option(help="linear, mlp: at most.")] = None,
    patience: Annotated[
        int | None, typer.Option(help="linear, mlp: epochs without progress before stopping.")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="mlp: hidden width.  [default: 256]")] = None,
    dropout: Annotated[
        float | None, typer.Option(help="mlp: 0 to below 1.  [default: 0.5]")
    ] = None,
    c: Annotated[
        float | None,
        typer.Option("--C", help="logistic: inverse regularisation.  [default: by validation]"),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="logistic: choose C by that many folds of train instead of the validation part."
        ),
    ] = None,
    max_iter: Annotated[int | None, typer.Option(help="logistic: at most.")] = None,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Train a whole grid at once and keep the best by validation loss; options given "
            "here are not varied. linear, mlp: learning rate, weight decay, and mlp's dropout and "
            "width; logistic: its path over C, as without.",
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="With --sweep: seeds per combination, counted from --seed.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Makes a CPU run repeat exactly.")] = 0,
    val: Annotated[
        float | None,
        typer.Option(help="Share of train to validate on, where there is no val.  [default: 0.2]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.  [default: runs/NAME-HEAD-NUMBER]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a head that --out holds.")
    ] = False,
    device: Device = "auto",
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a head on cached features; no picture is opened.

    The best epoch (or C) by validation loss is kept. The test split is not looked at.

    Example: featpipe train-head pets --head mlp --hidden 512 --dropout 0.3
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.datasets.splits import DEFAULT_VAL_FRACTION
        from featpipe.stages.train import head_params
        from featpipe.stages.train import train_head as train

        params = {
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "epochs": epochs,
            "patience": patience,
            "hidden": hidden,
            "dropout": dropout,
            "C": c,
            "folds": folds,
            "max_iter": max_iter,
        }
        done = train(
            name,
            cache=cache_root(cache),
            head=head,
            params=head_params(head, params),
            tap=tap,
            pool=pool,
            sweep=sweep,
            seeds=seeds,
            seed=seed,
            val_fraction=DEFAULT_VAL_FRACTION if val is None else val,
            out=out,
            overwrite=overwrite,
            device=device,
            progress=speaker.progress,
        )
        speaker.result(done.as_json(), text.of_training(done))


@app.command()
def evaluate(
    head: HeadFolder,
    on: Annotated[
        str | None, typer.Option(help="Data set.  [default: the one it was trained on]")
    ] = None,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score a head; write metrics.json and report.html beside it.

    Example: featpipe evaluate runs/pets-mlp-1
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.stages.evaluate import evaluate as score

        done = score(head, cache=cache_root(cache), on=on, split=split)
        speaker.result(done.as_json(), text.of_evaluation(done))


@app.command()
def predict(
    head: HeadFolder,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Pictures, or folders of them.", show_default=False),
    ],
    weights: Annotated[
        str | None, typer.Option(help="Where the backbone's weights are now, if elsewhere.")
    ] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also the probability of every class.")
    ] = False,
    device: Device = "auto",
    batch_size: Annotated[str, typer.Option(help="Pictures per pass.")] = "auto",
    workers: Annotated[str, typer.Option(help="Decoding processes.")] = "auto",
    cache: Cache = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines instead of CSV.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify pictures, preprocessed exactly as in training.

    An unreadable file is a line with an error, not a stop; the exit code is then 3.

    Example: featpipe predict runs/pets-mlp-1 holiday/ cat.jpg > labels.csv
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.engine.options import parse_options
        from featpipe.stages.predict import predict as classify

        _, options = parse_options({"batch_size": batch_size, "workers": workers})
        found = classify(
            head,
            paths,
            cache=cache_root(cache),
            weights=weights,
            device=device,
            options=options,
            progress=speaker.progress,
        )
        write = text.write_json_lines if as_json else text.write_csv
        if unreadable := write(found, sys.stdout, all_classes=probabilities):
            speaker.warn(f"{unreadable} files could not be read; their lines say why")
            raise typer.Exit(EXIT_QUARANTINED)


@app.command("run")
def run_recipe(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A TOML recipe.", show_default=False)
    ],
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
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Extract, train and evaluate as a recipe says.

    Example: featpipe run pipelines/cats_dogs.toml --data photos/
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.stages import recipe as recipes

        loaded = recipes.load_recipe(recipe)
        if check:
            if data is None:
                recipes.check_data(loaded)
            speaker.result({"recipe": str(recipe), "valid": True}, f"{recipe}: valid")
            return
        done = recipes.run_recipe(
            loaded,
            cache=cache_root(cache),
            data=data,
            out=out,
            device=device,
            overwrite=overwrite,
            progress=speaker.progress,
        )
        speaker.result(done.as_json(), text.of_recipe(done))
        if done.extract.quarantined:
            raise typer.Exit(EXIT_QUARANTINED)


@app.command()
def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One of them, to see its taps.")
    ] = None,
    size: Annotated[
        int, typer.Option(min=1, max=4096, help="Input side the shapes are given for.")
    ] = 224,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List the backbones, or one backbone's taps with their shapes.

    Example: featpipe backbones vgg16 --size 180
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.backbones.catalog import BACKBONES, get_backbone
        from featpipe.cli import formatting as text

        if name is None:
            speaker.result({"backbones": list(BACKBONES)}, "\n".join(BACKBONES))
            return
        taps = text.tap_rows(get_backbone(name), size)
        speaker.result({"backbone": name, "size": size, "taps": taps}, text.of_taps(taps))


@app.command()
def doctor(
    cache: Cache = None, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Say what this machine offers and what is ready.

    Example: featpipe doctor
    """
    speaker = Speaker(as_json=as_json, quiet=quiet, verbose=verbose)
    with speaking(speaker):
        from featpipe.cli import formatting as text
        from featpipe.cli.doctor import check_up

        found = check_up(cache_root(cache))
        speaker.result(found, text.of_pairs(found))


app.add_typer(bench_commands.app, name="bench")
app.add_typer(cache_commands.app, name="cache")
app.add_typer(weights_commands.app, name="weights")
