"""Sources of images: a folder, a list file, or the digits shipped inside scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from featpipe.base.disk import read_regular
from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.text import escape
from featpipe.sources.digits import DIGITS, open_digits, read_digit
from featpipe.sources.folder import list_pictures, open_folder
from featpipe.sources.labelling import label_warnings
from featpipe.sources.listing import LIST_SUFFIXES, open_list
from featpipe.sources.records import Record, Source

__all__ = ["Record", "Source", "image_reader", "label_warnings", "list_pictures", "open_source"]


def open_source(
    data: str | os.PathLike[str], *, root: Path | None = None, follow_links: bool = False
) -> Source:
    """List the images that DATA, the command line's argument, names.

    Parameters
    ----------
    data : str or path
        ``sklearn:digits``, an image folder, or a ``.csv``, ``.tsv`` or ``.jsonl`` list.
    root : Path, optional
        Folder that a list's paths are relative to and must lie in; default: the list's folder.
    follow_links : bool
        Whether a list's paths may leave ``root`` through symbolic links. Links in an image folder
        are always followed, because its owner chose what is in it.

    Raises
    ------
    NotFoundError
        ``data`` does not exist.
    UsageError
        ``data`` is neither a folder nor a list, or ``root`` does not apply to it.
    DataError
        The list is malformed, or the folder's layout is none of those supported.
    """
    if str(data) == DIGITS:
        return open_digits()
    if str(data).startswith("sklearn:"):
        raise UsageError(f"expected '{DIGITS}', a folder or a list, found '{escape(str(data))}'")
    path = Path(data)
    # os.path returns False for a name that is too long; pathlib would raise OSError.
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
    """A function that returns an image's bytes for its path in a data set.

    It needs no :class:`Source`, so the folder or list is not read again.

    Parameters
    ----------
    kind : {"folder", "list", "digits"}
        The source's kind.
    root : str
        Folder that the paths are relative to; empty for ``digits``.
    """
    if kind == "digits":
        return read_digit
    return lambda path: read_regular(Path(root) / path)
