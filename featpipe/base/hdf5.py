"""Attributes of HDF5 files whose values lie in the attribute itself.

HDF5 keeps strings of variable length in a heap of their own, and HDF5 2.0 walks a damaged heap
for ever, inside C, where no interrupt reaches it. So texts are written with a fixed length, and
an attribute of any other kind is not even read.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np


def write_text(file: h5py.File, name: str, text: str) -> None:
    """Write a text, not empty, in UTF-8."""
    file.attrs[name] = np.bytes_(text.encode())


def read_text(file: h5py.File, name: str) -> str:
    """Read what :func:`write_text` wrote.

    Raises
    ------
    ValueError, KeyError, TypeError, OSError
        There is no such attribute, or it is something else.
    """
    return bytes(_value(file, name, "S")).decode()


def read_number(file: h5py.File, name: str) -> int:
    """Read a whole number; raises as :func:`read_text`."""
    return int(_value(file, name, "iu"))


def _value(file: h5py.File, name: str, kinds: str) -> Any:
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind not in kinds:
        raise ValueError(f"attribute '{name}' is {attribute.dtype} {attribute.shape}")
    return file.attrs[name]
