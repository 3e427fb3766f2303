"""Where pictures come from: a folder, a list, or digits shipped inside scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from featpipe.base.disk import read_regular
from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.text import escape
from featpipe.sources.digits import DIGITS, open_digits, read_digit
from featpipe.sources.folder import list_pictures, open_folder
from featpipe.sources.listing import LIST_SUFFIXES, open_list
from featpipe.sources.records import Record, Source

__all__ = ["Record", "Source", "image_reader", "list_pictures", "open_source"]


def open_source(
    data: str | os.PathLike[str], *, root: Path | None = None, follow_links: bool = False
) -> Source:
    """List the pictures DATA names.

    Parameters
    ----------
    data : str or path
        ``sklearn:digits``, an image folder, or a ``.csv``, ``.tsv`` or ``.jsonl`` list.
    root : Path, optional
        Folder the paths of a list are relative to and may not leave; default: the list's own.
    follow_links : bool
        Whether links may lead a list's paths out of it. In a folder they always may: whoever
        names a folder means what is seen in it.

    Raises
    ------
    NotFoundError
        There is nothing of that name.
    UsageError
        It is neither a folder nor a list.
    DataError
        The list or the folder's layout cannot be understood.
    """
    if str(data) == DIGITS:
        return open_digits()
    if str(data).startswith("sklearn:"):
        raise UsageError(f"expected '{DIGITS}', a folder or a list, found '{escape(str(data))}'")
    path = Path(data)
    # os.path, unlike pathlib, says of a name too long to be one that there is no such thing.
    if os.path.isdir(path):
        if root is not None:
            raise UsageError("expected --root only with a list, found a folder as DATA")
        return open_folder(path)
    if not os.path.exists(path):
        raise NotFoundError(
            f"expected an image folder, a list ({', '.join(LIST_SUFFIXES)}) or '{DIGITS}', "
            f"found nothing at {escape(str(path))}; check the path"
        )
    if root is not None and "\0" in str(root):
        raise UsageError(f"expected a folder as --root, found {str(root)!r}")
    if path.suffix.lower() in LIST_SUFFIXES:
        return open_list(path, root=root, follow_links=follow_links)
    raise UsageError(
        f"expected an image folder or a list ending in {', '.join(LIST_SUFFIXES)}, found "
        f"{escape(str(path))}"
    )


def image_reader(kind: str, root: str) -> Callable[[str], bytes]:
    """A function from a data set's path to the bytes of that picture, without listing again.

    Parameters
    ----------
    kind, root : str
        As in :class:`Source`; an empty root where there is none.
    """
    if kind == "digits":
        return read_digit
    return lambda path: read_regular(Path(root) / path)
