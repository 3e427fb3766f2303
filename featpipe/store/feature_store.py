"""The feature store: all stored rows of one feature space."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import names_in, read_regular, remove_leftovers, write_atomically
from featpipe.base.errors import DamageError, NotFoundError, StorageError
from featpipe.base.space import FeatureSpace
from featpipe.store.index import Index, load_index
from featpipe.store.rows import FeatureRows
from featpipe.store.segments import build_segment, stored_space, write_segment


class FeatureStore:
    """The folder of all segments of one feature space.

    Parameters
    ----------
    cache : Path
        Root folder of the cache.
    space : FeatureSpace
    """

    def __init__(self, cache: Path, space: FeatureSpace) -> None:
        self.space = space
        self.folder = cache / "spaces" / space.name
        self._index: Index | None = None

    @property
    def segments_folder(self) -> Path:
        """Folder of the segment files."""
        return self.folder / "segments"

    @property
    def index(self) -> Index:
        """The index, read on first use and kept until :meth:`refresh`."""
        if self._index is None:
            self._index = load_index(self.folder, self.space)
        return self._index

    def refresh(self) -> None:
        """Discard the index, so that the next use reads the disk again."""
        self._index = None

    def contains(self, ids: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which image ids (n, 32) have a row: (n,) bool."""
        return self.index.find(ids) >= 0

    def rows(self, ids: NDArray[np.uint8]) -> FeatureRows:
        """The rows of image ids (n, 32), in that order.

        Raises
        ------
        NotFoundError
            An image has no row in this store.
        """
        index = self.index
        position = index.find(ids)
        if (position < 0).any():
            # A listing may miss a segment that is replaced meanwhile, and the one that replaces it.
            self.refresh()
            index = self.index
            position = index.find(ids)
        missing = int((position < 0).sum())
        if missing:
            raise NotFoundError(
                f"expected {len(ids)} rows in {self.folder}, found {len(ids) - missing}: "
                f"{missing} missing; run the same 'featpipe extract' again to compute them"
            )
        return FeatureRows(
            [self.segments_folder / f"{name.decode()}.h5" for name in index.names],
            index.offsets,
            index.counts,
            segment=index.segment[position],
            row=index.row[position],
            crc32=index.crc32[position],
            row_shape=self.space.shape,
            dtype=np.dtype(self.space.dtype),
            ids=ids,
            look_up=functools.partial(_look_up, self.folder.parents[1], self.space),
        )

    def prepare(self) -> None:
        """Create the folder and ``space.json`` if missing; delete abandoned temporary files."""
        path = self.folder / "space.json"
        if not path.exists():
            write_atomically(path, space_text(self.space))
        for folder in (self.folder, self.segments_folder):
            if folder.is_dir():
                remove_leftovers(folder)

    def append(self, ids: NDArray[np.uint8], rows: np.ndarray, provenance: dict[str, str]) -> Path:
        """Write rows (n, *shape) of image ids (n, 32) as one segment; returns its path."""
        data = build_segment(self.space, ids, rows, provenance)
        return write_segment(self.segments_folder, data)


def _look_up(cache: Path, space: FeatureSpace, ids: NDArray[np.uint8]) -> FeatureRows:
    return FeatureStore(cache, space).rows(ids)


def space_text(space: FeatureSpace) -> bytes:
    """Content of ``space.json``."""
    text = json.dumps(json.loads(space.canonical_json), indent=2, sort_keys=True)
    return text.encode() + b"\n"


def list_stores(cache: Path) -> list[FeatureStore]:
    """Every feature store of a cache; raises as :func:`open_store`."""
    spaces = cache / "spaces"
    folders = [spaces / name for name in names_in(spaces) if not name.startswith(".")]
    return [open_store(folder) for folder in folders if (folder / "space.json").exists()]


def open_store(folder: Path) -> FeatureStore:
    """The feature store in a folder; its ``space.json`` names the feature space.

    Raises
    ------
    DamageError
        ``space.json`` is missing, invalid, or describes another folder's feature space.
    StorageError
        ``space.json`` cannot be read.
    """
    path = folder / "space.json"
    try:
        space = FeatureSpace.from_json(read_regular(path).decode(errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(
            f"expected {path} to say what is stored there, found none; run the same "
            "'featpipe extract' again to write it, or move the folder away"
        ) from None
    except OSError as error:
        raise StorageError(f"expected to read {path}, but: {error.strerror}") from error
    except DamageError as error:
        raise DamageError(f"{path}: {error}") from error
    if space.name != folder.name:
        raise DamageError(
            f"expected the feature space of {folder.name} in {path}, found that of "
            f"{space.name}; move the folder back to its own name"
        )
    return FeatureStore(folder.parents[1], space)


def space_of_segments(folder: Path) -> FeatureSpace | None:
    """The feature space that a store's segments record; None if no segment matches the folder."""
    for name in names_in(folder / "segments"):
        try:
            space = stored_space(folder / "segments" / name)
        except DamageError:
            continue
        if space.name == folder.name:
            return space
    return None
