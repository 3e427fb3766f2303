"""Give a data set other labels under another name. No picture is opened, nothing is computed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe.base.dataset_names import check_dataset_name
from featpipe.base.disk import write_atomically
from featpipe.base.errors import DataError, UsageError
from featpipe.datasets.contents import conflicting_contents
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import dataset_path, load_dataset, save_dataset
from featpipe.datasets.fixes import apply_fixes, as_list, in_list, read_fixes
from featpipe.datasets.spaces import options_of_extractions
from featpipe.sources import has_files
from featpipe.specs.audit import RelabelSpec
from featpipe.store.lease import shared_lease

if TYPE_CHECKING:
    from featpipe.stages.documents import RelabelDocument


@dataclass(frozen=True)
class RelabelResult:
    """A data set with other labels.

    Attributes
    ----------
    dataset : str
        The new data set.
    made_from : str
    pictures, relabelled, removed : int
        In the new list; with another label than before; no longer in it.
    new_classes, lost_classes : list of str
        Classes that only the new list has, or only the old one.
    conflicting : int
        Contents that the new list has under more than one label.
    data : Path or None
        The new list as a CSV for ``extract``; None where pictures are not files.
    root : str
        Folder that its paths count from.
    extract_options : list of str
        For each feature space that the data set has, the options of ``extract`` that compute it;
        those of a view stand with those of the pictures themselves.
    seconds : float
    """

    dataset: str
    made_from: str
    pictures: int
    relabelled: int
    removed: int
    new_classes: list[str]
    lost_classes: list[str]
    conflicting: int
    data: Path | None
    root: str
    extract_options: list[str]
    seconds: float

    def as_json(self) -> RelabelDocument:
        """The result as the command prints it."""
        return {
            "dataset": self.dataset,
            "made_from": self.made_from,
            "pictures": self.pictures,
            "relabelled": self.relabelled,
            "removed": self.removed,
            "new_classes": self.new_classes,
            "lost_classes": self.lost_classes,
            "conflicting": self.conflicting,
            "data": None if self.data is None else str(self.data),
            "root": self.root,
            "extract_options": self.extract_options,
            "seconds": self.seconds,
        }


def relabel(name: str, fixes: Path, spec: RelabelSpec, *, cache: Path) -> RelabelResult:
    """Write a data set with the labels that a CSV gives, and its list for ``extract``.

    Parameters
    ----------
    name : str
        The data set; it stays as it is.
    fixes : Path
        See :func:`featpipe.datasets.fixes.read_fixes`.
    spec : RelabelSpec
    cache : Path

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    started = time.perf_counter()
    check_dataset_name(name)
    new_name = f"{name}-relabelled" if spec.name is None else spec.name
    if new_name == name:
        raise UsageError(f"expected another name than that of the data set, found --name {name}")
    if not dataset_path(cache, name).exists():
        load_dataset(cache, name)  # says so; the lease would make a cache that is not there
    # What the new list names must not be removed before the list is there.
    with shared_lease(cache):
        dataset = load_dataset(cache, name)
        found = read_fixes(fixes, dataset)
        if not found:
            raise DataError(
                f"expected a fix in {fixes} (another label, or 'relabel' or 'remove' as the "
                "action), found none; edit it first"
            )
        new = apply_fixes(dataset, found, new_name)
        target = None
        root = dataset.source.root if has_files(dataset.source.kind) else ""
        if root:
            target = (fixes.parent if spec.out is None else spec.out) / f"{new_name}.csv"
            new.source = in_list(dataset.source, target)
        _check_may_replace(dataset_path(cache, new_name), b"", spec)
        if target is not None:
            listed = as_list(new)
            _check_spares(target, fixes, dataset)
            _check_may_replace(target, listed, spec)
            write_atomically(target, listed)
        save_dataset(cache, new)
    return RelabelResult(
        dataset=new_name,
        made_from=name,
        pictures=len(new),
        relabelled=sum(fix.label is not None for fix in found.values()),
        removed=sum(fix.remove for fix in found.values()),
        new_classes=sorted(set(new.classes) - set(dataset.classes)),
        lost_classes=sorted(set(dataset.classes) - set(new.classes)),
        conflicting=conflicting_contents(new),
        data=target,
        root=root,
        extract_options=options_of_extractions(new),
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_spares(target: Path, fixes: Path, dataset: Dataset) -> None:
    """Refuse to write the list over the fixes, or over what the data set was extracted from."""
    sources = {"the fixes": fixes, f"that of '{dataset.name}'": Path(dataset.source.spec)}
    for what, path in sources.items():
        if os.path.realpath(target) == os.path.realpath(path):
            raise UsageError(
                f"expected to write the list to another file than {what}, found {target}; name "
                "another folder with --out, or another --name"
            )


def _check_may_replace(path: Path, same: bytes, spec: RelabelSpec) -> None:
    """Refuse to replace a file, unless that was asked for, or it already is what is written."""
    if spec.overwrite or not os.path.lexists(path):
        return
    # A relabelling that was cut short has left the list without its data set.
    if same and path.is_file() and path.read_bytes() == same:
        return
    raise UsageError(
        f"expected a new name, found {path}; name another one with --name, or replace it "
        "with --overwrite"
    )
