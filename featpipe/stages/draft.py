"""The samples of a data set in the making: what is known of each, and what is still to do."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence

import numpy as np

from featpipe.base.disk import file_fingerprint
from featpipe.base.errors import DataError
from featpipe.base.ids import sortable
from featpipe.datasets.files import NO_LABEL, NO_SPLIT, OK, QUARANTINED, SPLITS, Dataset
from featpipe.datasets.shards import split_unsplit
from featpipe.engine.loop import Outcome
from featpipe.sources import Source
from featpipe.store.feature_store import FeatureStore

log = logging.getLogger("featpipe")

TODO = 2
"""Beside ``OK`` and ``QUARANTINED``: nothing is known of this record yet."""

_SETTLE_NS = 2 * 10**9
"""A file changed this shortly before it was read may change again within its timestamp."""
_UNTRUSTED = (-1, -1, -1)


class Samples:
    """The columns of the data set in the making."""

    def __init__(self, source: Source, decoder: str) -> None:
        n = len(source.records)
        self.source = source
        self.decoder = decoder
        self.state = np.full(n, TODO, np.int8)
        self.ids = np.zeros((n, 32), np.uint8)
        self.stat = np.full((n, 3), -1, np.int64)
        self.reasons: dict[int, list[str]] = {}
        self.computed = 0

    def recall(
        self,
        before: Dataset | None,
        stores: list[FeatureStore],
        *,
        retry_quarantined: bool,
        rehash: bool = False,
    ) -> None:
        """Take over what the last run saw of files that have not changed since.

        ``rehash`` takes nothing over: every file is read, and known by its content.
        """
        if self.source.root is None:
            self._hash_records()
        elif rehash:
            return
        elif before is not None and before.source.get("root") == str(self.source.root):
            self._recall_files(before, retry_quarantined=retry_quarantined)
        # An unchanged file still has work to do where a store lacks its row.
        fine = np.flatnonzero(self.state == OK)
        have = np.ones(len(fine), bool)
        for store in stores:
            have &= store.contains(self.ids[fine])
        self.state[fine[~have]] = TODO

    def _hash_records(self) -> None:
        for i, record in enumerate(self.source.records):
            data = self.payload(record.path)
            self.ids[i] = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
            self.state[i] = OK

    def _recall_files(self, before: Dataset, *, retry_quarantined: bool) -> None:
        row_of = {path: row for row, path in enumerate(before.paths)}
        keep_bad = not retry_quarantined and before.info.get("decoder") == self.decoder
        root = str(self.source.root)
        old_stat = before.stat.tolist()
        for i, record in enumerate(self.source.records):
            row = row_of.get(record.path)
            if row is None or old_stat[row][0] < 0:
                continue
            bad = before.status[row] == QUARANTINED
            if (bad and not keep_bad) or old_stat[row] != _stat(root, record.path):
                continue
            self.stat[i] = before.stat[row]
            self.ids[i] = before.image_sha256[row]
            self.state[i] = before.status[row]
            if bad:
                self.reasons[i] = before.reasons[row]

    def payload(self, path: str) -> bytes:
        """Bytes of a record that is not a file."""
        assert self.source.read_record is not None
        return self.source.read_record(path)

    def take(self, outcome: Outcome) -> None:
        """Enter what became of one record."""
        i = outcome.key
        if outcome.image_id is not None:
            self.ids[i] = np.frombuffer(outcome.image_id, np.uint8)
        if outcome.stat is not None:
            settled = time.time_ns() - max(outcome.stat[1:]) > _SETTLE_NS
            self.stat[i] = outcome.stat if settled else _UNTRUSTED
        if outcome.kind == "bad":
            self.state[i] = QUARANTINED
            self.reasons[i] = [outcome.stage, outcome.reason]
        else:
            self.state[i] = OK
            self.computed += outcome.kind == "computed"

    def check_max_bad(self, max_bad: float) -> None:
        """Fail as soon as more pictures are bad than allowed."""
        n = len(self.state)
        if len(self.reasons) > max_bad * n:
            row, (stage, reason) = next(iter(self.reasons.items()))
            path = self.source.records[row].path
            raise DataError(
                f"expected at most {max_bad * 100:.4g} % of {n} pictures to be unreadable, found "
                f"{len(self.reasons)} so far, among them {path!r} ({stage}: {reason}); mend or "
                "remove them, or allow more with --max-bad"
            )

    def check_list_paths(self) -> None:
        """Fail where not one path of a list leads to a file: then it is the list that is wrong."""
        stages = {stage for stage, _ in self.reasons.values()}
        if (
            self.source.kind == "list"
            and len(self.reasons) == len(self.state)
            and stages == {"read"}
        ):
            path, reason = self.source.records[0].path, self.reasons[0][1]
            raise DataError(
                f"expected the paths of {self.source.spec} to lead to pictures below "
                f"{self.source.root}, found none that does ({path!r}: {reason}); name the folder "
                "they count from with --root"
            )

    def counts(self) -> dict[str, int]:
        """Numbers for the result; each record counts once."""
        fine = self.state == OK
        unique = len(np.unique(sortable(self.ids[fine])))
        return {
            "images": len(self.state),
            "computed": self.computed,
            "reused": unique - self.computed,
            "duplicates": int(fine.sum()) - unique,
            "quarantined": int((self.state == QUARANTINED).sum()),
        }

    def freeze(self, name: str, fractions: Sequence[float]) -> Dataset:
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
            source=self.source.describe(),
            classes=classes,
            paths=[record.path for record in records],
            label=label,
            split=split,
            image_sha256=self.ids,
            status=self.state,
            stat=self.stat,
            reasons=self.reasons,
            info={
                "decoder": self.decoder,
                "split": "given" if has_splits else list(fractions),
            },
        )
        split_unsplit(dataset)
        return dataset

    def _warn_of_conflicts(self, label: np.ndarray) -> None:
        unlabelled = int((label == NO_LABEL).sum())
        if 0 < unlabelled < len(label):
            log.warning("%d of %d pictures have no label", unlabelled, len(label))
        fine = (self.state == OK) & (label != NO_LABEL)
        _, first, number = np.unique(
            sortable(self.ids[fine]), return_index=True, return_inverse=True
        )
        contradicted = np.unique(number[label[fine] != label[fine][first[number]]])
        if len(contradicted):
            log.warning("%d pictures appear under more than one label", len(contradicted))


def _stat(root: str, path: str) -> list[int] | None:
    try:
        status = os.stat(os.path.join(root, path))
    except OSError:
        return None
    return list(file_fingerprint(status))
