"""Options that several commands share: spelled once, explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _folder(text: str) -> Path:
    # An unset shell variable gives an empty flag, which pathlib would take for this folder.
    if not text:
        raise typer.BadParameter("expected a folder, found an empty text")
    return Path(text)


Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        parser=_folder,
        metavar="DIR",
        help="Cache root.  [env: FEATPIPE_CACHE; default: ./cache]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More detail; tracebacks.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
HeadFolder = Annotated[
    Path, typer.Argument(metavar="HEAD", help="Run folder of a head.", show_default=False)
]
Tap = Annotated[str | None, typer.Option(help="Which tap, where the data set has several.")]
Pool = Annotated[str | None, typer.Option(help="Which pooling, where there are several.")]


def cache_root(cache: Path | None) -> Path:
    """The cache named by a flag, else by the environment, else the default."""
    from featpipe.base.cache import default_cache

    return default_cache() if cache is None else cache
