"""A data set in the making: what is known of each record, and what is still to do."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, Reason
from featpipe.base.ids import DIGEST_BYTES, sortable
from featpipe.base.locations import Encoded, fingerprint
from featpipe.datasets.dataset import (
    NO_LABEL,
    NO_SPLIT,
    SPLIT_GIVEN,
    SPLITS,
    Dataset,
    DatasetInfo,
    SourceInfo,
    Status,
)
from featpipe.datasets.splits import split_unsplit
from featpipe.sources import Source

log = logging.getLogger("featpipe")

_SHOWN_CONFLICTS = 3


class DatasetDraft:
    """The columns of a data set in the making.

    Parameters
    ----------
    source : Source
    decoder : str
        What decides whether a picture is readable; see :class:`DatasetInfo`.

    Attributes
    ----------
    status : ndarray of int8, shape (n,)
        A :class:`Status`; at first TODO.
    ids : ndarray of uint8, shape (n, 32)
    stat : ndarray of int64, shape (n, 3)
    reasons : dict of int to Reason
        Of the quarantined records.
    """

    def __init__(self, source: Source, decoder: str) -> None:
        n = len(source.records)
        self.source = source
        self.decoder = decoder
        self.status = np.full(n, Status.TODO, np.int8)
        self.ids = np.zeros((n, DIGEST_BYTES), np.uint8)
        self.stat = np.full((n, 3), -1, np.int64)
        self.reasons: dict[int, Reason] = {}

    @property
    def todo(self) -> NDArray[np.intp]:
        """Numbers of the records of which nothing is known yet."""
        return np.flatnonzero(self.status == Status.TODO)

    @property
    def fine(self) -> NDArray[np.intp]:
        """Numbers of the records that are known and readable."""
        return np.flatnonzero(self.status == Status.OK)

    def recall(
        self, before: Dataset | None, *, retry_quarantined: bool, rehash: bool = False
    ) -> None:
        """Take over what the last extraction saw of files that have not changed since.

        Pictures that are not files are hashed: that is as quick as looking at a file.

        Parameters
        ----------
        before : Dataset or None
            The data set of that name so far.
        retry_quarantined : bool
            Try quarantined records again: their status stays TODO.
        rehash : bool
            Take nothing over: every file is read, and known by its content.
        """
        is_same = before is not None and before.source.root == str(self.source.root or "")
        known = before if is_same and not rehash else None
        row_of = {path: row for row, path in enumerate(known.paths)} if known else {}
        keep_bad = (
            not retry_quarantined and known is not None and known.info.decoder == self.decoder
        )
        for i, record in enumerate(self.source.records):
            location = self.source.locate(record.path)
            if isinstance(location, Encoded):
                self.ids[i] = np.frombuffer(hashlib.sha256(location.data).digest(), np.uint8)
                self.status[i] = Status.OK
            elif known is not None and (row := row_of.get(record.path)) is not None:
                self._recall_file(i, fingerprint(location), known, row, keep_bad=keep_bad)

    def require_rows(self, has_row: NDArray[np.bool_]) -> None:
        """Mark records that lack features as TODO.

        Parameters
        ----------
        has_row : ndarray of bool
            For each of :attr:`fine`, whether every store has its row.
        """
        self.status[self.fine[~has_row]] = Status.TODO

    def _recall_file(
        self, i: int, now: tuple[int, ...] | None, before: Dataset, row: int, *, keep_bad: bool
    ) -> None:
        seen = before.stat[row].tolist()
        bad = before.status[row] == Status.QUARANTINED
        if seen[0] < 0 or (bad and not keep_bad) or now is None or seen != list(now):
            return
        self.stat[i] = seen
        self.ids[i] = before.image_sha256[row]
        self.status[i] = before.status[row]
        if bad:
            self.reasons[i] = before.reasons[row]

    def quarantine(self, number: int, reason: Reason) -> None:
        """Enter that a record cannot be read."""
        self.status[number] = Status.QUARANTINED
        self.reasons[number] = reason

    def enter(
        self, numbers: NDArray[np.intp], ids: NDArray[np.uint8], stat: NDArray[np.int64]
    ) -> None:
        """Enter what was found out about records; those not quarantined are fine now."""
        self.ids[numbers], self.stat[numbers] = ids, stat
        is_open = self.status[numbers] == Status.TODO
        self.status[numbers[is_open]] = Status.OK

    def check_max_bad(self, max_bad: float) -> None:
        """Fail as soon as more pictures are bad than allowed.

        Raises
        ------
        DataError
        """
        n = len(self.status)
        if len(self.reasons) > max_bad * n:
            row, reason = next(iter(self.reasons.items()))
            path = self.source.records[row].path
            raise DataError(
                f"expected at most {max_bad * 100:.4g} % of {n} pictures to be unreadable, found "
                f"{len(self.reasons)} so far, among them {path!r} ({reason}); mend or remove "
                "them, or allow more with --max-bad"
            )

    def check_list_paths(self) -> None:
        """Fail where no path of a list leads to a file: then the list is wrong, not the files.

        Raises
        ------
        DataError
        """
        stages = {reason.stage for reason in self.reasons.values()}
        all_bad = len(self.reasons) == len(self.status)
        if self.source.kind == "list" and all_bad and stages == {"read"}:
            path, reason = self.source.records[0].path, self.reasons[0].text
            raise DataError(
                f"expected the paths of {self.source.spec} to lead to pictures below "
                f"{self.source.root}, found none that does ({path!r}: {reason}); name the folder "
                "they count from with --root"
            )

    def unique(self) -> int:
        """Number of different pictures among the readable ones."""
        return len(np.unique(sortable(self.ids[self.fine])))

    def freeze(self, name: str, shares: Sequence[float]) -> Dataset:
        """The data set, with splits."""
        records = self.source.records
        classes = sorted({record.label for record in records if record.label is not None})
        number = {label: i for i, label in enumerate(classes)}
        label = np.array([number.get(r.label or "", NO_LABEL) for r in records], np.int64)
        has_splits = any(record.split for record in records)
        split = np.full(len(records), NO_SPLIT, np.int8)
        if has_splits:
            split[:] = [SPLITS.index(r.split) if r.split else NO_SPLIT for r in records]
        self._warn_of_conflicts(label)
        dataset = Dataset(
            name=name,
            source=source_info(self.source),
            classes=classes,
            paths=[record.path for record in records],
            label=label,
            split=split,
            image_sha256=self.ids,
            status=self.status,
            stat=self.stat,
            reasons=dict(sorted(self.reasons.items())),
            info=DatasetInfo(self.decoder, SPLIT_GIVEN if has_splits else list(shares)),
        )
        split_unsplit(dataset)
        return dataset

    def _warn_of_conflicts(self, label: NDArray[np.int64]) -> None:
        unlabelled = int((label == NO_LABEL).sum())
        if 0 < unlabelled < len(label):
            log.warning("%d of %d pictures have no label", unlabelled, len(label))
        rows = np.flatnonzero((self.status == Status.OK) & (label != NO_LABEL))
        _, first, number = np.unique(
            sortable(self.ids[rows]), return_index=True, return_inverse=True
        )
        contradicted = np.unique(number[label[rows] != label[rows][first[number]]])
        if len(contradicted):
            # In the order of the list, not of the hashes.
            in_order = contradicted[np.argsort(first[contradicted])]
            copies = (rows[number == picture] for picture in in_order[:_SHOWN_CONFLICTS])
            shown = "; ".join(self._labels_of(some, label) for some in copies)
            log.warning(
                "%s under more than one label: %s%s",
                "1 picture appears" if len(in_order) == 1 else f"{len(in_order)} pictures appear",
                *(shown, "; …" if len(in_order) > _SHOWN_CONFLICTS else ""),
            )

    def _labels_of(self, rows: NDArray[np.intp], label: NDArray[np.int64]) -> str:
        """Paths of the same picture, one for each of its first labels."""
        _, first = np.unique(label[rows], return_index=True)
        records = [self.source.records[i] for i in rows[np.sort(first)[:_SHOWN_CONFLICTS]]]
        return ", ".join(f"{record.path!r} as {record.label!r}" for record in records)


def source_info(source: Source) -> SourceInfo:
    """What a data set file keeps of its source."""
    return SourceInfo(source.kind, source.spec, str(source.root or ""))
