"""A data set: a named, frozen list of pictures with ids, labels and splits."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import NotFoundError, Reason
from featpipe.base.space import FeatureSpace

SPLITS = ("train", "val", "test")
NO_SPLIT = -1
NO_LABEL = -1
_DIGITS = re.compile(r"[0-9]+")
SPLIT_GIVEN = "given"
"""Stands for the shares of a data set whose source has splits of its own."""


class Status(enum.IntEnum):
    """What is known of a picture; the values are those of the file format."""

    OK = 0
    QUARANTINED = 1
    TODO = 2
    """Nothing is known yet; never in a file."""


@dataclass(frozen=True)
class SourceInfo:
    """What a data set was read from: enough to read a picture again.

    Attributes
    ----------
    kind : str
        ``folder``, ``list``, ``digits`` or ``idx``.
    spec : str
        DATA as the user gave it.
    root : str
        Folder that the paths are relative to, or that holds the idx files; else empty.
    """

    kind: str
    spec: str
    root: str

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read what :func:`dataclasses.asdict` gives; raises ``ValueError`` on anything else."""
        fields = {name: document.get(name, "") for name in ("kind", "spec", "root")}
        if not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("its source is not named")
        return cls(**fields)


@dataclass
class DatasetInfo:
    """How a data set was made.

    Attributes
    ----------
    decoder : str
        Version and limits of the decoder that quarantined pictures; where they change, those
        pictures are tried again.
    split : str or list of float
        ``given``, or the shares of train, val and test.
    weights : dict of str to str
        How the weights of each feature space (by its id) were named.
    list : str
        Of one shard: digest of the whole list, see :func:`featpipe.datasets.shards.list_digest`.
    covers : dict of str to tuple of str
        Splits whose usable pictures have features of a space, by its id; all of those that are not
        named here cover every usable picture. Views mostly cover train alone.
    """

    decoder: str = ""
    split: str | list[float] = SPLIT_GIVEN
    weights: dict[str, str] = field(default_factory=dict)
    list: str = ""
    covers: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Read what :meth:`as_json` gives; raises ``ValueError`` on anything else."""
        weights = document.get("weights", {})
        if not isinstance(weights, dict) or not all(isinstance(n, str) for n in weights.values()):
            raise ValueError("the weights of its features are not named")
        decoder, split, digest = (document.get(k, "") for k in ("decoder", "split", "list"))
        if not isinstance(decoder, str) or not isinstance(digest, str):
            raise ValueError("its notes are not texts")
        if not isinstance(split, str) and not _are_shares(split):
            raise ValueError("its split is neither given nor a list of shares")
        covers = document.get("covers", {})
        if not isinstance(covers, dict) or not all(map(_are_splits, covers.values())):
            raise ValueError("the splits that its features cover are not named")
        covers = {space: tuple(splits) for space, splits in covers.items()}
        return cls(decoder, split, weights, digest, covers)

    def as_json(self) -> dict[str, Any]:
        """The header's ``info``; what is empty is left out."""
        fields = {
            "decoder": self.decoder,
            "split": self.split,
            "weights": self.weights,
            "list": self.list,
            "covers": self.covers,
        }
        return {name: value for name, value in fields.items() if value}


def _are_splits(covered: Any) -> bool:
    return isinstance(covered, list) and all(name in SPLITS for name in covered)


def _are_shares(split: Any) -> bool:
    is_whole = isinstance(split, list) and len(split) == len(SPLITS)
    return is_whole and all(isinstance(share, int | float) for share in split)


ClassCount = TypedDict(
    "ClassCount", {"class": str | None, "pictures": int, "splits": dict[str, int]}
)
"""Usable pictures of one class; those without a split are in ``pictures`` alone."""


@dataclass(frozen=True)
class ReasonGroup:
    """Quarantined pictures with one reason.

    Attributes
    ----------
    stage : str
    reason : str
        With ``N`` for numbers, in which the reasons of several pictures may differ.
    count : int
    example : str
        Path of the first.
    """

    stage: str
    reason: str
    count: int
    example: str


@dataclass
class Dataset:
    """A named, frozen list of samples.

    Attributes
    ----------
    name : str
    source : SourceInfo
    classes : list of str
        Class names, sorted; labels index into it.
    paths : list of str
        Relative to the source's root; bytes that are not UTF-8 as surrogate escapes.
    label : ndarray of int64, shape (n,)
        Class index, -1 where unlabelled.
    split : ndarray of int8, shape (n,)
        Index into ``SPLITS``, -1 where there is none.
    image_sha256 : ndarray of uint8, shape (n, 32)
        Image ids; zero where the file could not even be read.
    status : ndarray of int8, shape (n,)
        A :class:`Status`.
    stat : ndarray of int64, shape (n, 3)
        Size, modification and change time (ns) when the id was taken; -1 where not to be trusted.
    reasons : dict of int to Reason
        Of the quarantined rows.
    spaces : list of str
        Canonical JSON of the feature spaces that hold the rows of every usable picture, or of every
        one in the splits that ``info.covers`` names.
    info : DatasetInfo
    """

    name: str
    source: SourceInfo
    classes: list[str]
    paths: list[str]
    label: NDArray[np.int64]
    split: NDArray[np.int8]
    image_sha256: NDArray[np.uint8]
    status: NDArray[np.int8]
    stat: NDArray[np.int64]
    reasons: dict[int, Reason] = field(default_factory=dict)
    spaces: list[str] = field(default_factory=list)
    info: DatasetInfo = field(default_factory=DatasetInfo)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which rows have features: (n,) bool."""
        usable: NDArray[np.bool_] = self.status == Status.OK
        return usable

    @property
    def split_names(self) -> list[str]:
        """The splits that have at least one usable row, in the order train, val, test."""
        here = set(self.split[self.usable].tolist())
        return [name for number, name in enumerate(SPLITS) if number in here]

    def in_split(self, split: str) -> NDArray[np.intp]:
        """Row numbers of the usable samples of a split (``all`` for every one).

        Raises
        ------
        NotFoundError
            The data set has no such split.
        """
        if split == "all":
            return np.flatnonzero(self.usable)
        if split not in self.split_names:
            found = ", ".join(self.split_names) or "none"
            raise NotFoundError(
                f"expected a split '{split}' in data set '{self.name}', found: {found}; "
                "name one of those, or 'all'"
            )
        return np.flatnonzero(self.usable & (self.split == SPLITS.index(split)))

    def covered_by(self, space: FeatureSpace | str) -> NDArray[np.intp]:
        """Row numbers of the usable samples that a feature space, or the one of an id, covers."""
        splits = self.info.covers.get(space if isinstance(space, str) else space.id)
        if splits is None:
            return self.in_split("all")
        covered = np.isin(self.split, [SPLITS.index(name) for name in splits])
        return np.flatnonzero(self.usable & covered)

    def describe(self) -> dict[str, Any]:
        """The data set in figures, ready for JSON; ``covers`` where it has views of some splits."""
        splits = {name: len(self.in_split(name)) for name in self.split_names}
        spaces = [FeatureSpace.from_json(text) for text in self.spaces]
        covers = {s.name: list(self.info.covers[s.id]) for s in spaces if s.id in self.info.covers}
        return {
            "dataset": self.name,
            "source": self.source.spec,
            "pictures": len(self),
            "quarantined": len(self) - int(self.usable.sum()),
            "splits": splits,
            "classes": self.classes,
            "class_counts": self._class_counts(),
            "reasons": [dataclasses.asdict(group) for group in self.reason_groups()],
            "spaces": [space.name for space in spaces],
            **({"covers": covers} if covers else {}),
            "sha256": self.digest(),
        }

    def _class_counts(self) -> list[ClassCount]:
        """Usable pictures of each class, and of none if there are such, in each split."""
        counts = np.zeros((len(self.classes) + 1, len(SPLITS) + 1), np.int64)
        # Index -1, no label or no split, is the last row or column.
        np.add.at(counts, (self.label[self.usable], self.split[self.usable]), 1)
        found: list[ClassCount] = []
        for name, row in zip([*self.classes, None], counts.tolist(), strict=True):
            splits = dict(zip(SPLITS, row, strict=False))
            found.append({"class": name, "pictures": int(sum(row)), "splits": splits})
        return found if found[-1]["pictures"] else found[:-1]

    def reason_groups(self) -> list[ReasonGroup]:
        """Quarantined pictures by reason, the most frequent first."""
        rows_of: dict[Reason, list[int]] = {}
        for row, reason in self.reasons.items():
            # Sizes and offsets are those of one picture.
            pattern = Reason(reason.stage, _DIGITS.sub("N", reason.text))
            rows_of.setdefault(pattern, []).append(row)
        groups = []
        for pattern, rows in rows_of.items():
            texts = {self.reasons[row].text for row in rows}
            text = pattern.text if len(texts) > 1 else texts.pop()
            groups.append(ReasonGroup(pattern.stage, text, len(rows), self.paths[rows[0]]))
        return sorted(groups, key=lambda group: -group.count)

    def digest(self) -> str:
        """SHA-256 (hex) of what the list means: ids, labels, splits, class names."""
        return hashlib.sha256(
            json.dumps([self.classes]).encode()
            + self.image_sha256.tobytes()
            + self.label.astype("<i8").tobytes()
            + self.split.tobytes()
            + self.status.tobytes()
        ).hexdigest()
