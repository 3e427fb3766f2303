"""Numbered folders: what a command writes where nobody names a folder."""

from __future__ import annotations

import os
from pathlib import Path

from featpipe.base.errors import StorageError


def next_free(parent: Path, stem: str, *, what: str = "folder") -> Path:
    """Make the next free ``<parent>/<stem>-<number>``; two processes never get the same.

    Raises
    ------
    StorageError
        It cannot be made; ``what`` names it.
    """
    number = 1
    while True:
        folder = parent / f"{stem}-{number}"
        try:
            os.makedirs(folder)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise StorageError(
                f"expected to make the {what} {folder}, but: {error.strerror}; "
                "name a writable one with --out"
            ) from error
