"""Rows and what is known of their pictures as a NumPy archive."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy

from featpipe.heads.base import blocks_of

FEATURES = "features"
_READ_BYTES = 2**24


def write_npz(target: io.RawIOBase, X: Any, columns: Mapping[str, np.ndarray]) -> str:
    """Write rows, block by block, and columns as an archive that ``numpy.load`` reads.

    Parameters
    ----------
    target : binary file
        Need not be seekable.
    X : array-like, shape (n, …)
        Rows; the member ``features``.
    columns : mapping of str to ndarray
        Other members; no objects.

    Returns
    -------
    str
        SHA-256 (hex) of the rows' bytes.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    digest = hashlib.sha256()
    # Not compressed, so that single rows can be read; members of more than 4 GiB need zip64.
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(_member(FEATURES), "w", force_zip64=True) as member:
            member.write(_header(tuple(X.shape), X.dtype))
            for block in blocks_of(X):
                rows = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
                digest.update(rows.data)
                member.write(rows.data)
        for name, column in columns.items():
            with archive.open(_member(name), "w", force_zip64=True) as member:
                npy.write_array(member, np.asarray(column), allow_pickle=False)
    return digest.hexdigest()


def read_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 (hex) of the rows of a file, as :func:`write_npz` returns it; their checksum in the
    archive is compared on the way.
    """
    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive, archive.open(f"{FEATURES}.npy") as member:
        npy.read_magic(member)
        npy.read_array_header_1_0(member)
        while part := member.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


def _member(name: str) -> zipfile.ZipInfo:
    # The same rows give the same bytes, whenever they are written.
    return zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))


def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    description = {
        "descr": npy.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    npy.write_array_header_1_0(stream, description)
    return stream.getvalue()
