"""Packages of the optional extras, which are imported only where they are needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from featpipe.base.errors import MissingPackageError


@contextlib.contextmanager
def needing(package: str, what: str, extra: str) -> Iterator[None]:
    """Say how to install a package that is imported inside.

    Parameters
    ----------
    package : str
    what : str
        What needs it, in words.
    extra : str
        The extra that brings it.

    Raises
    ------
    MissingPackageError
    """
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"expected the package {package} for {what}, found none; "
            f"install it with: pip install 'featpipe[{extra}]'"
        ) from error
