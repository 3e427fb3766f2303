"""The command that extracts from a data set's own source, to be copied from messages."""

from __future__ import annotations

import os
import shlex

from featpipe.datasets.dataset import Dataset
from featpipe.specs.extract import DEFAULT_SPLIT

UNKNOWN_SOURCE = "DATA"
"""Stands for the source of a data set that does not record it."""


def extract_words(dataset: Dataset) -> list[str]:
    """Words of ``extract`` over a data set's own pictures, the program's name not among them."""
    source, shares = dataset.source, dataset.info.split
    words = ["extract", source.spec or UNKNOWN_SOURCE, "--name", dataset.name]
    if source.kind == "list" and _folder_of(source.spec) != source.root:
        words += ["--root", source.root]
    if not isinstance(shares, str) and tuple(shares) != DEFAULT_SPLIT:
        words += ["--split", ",".join(f"{share:g}" for share in shares)]
    return words


def extract_command(dataset: Dataset, *options: str) -> str:
    """``featpipe extract DATA --name NAME`` and options, quoted already, for a shell."""
    return " ".join(filter(None, [shlex.join(["featpipe", *extract_words(dataset)]), *options]))


def _folder_of(spec: str) -> str:
    return os.path.dirname(os.path.abspath(spec))
