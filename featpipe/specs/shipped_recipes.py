"""The recipes that come with featpipe, by name."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "pipelines", _PACKAGE.parent / "pipelines")
"""Where they lie in an installed package, and in a checkout."""


def shipped_recipes() -> dict[str, Path]:
    """The recipes by name, sorted."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    paths = [] if folder is None else sorted(folder.glob("*.toml"))
    return {path.stem: path for path in paths}


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """The file of a recipe: a path, or the name of one that comes with featpipe.

    A file of that very name comes first; only a name without a folder is looked up.
    """
    path = Path(recipe)
    if path.name == os.fspath(recipe) and not os.path.lexists(path):
        return shipped_recipes().get(path.name.removesuffix(".toml"), path)
    return path


def summary(recipe: Path) -> str:
    """What the comment at the top of a recipe says, in one line."""
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
