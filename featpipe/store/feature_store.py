"""All rows of one feature space."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

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
        Cache root.
    space : FeatureSpace
    """

    def __init__(self, cache: Path, space: FeatureSpace) -> None:
        self.space = space
        self.folder = cache / "spaces" / space.name
        self._index: Index | None = None

    @property
    def segments_folder(self) -> Path:
        """Where the segments lie."""
        return self.folder / "segments"

    @property
    def index(self) -> Index:
        """The index, read on first use; :meth:`refresh` forgets it."""
        if self._index is None:
            self._index = load_index(self.folder, self.space)
        return self._index

    def refresh(self) -> None:
        """Look at the disk again on the next use."""
        self._index = None

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Which image ids (n, 32) have a row: (n,) bool."""
        return self.index.find(ids) >= 0

    def rows(self, ids: np.ndarray) -> FeatureRows:
        """The rows of image ids (n, 32), in that order.

        Raises
        ------
        NotFoundError
            Some image has no row here.
        """
        index = self.index
        place = index.find(ids)
        missing = int((place < 0).sum())
        if missing:
            raise NotFoundError(
                f"expected {len(ids)} rows in {self.folder}, found {len(ids) - missing}: "
                f"{missing} missing; run the same 'featpipe extract' again to compute them"
            )
        return FeatureRows(
            [self.segments_folder / f"{name.decode()}.h5" for name in index.names],
            index.offsets,
            index.counts,
            segment=index.segment[place],
            row=index.row[place],
            crc32=index.crc32[place],
            row_shape=self.space.shape,
            dtype=np.dtype(self.space.dtype),
        )

    def prepare(self) -> None:
        """Make the folder, write ``space.json`` once, clear dead writers' leftovers."""
        path = self.folder / "space.json"
        if not path.exists():
            write_atomically(path, space_text(self.space))
        for folder in (self.folder, self.segments_folder):
            if folder.is_dir():
                remove_leftovers(folder)

    def append(self, ids: np.ndarray, rows: np.ndarray, provenance: dict[str, str]) -> Path:
        """Commit rows (n, *shape) of image ids (n, 32) as one segment; returns its path."""
        data = build_segment(self.space, ids, rows, provenance)
        return write_segment(self.segments_folder, data)


def space_text(space: FeatureSpace) -> bytes:
    """Content of ``space.json``."""
    text = json.dumps(json.loads(space.canonical_json), indent=2, sort_keys=True)
    return text.encode() + b"\n"


def list_stores(cache: Path) -> list[FeatureStore]:
    """Every feature store of a cache; raises as :func:`open_store`."""
    spaces = cache / "spaces"
    folders = [spaces / name for name in names_in(spaces)]
    return [open_store(folder) for folder in folders if (folder / "space.json").exists()]


def open_store(folder: Path) -> FeatureStore:
    """The feature store in a folder, by what its ``space.json`` says.

    Raises
    ------
    DamageError
        The file is not a feature space, or lies in another space's folder.
    StorageError
        The file cannot be read.
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
    """The feature space of a store's folder, by what its segments say; None where none does."""
    for name in names_in(folder / "segments"):
        try:
            space = stored_space(folder / "segments" / name)
        except DamageError:
            continue
        if space.name == folder.name:
            return space
    return None
