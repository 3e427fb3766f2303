"""Sources of images: folders, list files, idx files, the digits shipped inside scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from featpipe.base.errors import DataError, NotFoundError, UsageError
from featpipe.base.locations import read
from featpipe.base.text import escape
from featpipe.sources.digits import DIGITS, locate_digit, open_digits
from featpipe.sources.folder import list_pictures, open_folder
from featpipe.sources.idx import is_idx_folder, is_idx_name, locate_idx, open_idx
from featpipe.sources.labelling import label_warnings
from featpipe.sources.listing import LIST_SUFFIXES, open_list
from featpipe.sources.records import Locate, Record, Source, locate_below

__all__ = [
    "OPENERS",
    "Record",
    "Source",
    "has_files",
    "image_reader",
    "label_warnings",
    "list_pictures",
    "locator",
    "open_source",
]


class Opener(NamedTuple):
    """One kind of source.

    Attributes
    ----------
    accepts : callable
        Whether DATA, the command line's argument, is of this kind.
    open : callable
        The source, from DATA, ``root`` and ``follow_links`` of :func:`open_source`.
    locate_in : callable
        How its records are found again from the data set's ``root`` alone, by which later stages
        read a picture; DATA is not listed again.
    has_files : bool
        Whether the records' paths are those of files, so that a list can name them.
    """

    accepts: Callable[[str], bool]
    open: Callable[[str, Path | None, bool], Source]
    locate_in: Callable[[str], Locate]
    has_files: bool


def _is_list(data: str) -> bool:
    return os.path.splitext(data)[1].lower() in LIST_SUFFIXES and os.path.exists(data)


def _open_list(data: str, root: Path | None, follow_links: bool) -> Source:
    if root is not None and "\0" in str(root):
        raise UsageError(f"expected a folder as --root, found {str(root)!r}")
    return open_list(Path(data), root=root, follow_links=follow_links)


def _folder_opener(open_: Callable[[Path], Source]) -> Callable[[str, Path | None, bool], Source]:
    def opened(data: str, root: Path | None, _: bool) -> Source:
        if root is not None:
            raise UsageError("expected --root only with a list, found a folder as DATA")
        return open_(Path(data))

    return opened


# os.path returns False for a name that is too long; pathlib would raise OSError.
OPENERS = {
    "digits": Opener(
        lambda data: data == DIGITS, lambda *_: open_digits(), lambda _: locate_digit, False
    ),
    "idx": Opener(is_idx_folder, _folder_opener(open_idx), locate_idx, False),
    "folder": Opener(os.path.isdir, _folder_opener(open_folder), locate_below, True),
    "list": Opener(_is_list, _open_list, locate_below, True),
}
"""Every kind of source by its name in a data set file; the first that accepts DATA opens it."""


def open_source(
    data: str | os.PathLike[str], *, root: Path | None = None, follow_links: bool = False
) -> Source:
    """List the images that DATA, the command line's argument, names.

    Parameters
    ----------
    data : str or path
        ``sklearn:digits``, an image folder, a folder of idx files, or a ``.csv``, ``.tsv`` or
        ``.jsonl`` list.
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
        ``data`` is of no known kind, or ``root`` does not apply to it.
    DataError
        The list is malformed, or the folder's layout is none of those supported.
    """
    text = str(data)
    for opener in OPENERS.values():
        if opener.accepts(text):
            return opener.open(text, root, follow_links)
    if text.startswith("sklearn:"):
        raise UsageError(f"expected '{DIGITS}', a folder or a list, found '{escape(text)}'")
    suffixes = ", ".join(LIST_SUFFIXES)
    if not os.path.exists(text):
        raise NotFoundError(
            f"expected an image folder, a list ({suffixes}) or '{DIGITS}', "
            f"found nothing at {escape(text)}; check the path"
        )
    if is_idx_name(os.path.basename(text)):
        raise UsageError(
            f"expected the folder of the idx files, found one of them, {escape(text)}; give "
            f"{escape(os.path.dirname(text) or '.')}"
        )
    raise UsageError(
        f"expected an image folder or a list ending in {suffixes}, found {escape(text)}"
    )


def has_files(kind: str) -> bool:
    """Whether paths of a source of that kind are those of files."""
    return kind in OPENERS and OPENERS[kind].has_files


def locator(kind: str, root: str) -> Locate:
    """A function that says where an image is, from its path in a data set.

    Parameters
    ----------
    kind : str
        The source's kind, a key of :data:`OPENERS`.
    root : str
        The source's root; empty where it has none.
    """
    if kind not in OPENERS:
        return lambda path: _refuse(kind, path)
    return OPENERS[kind].locate_in(root)


def image_reader(kind: str, root: str) -> Callable[[str], bytes]:
    """A function that returns an image's bytes for its path in a data set.

    Parameters
    ----------
    kind : str
        The source's kind, a key of :data:`OPENERS`.
    root : str
        The source's root; empty where it has none.
    """
    locate = locator(kind, root)
    return lambda path: read(locate(path))


def _refuse(kind: str, path: str) -> NoReturn:
    raise DataError(
        f"expected a source of {', '.join(OPENERS)}, found {kind!r} for {path!r}; update featpipe"
    )
