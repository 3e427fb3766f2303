"""Running the command line, and reading what it says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY_FLAGS = (
    "--weights random:0 --tap block1_pool --size 16 --resize squash --precision fp32 --device cpu"
).split()
"""The cheapest feature space, as flags; the fixture ``tiny`` has it as options."""

Run = Callable[..., subprocess.CompletedProcess[str]]


def json_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["schema"] == 1
    return document


def files_in(folder: Path) -> int:
    """Number of files, in folders of folders too; hidden ones, such as the lock, do not count."""
    return sum(path.is_file() for path in folder.rglob("[!.]*"))
