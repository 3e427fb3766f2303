"""Chooses the precision for ``--precision auto``: on a GPU by its type, on a CPU by timing.

A CPU that reports bf16 instructions may still be slower in bf16 than in float32: some run these
instructions at half the rate, and a virtual machine may hide features that the libraries need to
use them. So featpipe times both, once per cache and CPU model. It then keeps the choice, because
the precision is part of the feature space: after another choice, all features would have to be
computed again.

Training has choices of its own (``--compute auto``), one for networks that mostly convolve and one
for networks that mostly multiply matrices: it also goes backwards, and it casts its weights anew at
every step. They are kept too: the precision decides the bits that a training of the same seed ends
in.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from featpipe.base.choices import PRECISIONS
from featpipe.base.disk import names_in, write_atomically
from featpipe.base.errors import StorageError
from featpipe.base.hardware import cpu_claims, matrix_precision

WORTH = 1.2
"""bf16 is chosen if it is at least this many times as fast as float32, because it is less exact: it
keeps 8 significant bits."""
_NAME = re.compile(rf"[\w.-]+\.({'|'.join(PRECISIONS)})")


def choose_precision(precision: str, device: str, cache: Path, *, remember: bool = True) -> str:
    """``auto`` → ``bf16`` or ``fp16`` where the hardware is faster in it, else ``fp32``.

    Parameters
    ----------
    precision : {"auto", "fp32", "bf16", "fp16"}
        Returned unchanged unless it is ``auto``.
    device : str
        A torch device, such as ``cpu`` or ``cuda:0``.
    cache : Path
        Cache folder that keeps the choice for each CPU model.
    remember : bool
        Whether to keep a choice that is made now.
    """
    if precision != "auto":
        return precision
    if device != "cpu":
        return matrix_precision(device)
    claims = cpu_claims()
    if not claims:
        return "fp32"

    def measure() -> float:
        from featpipe.backbones.bf16_speed import bf16_speedup

        return bf16_speedup()

    return _kept_choice(cache, claims, measure, remember=remember)


def choose_compute(compute: str, device: str, cache: Path, *, layer: str) -> str:
    """``auto`` → ``bf16`` where the hardware trains faster in it, else ``fp32``.

    Parameters
    ----------
    compute : {"auto", "fp32", "bf16"}
        Returned unchanged unless it is ``auto``.
    device : str
        A torch device, such as ``cpu`` or ``cuda:0``.
    cache : Path
        Cache folder that keeps the choice for each CPU model.
    layer : {"convolution", "dense"}
        The kind of layer that most multiplications of the network are in.
    """
    if compute != "auto":
        return compute
    if device != "cpu":
        return "bf16" if matrix_precision(device) == "bf16" else "fp32"
    claims = cpu_claims()
    if not claims:
        return "fp32"

    def measure() -> float:
        from featpipe.backbones.bf16_speed import training_speedup

        return training_speedup(layer)

    return _kept_choice(cache, f"{claims}.training-{layer}", measure, remember=True)


def _kept_choice(cache: Path, stem: str, measure: Callable[[], float], *, remember: bool) -> str:
    """The choice that a cache keeps under a name; without one, by how much faster bf16 is."""
    # The file name holds the choice: the file is empty, so its content cannot be damaged.
    folder = _folder(cache)
    names = names_in(folder)
    for known in PRECISIONS:
        if f"{stem}.{known}" in names:
            return known
    choice = "bf16" if measure() >= WORTH else "fp32"
    if remember:
        # If the cache is not writable, writing the features fails too, with a clearer message.
        with contextlib.suppress(StorageError):
            write_atomically(folder / f"{stem}.{choice}", b"")
    return choice


def check_kept_precisions(cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield every kept choice of a cache, and what is wrong with it (an empty text: nothing)."""
    folder = _folder(cache)
    for name in names_in(folder):
        if name.startswith("."):
            continue
        path = folder / name
        is_valid = _NAME.fullmatch(name) and path.is_file() and path.stat().st_size == 0
        yield path, "" if is_valid else "not the name of a processor and its precision, and empty"


def _folder(cache: Path) -> Path:
    return cache / "processors"
