"""HDF5 attributes whose values are stored in the attribute itself.

HDF5 stores variable-length strings in a separate heap. On a damaged heap, HDF5 2.0 loops forever
in C, where Ctrl-C does not stop it. So texts are written with a fixed length, and attributes
of any other kind are refused unread.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np


def write_text(file: h5py.File, name: str, text: str) -> None:
    """Write a non-empty text as UTF-8."""
    file.attrs[name] = np.bytes_(text.encode())


def read_text(file: h5py.File, name: str) -> str:
    """Read what :func:`write_text` wrote.

    Raises
    ------
    ValueError, KeyError, TypeError, OSError
        The attribute is missing or of another kind.
    """
    return bytes(_value(file, name, "S")).decode()


def read_number(file: h5py.File, name: str) -> int:
    """Read an integer; raises the same errors as :func:`read_text`."""
    return int(_value(file, name, "iu"))


def _value(file: h5py.File, name: str, kinds: str) -> Any:
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or attribute.dtype.kind not in kinds:
        raise ValueError(f"attribute '{name}' is {attribute.dtype} {attribute.shape}")
    return file.attrs[name]
