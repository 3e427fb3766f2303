"""An image folder: class folders, with or without train/val/test above them, or no classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featpipe.base.errors import DataError, StorageError
from featpipe.sources.records import SPLIT_NAMES, Record, Source

NOT_PICTURES = frozenset(
    ".bat .bz2 .c .cfg .conf .csv .db .doc .docx .gz .h5 .hdf5 .htm .html .ini .ipynb .js "
    ".json .jsonl .log .mat .md .npy .npz .onnx .parquet .pdf .pkl .ps1 .pt .pth .py .rst "
    ".rtf .safetensors .sh .sql .sqlite .tar .tgz .toml .tsv .txt .xls .xlsx .xml .xz .yaml "
    ".yml .zip .zst".split()
)
"""Endings that are passed over. Everything else is taken for a picture, so that one that
cannot be read is reported instead of missed."""


def open_folder(folder: Path) -> Source:
    """List an image folder.

    Three layouts are understood: ``class/…/picture``, ``split/class/…/picture`` (splits as in
    ``SPLIT_NAMES``), and pictures with no folder above them (unlabelled). Hidden files and
    folders are passed over.

    Raises
    ------
    DataError
        The folder holds no picture, or mixes split folders with others.
    StorageError
        A folder cannot be listed.
    """
    root = folder.resolve()
    top = sorted(entry.name for entry in _entries(root) if _is_folder(entry))
    split_folders = [name for name in top if name.lower() in SPLIT_NAMES]
    if "train" not in {SPLIT_NAMES[name.lower()] for name in split_folders}:
        split_folders = []
    others = sorted(set(top) - set(split_folders))
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
        elif split_folders:
            ignored += 1
            continue
        records.append(Record(path, parts[0] if len(parts) > 1 else None, split))
    if not records:
        raise DataError(
            f"expected pictures in {folder}, found none ({ignored} other files); "
            "expected layouts: class/picture, train/class/picture, or pictures alone"
        )
    return Source("folder", str(folder), root, records, ignored=ignored)


def list_pictures(folder: Path) -> tuple[list[str], int]:
    """Relative paths of all files that may be pictures, and how many others were passed over."""
    every = list(_walk(folder))
    paths = [path for path in every if os.path.splitext(path)[1].lower() not in NOT_PICTURES]
    return paths, len(every) - len(paths)


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files, in a fixed order; links are followed, loops are not."""
    # A stack, not recursion: folders may be nested deeper than Python's calls.
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        prefix, above = waiting.pop()
        status = (folder / prefix).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        folders = []
        for entry in sorted(_entries(folder / prefix), key=lambda e: os.fsencode(e.name)):
            if _is_folder(entry):
                folders.append((f"{prefix}{entry.name}/", above | {here}))
            else:
                yield prefix + entry.name
        waiting += reversed(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself: taken for a picture, so that it is reported.
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise StorageError(f"expected to list {folder}, but: {error.strerror}") from error
