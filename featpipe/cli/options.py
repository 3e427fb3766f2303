"""Options that several commands share, and how an option of a spec becomes a flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from featpipe.specs.fields import Spec, default_of, options_of
from featpipe.specs.head_params import HEAD_PARAMS, NETWORKS
from featpipe.specs.value_kinds import File, Folder


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
HeadFolder = Annotated[
    Path,
    typer.Argument(
        parser=_folder, metavar="HEAD", help="Run folder of a head.", show_default=False
    ),
]


def command_app() -> typer.Typer:
    """The Typer application of one command."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def flag_of(spec: type[Spec], name: str, *, is_required: bool = False, **settings: Any) -> Any:
    """The flag of an option of a spec, with the option's help and default.

    ``is_required`` says so in the help; the spec refuses a command without it, and names a remedy.
    """
    known = options_of(spec)[name]
    if isinstance(known.kind, File):
        settings = {"metavar": "FILE", **settings}
    elif isinstance(known.kind, Folder):
        settings = {"parser": _folder, "metavar": "DIR", **settings}
    words = known.default_text or _shown(default_of(spec, name))
    default = f"  [default: {words}]" if words else "  [required]" if is_required else ""
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=known.help.removesuffix(".") + "." + default,
        show_default=False,
        **settings,
    )


def hyper_parameter(name: str) -> Any:
    """The flag of a hyper-parameter: which kinds of heads have it, its help and its defaults."""
    owners = {kind: params for kind, params in HEAD_PARAMS.items() if name in options_of(params)}
    known = next(iter(options_of(params)[name] for params in owners.values()))
    kinds_by_default: dict[str, list[str]] = {}
    for kind, params in owners.items():
        default = options_of(params)[name].default_text or _shown(default_of(params, name))
        kinds_by_default.setdefault(default, []).append(kind)
    words = next(iter(kinds_by_default))
    if len(kinds_by_default) > 1:
        words = "; ".join(f"{_whose(kinds)}: {text}" for text, kinds in kinds_by_default.items())
    whose = "all" if len(owners) == len(HEAD_PARAMS) else _whose(owners)
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=f"{whose}: {known.help}  [default: {words}]",
        show_default=False,
    )


def _whose(kinds: Iterable[str]) -> str:
    """Kinds of heads; all of the networks as one word."""
    names = list(kinds)
    if set(NETWORKS) <= set(names):
        names = [*(name for name in names if name not in NETWORKS), "networks"]
    return ", ".join(names)


def _shown(default: object) -> str:
    if default is None or isinstance(default, bool) or default is dataclasses.MISSING:
        return ""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def given(context: typer.Context, spec: type[Spec]) -> dict[str, Any]:
    """What the command line says of a spec's options, by name; None where it says nothing."""
    return {
        name: None if value == () else value
        for name, value in context.params.items()
        if name in options_of(spec)
    }


def cache_root(cache: Path | None) -> Path:
    """The cache named by a flag, else by the environment, else the default."""
    from featpipe.base.cache import default_cache

    return default_cache() if cache is None else cache
