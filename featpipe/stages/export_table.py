"""Write a data set's features, labels, splits and paths as one file for other tools."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import TemporaryStream, writing_atomically
from featpipe.base.errors import CheckError, DataError
from featpipe.base.space import FeatureSpace
from featpipe.base.text import as_utf8
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space
from featpipe.exports import npz, parquet
from featpipe.specs.export import ExportSpec
from featpipe.store.feature_store import FeatureStore

if TYPE_CHECKING:
    from featpipe.stages.documents import TableExportDocument
    from featpipe.store.rows import FeatureRows


def export_table(name: str, spec: ExportSpec, *, cache: Path) -> TableExportDocument:
    """Write the rows of one feature space of a data set, block by block.

    Pictures in quarantine have no features and are left out. The file is read back before it gets
    its name.

    Parameters
    ----------
    name : str
        Data set.
    spec : ExportSpec
    cache : Path

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError, CheckError
    MissingPackageError
        pyarrow is not installed.
    """
    started = time.perf_counter()
    dataset = load_dataset(cache, name)
    space, _ = choose_space(dataset, spec)
    chosen = dataset.covered_by(space)
    if not len(chosen):
        raise DataError(f"expected usable pictures in data set '{name}', found none")
    rows = FeatureStore(cache, space).rows(dataset.image_sha256[chosen])
    write = {"npz": _write_npz, "parquet": _write_parquet}[spec.format]
    with writing_atomically(spec.out) as stream:
        digest = write(stream, rows, dataset, chosen, space)
        size = stream.size
    return {
        "format": spec.format,
        "file": str(spec.out),
        "bytes": size,
        "dataset": name,
        "space": space.name,
        "tap": space.tap,
        "pool": space.pooling,
        "shape": [len(chosen), *space.shape],
        "dtype": space.dtype,
        "classes": dataset.classes,
        "splits": _split_sizes(dataset, chosen),
        "features_sha256": digest,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _split_sizes(dataset: Dataset, chosen: NDArray[np.intp]) -> dict[str, int]:
    counts = {name: int((dataset.split[chosen] == i).sum()) for i, name in enumerate(SPLITS)}
    return {name: count for name, count in counts.items() if count}


def _about(dataset: Dataset, space: FeatureSpace) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_sha256": dataset.digest(),
        "classes": [as_utf8(name) for name in dataset.classes],
        "shape": list(space.shape),
        "feature_space": json.loads(space.canonical_json),
        "feature_space_id": space.id,
    }


def _write_npz(
    stream: TemporaryStream,
    rows: FeatureRows,
    dataset: Dataset,
    chosen: NDArray[np.intp],
    space: FeatureSpace,
) -> str:
    names = (*SPLITS, "")
    columns = {
        "labels": dataset.label[chosen],
        "classes": _texts([as_utf8(name) for name in dataset.classes]),
        "splits": _texts([names[i] for i in dataset.split[chosen]]),
        "paths": _texts([as_utf8(dataset.paths[i]) for i in chosen]),
        "ids": _texts([row.tobytes().hex() for row in dataset.image_sha256[chosen]]),
        "about": np.array(json.dumps(_about(dataset, space))),
    }
    digest = npz.write_npz(stream, rows, columns)
    stream.drain()
    _require(digest, npz.read_digest(stream.path))
    return digest


def _write_parquet(
    stream: TemporaryStream,
    rows: FeatureRows,
    dataset: Dataset,
    chosen: NDArray[np.intp],
    space: FeatureSpace,
) -> str:
    names = (*SPLITS, None)
    columns: dict[str, list[str | None]] = {
        "path": [as_utf8(dataset.paths[i]) for i in chosen],
        "id": [row.tobytes().hex() for row in dataset.image_sha256[chosen]],
        "split": [names[i] for i in dataset.split[chosen]],
        "label": [
            None if i == NO_LABEL else as_utf8(dataset.classes[i]) for i in dataset.label[chosen]
        ],
    }
    digest = parquet.write_parquet(
        stream,
        rows,
        columns,
        _about(dataset, space),
        dtype=np.dtype(space.dtype),
        what="--format parquet",
    )
    stream.drain()
    _require(digest, parquet.read_digest(stream.path))
    return digest


def _texts(values: list[str]) -> np.ndarray:
    return np.array(values, dtype=str)


def _require(written: str, found: str) -> None:
    if written != found:
        raise CheckError(
            f"expected the rows that were written (digest {written[:12]}…) in the file, found "
            f"others ({found[:12]}…); no file was kept: check the disk"
        )
