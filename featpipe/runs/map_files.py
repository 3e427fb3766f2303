"""Names of the score maps that a prediction writes: one file for each path."""

from __future__ import annotations

import hashlib
import os
import re

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 100
_DIGEST = 8


def map_file_name(path: str) -> str:
    """A file name that is safe everywhere and different for every path.

    It ends in the first digits of the SHA-256 of the path, so that the same path has the same name
    in every run, and ``a/b.jpg`` another one than ``a_b.jpg``.
    """
    readable = _UNSAFE.sub("_", path)[-_LONGEST:].strip("._-")
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:_DIGEST]
    return f"{readable}-{digest}.png" if readable else f"{digest}.png"
