"""Valid names of data sets and their shards."""

from __future__ import annotations

import re

from featpipe.base.errors import UsageError

SHARD_MARK = ".shard-"
"""Separates the data set's name from the shard's number in the name of a shard."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_file_name(name: str) -> None:
    """Refuse a data set or shard name that is not a plain file name.

    Raises
    ------
    UsageError
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"expected a data set name of letters, digits, '.', '_' and '-' (at most 100, "
            f"beginning with a letter or digit), found {name!r}"
        )


def check_dataset_name(name: str) -> None:
    """Refuse an invalid name of a whole data set, such as the name of a shard.

    Raises
    ------
    UsageError
    """
    check_file_name(name)
    if SHARD_MARK in name:
        raise UsageError(f"expected a data set name without '{SHARD_MARK}', found {name!r}")
