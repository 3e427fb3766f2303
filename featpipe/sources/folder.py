"""An image folder: ``class/image``, ``split/class/image``, or images without classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featpipe.base.errors import DataError, StorageError
from featpipe.sources.records import SPLIT_NAMES, Record, Source, locate_below

NOT_PICTURES = frozenset(
    ".bat .bz2 .c .cfg .conf .csv .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js "
    ".json .jsonl .log .mat .md .npy .npz .onnx .parquet .pdf .pkl .ps1 .pt .pth .py .rst "
    ".rtf .safetensors .sh .sql .sqlite .tar .tgz .toml .tsv .txt .xls .xlsx .xml .xz .yaml "
    ".yml .zip .zst".split()
)
"""File name suffixes that are ignored. Every other file counts as an image, so that an unreadable
one is reported instead of missed."""


def open_folder(folder: Path) -> Source:
    """List an image folder.

    Supported layouts: ``class/…/image``, ``split/class/…/image`` (splits as in ``SPLIT_NAMES``),
    and images directly in the folder (unlabelled; beside split folders also in no split). Hidden
    files and folders are ignored.

    Raises
    ------
    DataError
        The folder holds no image, or mixes split folders with other folders.
    StorageError
        A folder cannot be listed.
    """
    root = folder.resolve()
    top_folders = sorted(entry.name for entry in _entries(root) if _is_folder(entry))
    split_folders = [name for name in top_folders if name.lower() in SPLIT_NAMES]
    if "train" not in {SPLIT_NAMES[name.lower()] for name in split_folders}:
        split_folders = []
    others = sorted(set(top_folders) - set(split_folders))
    if split_folders and others:
        raise DataError(
            f"expected only split folders beside {split_folders[0]!r} in {folder}, found "
            f"{', '.join(map(repr, others[:5]))}; move them away, or give a list of "
            "path,label,split"
        )
    paths, ignored = list_pictures(root)
    records = []
    for path in paths:
        parts = path.split("/")
        split = None
        if split_folders and len(parts) > 1:
            split = SPLIT_NAMES[parts.pop(0).lower()]
        records.append(Record(path, parts[0] if len(parts) > 1 else None, split))
    if not records:
        raise DataError(
            f"expected pictures in {folder}, found none ({ignored} other files); "
            "expected layouts: class/picture, train/class/picture, or pictures alone"
        )
    return Source("folder", str(folder), root, records, locate_below(root), ignored)


def list_pictures(folder: Path) -> tuple[list[str], int]:
    """Relative paths of all files that may be images, and how many other files were ignored."""
    files = list(_walk(folder))
    paths = [path for path in files if os.path.splitext(path)[1].lower() not in NOT_PICTURES]
    return paths, len(files) - len(paths)


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files, in a fixed order; links are followed, loops are not."""
    # A stack, because folders may be nested deeper than Python's recursion limit.
    to_visit: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while to_visit:
        prefix, ancestors = to_visit.pop()
        status = (folder / prefix).stat()
        folder_id = (status.st_dev, status.st_ino)
        if folder_id in ancestors:
            continue
        folders = []
        for entry in sorted(_entries(folder / prefix), key=lambda e: os.fsencode(e.name)):
            if _is_folder(entry):
                folders.append((f"{prefix}{entry.name}/", ancestors | {folder_id}))
            else:
                yield prefix + entry.name
        to_visit += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that points to itself counts as an image, so that it is reported as unreadable.
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise StorageError(f"expected to list {folder}, but: {error.strerror}") from error
