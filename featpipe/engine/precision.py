"""What ``--precision auto`` means on this machine: a fact where it is one, measured where not.

A processor that says it multiplies bf16 may still be slower at it than in float32: some have
the instructions at half the rate, and a virtual machine may hide from the libraries what is
needed to use them. So it is timed, once per cache and kind of processor. What was found stays:
the precision is part of the feature space, and a choice that wavers would compute all anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from featpipe.base.disk import names_in, write_atomically
from featpipe.base.errors import StorageError
from featpipe.base.hardware import cpu_claims, matrix_precision
from featpipe.base.space import PRECISIONS

WORTH = 1.2
"""bf16 keeps 8 bits of every number: it must be so many times as fast to be chosen."""
_NAME = re.compile(rf"[\w.-]+\.({'|'.join(PRECISIONS)})")


def choose_precision(precision: str, device: str, cache: Path, *, remember: bool = True) -> str:
    """``auto`` → ``bf16`` or ``fp16`` where the hardware is faster in it, else ``fp32``.

    Parameters
    ----------
    precision : {"auto", "fp32", "bf16", "fp16"}
        All but ``auto`` are given back.
    device : str
    cache : Path
        Where a measurement is looked up.
    remember : bool
        Whether one that is made now is kept there.
    """
    if precision != "auto":
        return precision
    if device != "cpu":
        return matrix_precision(device)
    claims = cpu_claims()
    if not claims:
        return "fp32"
    # All there is to say is in the file's name: an empty file cannot be damaged.
    folder = _folder(cache)
    names = names_in(folder)
    for known in PRECISIONS:
        if f"{claims}.{known}" in names:
            return known
    from featpipe.backbones.speed import bf16_speedup

    found = "bf16" if bf16_speedup() >= WORTH else "fp32"
    if remember:
        # Where nothing can be written now, nothing will be: the rows' own error says it better.
        with contextlib.suppress(StorageError):
            write_atomically(folder / f"{claims}.{found}", b"")
    return found


def check_kept_precisions(cache: Path) -> Iterator[tuple[Path, str]]:
    """Every kept measurement of a cache, and what is wrong with it (empty: nothing)."""
    folder = _folder(cache)
    for name in names_in(folder):
        if name.startswith("."):
            continue
        path = folder / name
        whole = _NAME.fullmatch(name) and path.is_file() and path.stat().st_size == 0
        yield path, "" if whole else "not the name of a processor and its precision, and empty"


def _folder(cache: Path) -> Path:
    return cache / "processors"
