"""Which names data sets can have."""

from __future__ import annotations

import re

from featpipe.base.errors import UsageError

SHARD_MARK = ".shard-"
"""Stands between a data set's name and a part's number in the names of parts."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_file_name(name: str) -> None:
    """Refuse a data set name that could leave its folder, or is not a plain file name.

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
    """Refuse what cannot name a whole data set: also what looks like the name of a part.

    Raises
    ------
    UsageError
    """
    check_file_name(name)
    if SHARD_MARK in name:
        raise UsageError(f"expected a data set name without '{SHARD_MARK}', found {name!r}")
