"""A folder of idx files, as MNIST and Fashion-MNIST come: pictures and labels as arrays."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError
from featpipe.base.locations import Encoded
from featpipe.base.text import escape, some_of
from featpipe.sources.canonical_png import canonical_png
from featpipe.sources.folder import list_pictures
from featpipe.sources.idx_file import IMAGES, LABELS, read_idx
from featpipe.sources.records import Locate, Record, Source

_NAME = re.compile(
    r"(train|t10k|test)[-_.](images[-_.]idx3|labels[-_.]idx1)[-_.]ubyte(\.gz)?", re.IGNORECASE
)
_ANY_IDX = re.compile(
    r".*idx\d[-_.](u?byte|sbyte|short|int|float|double)(\.gz)?", re.IGNORECASE | re.DOTALL
)
_PATH = re.compile(r"(train|test)/([0-9]{5,10})\.png")
_NUMBER_WIDTH = 5
_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_FILE_STEMS = {"train": "train", "test": "t10k"}

_Arrays = dict[str, NDArray[np.uint8]]
"""By split."""


def is_idx_folder(data: str) -> bool:
    """Whether there is a folder of that name with a file that is called as idx files are."""
    try:
        return os.path.isdir(data) and any(_idx_names(Path(data)))
    except OSError:
        return False


def is_idx_name(name: str) -> bool:
    """Whether a file is called as idx files are."""
    return _ANY_IDX.fullmatch(name) is not None


def open_idx(folder: Path) -> Source:
    """Read the idx files of a folder; its pictures are named ``train/00000.png`` and so on.

    ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two of ``t10k`` (or ``test``),
    each plain or ``.gz``, with ``-``, ``_`` or ``.`` between the words. Without any file of labels
    the pictures have none.

    Raises
    ------
    DataError
        A file is damaged, foreign or missing; the numbers of pictures and labels differ; the folder
        also holds pictures.
    StorageError
        A file cannot be read.
    """
    root = folder.resolve()
    others = _check_alone(root)
    files = _files(root)
    _check_companions(root, files)
    images, labels = (_arrays(root, files, what) for what in (IMAGES, LABELS))
    records = [
        record
        for split, pixels in images.items()
        for record in _records(split, len(pixels), labels.get(split), escape(str(folder)))
    ]
    if not records:
        raise DataError(
            f"expected pictures in the idx files of {escape(str(folder))}, found none in them"
        )
    return Source("idx", str(folder), root, records, _locate(lambda: images), others)


def locate_idx(root: str) -> Locate:
    """For records of the idx files of a folder; they are read when a picture is asked for."""
    return _locate(functools.cache(lambda: _arrays(Path(root), _files(Path(root)), IMAGES)))


def _locate(images: Callable[[], _Arrays]) -> Locate:
    def locate(path: str) -> Encoded:
        named = _PATH.fullmatch(path)
        pixels = images().get(named[1], ()) if named else ()
        if named is None or int(named[2]) >= len(pixels):
            raise DataError(f"expected a picture of the idx files, found no {path!r} in them")
        return Encoded(canonical_png(pixels[int(named[2])]))

    return locate


def _idx_names(root: Path) -> Iterator[str]:
    """Files of the folder that are called as idx files are, in no order; hidden ones are not."""
    with os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and is_idx_name(entry.name) and not entry.is_dir():
                yield entry.name


def _check_alone(root: Path) -> int:
    """Refuse a folder that also holds pictures; the number of its other files."""
    paths, ignored = list_pictures(root)
    parts = [(path, *os.path.split(path)) for path in paths]
    # A README has no suffix either, and copies of the idx files may lie in folders below.
    pictures = [
        path
        for path, below, name in parts
        if not is_idx_name(name) and (below or os.path.splitext(name)[1])
    ]
    if pictures:
        raise DataError(
            f"expected either idx files or pictures in {escape(str(root))}, found both "
            f"({min(_idx_names(root))!r} and {some_of(pictures)}); move one of them into a folder "
            "of its own"
        )
    return len(paths) + ignored - len(list(_idx_names(root)))


def _files(root: Path) -> dict[tuple[str, int], list[str]]:
    """Names of the files with images and labels of each split, in a fixed order."""
    found: dict[tuple[str, int], list[str]] = {
        (split, what): [] for split in _FILE_STEMS for what in (IMAGES, LABELS)
    }
    for name in sorted(_idx_names(root)):
        match = _NAME.fullmatch(name)
        if match is None:
            raise DataError(
                f"expected idx files called train-images-idx3-ubyte, train-labels-idx1-ubyte, "
                f"t10k-images-idx3-ubyte or t10k-labels-idx1-ubyte (or .gz) in {escape(str(root))},"
                f" found {name!r}; rename it, or move it away"
            )
        what = IMAGES if match[2].lower().startswith("images") else LABELS
        found[_SPLITS[match[1].lower()], what].append(name)
    return found


def _arrays(root: Path, files: dict[tuple[str, int], list[str]], what: int) -> _Arrays:
    return {
        split: _only(root, names, kind)
        for (split, kind), names in files.items()
        if kind == what and names
    }


def _records(
    split: str, count: int, labels: NDArray[np.uint8] | None, shown: str
) -> Iterator[Record]:
    if labels is not None and len(labels) != count:
        raise DataError(
            f"expected as many labels as pictures of '{split}' in {shown}, found {len(labels)} "
            f"labels and {count} pictures; download both files again"
        )
    width = max(_NUMBER_WIDTH, len(str(count - 1)))
    names = [None] * count if labels is None else map(str, labels.tolist())
    for i, name in enumerate(names):
        yield Record(f"{split}/{i:0{width}d}.png", name, split)


def _only(root: Path, names: list[str], what: int) -> NDArray[np.uint8]:
    """The array that all the files hold: one that was unpacked often lies beside the packed one."""
    array, *copies = [read_idx(root / name, what) for name in names]
    if not all(np.array_equal(array, copy) for copy in copies):
        raise DataError(
            f"expected one content in {some_of(names)} of {escape(str(root))}, found several; "
            "remove all but the right one"
        )
    return array


def _check_companions(root: Path, files: dict[tuple[str, int], list[str]]) -> None:
    """Refuse labels without pictures, and pictures without labels beside some that have them."""
    labelled = [split for split in _FILE_STEMS if files[split, LABELS]]
    for split, stem in _FILE_STEMS.items():
        images, labels = files[split, IMAGES], files[split, LABELS]
        if labels and not images:
            raise DataError(
                f"expected {stem}-images-idx3-ubyte (or .gz) beside {labels[0]!r} in "
                f"{escape(str(root))}, found none; add it, or move the labels away"
            )
        if images and not labels and labelled:
            raise DataError(
                f"expected {stem}-labels-idx1-ubyte (or .gz) beside {images[0]!r} in "
                f"{escape(str(root))}, as there are labels of '{labelled[0]}', found none; add it, "
                "or move the pictures away"
            )
