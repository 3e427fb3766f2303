"""How many threads a step of training takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

_SMALL_STEP = 2**23
"""Multiplications of a step below which a second thread costs more than it brings."""


@contextlib.contextmanager
def threads_for(multiplications: int) -> Iterator[None]:
    """One thread where steps are small, and two would mostly wait for each other."""
    before = torch.get_num_threads()
    if multiplications < _SMALL_STEP:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
