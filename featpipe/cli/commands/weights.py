"""``featpipe weights``: where the backbone's weights are, and fetching them."""

from __future__ import annotations

from typing import Annotated

import typer

from featpipe.base.own_code import permitted
from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Cache, Quiet, Verbose, cache_root

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List and fetch the backbones' weights.\n\nExample: featpipe weights list",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("list")
def list_weights(
    cache: Cache = None, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """List the named weights of every backbone and which of them are here.

    Example: featpipe weights list
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.backbones.vgg import FAMILY
        from featpipe.weights.providers import kept_files, own_copy

        rows, root = [], cache_root(cache)
        for backbone in FAMILY.values():
            for name in backbone.published:
                path = own_copy(root, backbone, name)
                here = str(path) if path.exists() else None
                rows.append({"backbone": backbone.name, "weights": name, "path": here})
        listed = {row["path"] for row in rows}
        for path, owner, name in kept_files(root):
            if str(path) not in listed:
                rows.append({"backbone": owner, "weights": name, "path": str(path)})
        lines = [f"{r['backbone']} {r['weights']:<20} {r['path'] or 'not here'}" for r in rows]
        console.result({"weights": rows}, "\n".join(lines))


@app.command()
def fetch(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="[default: DEFAULT]")] = None,
    backbone: Annotated[str | None, typer.Option(help="[default: vgg16]")] = None,
    cache: Cache = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Bring named weights into the cache, from the first provider that has them, and check them.

    Example: featpipe weights fetch IMAGENET1K_V1 --backbone vgg16
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console), permitted([backbone]):
        from featpipe.backbones.catalog import get_backbone
        from featpipe.specs.extract import DEFAULT_BACKBONE
        from featpipe.weights import fetch_weights

        network = get_backbone(backbone or DEFAULT_BACKBONE)
        path, digest = fetch_weights(name, network, cache_root(cache))
        found = {"path": str(path), "sha256_of_tensors": digest}
        console.result(found, f"{path}\n  tensors {digest}")
