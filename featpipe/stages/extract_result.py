"""What an extraction did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from featpipe.base.space import Augmentation, FeatureSpace

if TYPE_CHECKING:
    from featpipe.stages.documents import ComputedViewsDocument, ExtractDocument


@dataclass(frozen=True)
class ViewsResult:
    """What the second pass of an extraction did.

    Attributes
    ----------
    augmentation : Augmentation
    number : int
        Views of each picture.
    of : tuple of str
        Splits whose pictures have them; ``all`` for every usable picture.
    pictures : int
        Different pictures of the pass.
    computed, reused : int
        Views that the backbone ran over; whose rows were there.
    is_complete : bool
        Whether the data set lists the views now. Of a sharded one, other jobs may have to go on.
    seconds : float
    stage_seconds : dict of str to float
    spaces : list of FeatureSpace
        View by view.
    """

    augmentation: Augmentation
    number: int
    of: tuple[str, ...]
    pictures: int
    computed: int
    reused: int
    is_complete: bool
    seconds: float
    stage_seconds: dict[str, float] = field(repr=False)
    spaces: list[FeatureSpace] = field(repr=False)

    def as_json(self) -> ComputedViewsDocument:
        """The result as the command prints it."""
        return {
            "policy": self.augmentation.policy,
            "version": self.augmentation.version,
            "seed": self.augmentation.seed,
            "number": self.number,
            "of": list(self.of),
            "pictures": self.pictures,
            "computed": self.computed,
            "reused": self.reused,
            "complete": self.is_complete,
            "seconds": self.seconds,
            "stage_seconds": self.stage_seconds,
        }


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did.

    Attributes
    ----------
    dataset : str
    spaces : list of FeatureSpace
    images : int
        Records of the source: computed + reused + duplicates + quarantined.
    computed, reused, duplicates, quarantined : int
        Pictures the backbone ran over; whose rows were there; that equal an earlier record;
        that could not be read.
    seconds, images_per_second : float
        Wall time; and images by it, without that of the views.
    stage_seconds : dict of str to float
    bottleneck : str
        The stage the others waited for; ``none`` where nothing was computed.
    classes : list of str
    splits : dict of str to int
        Usable pictures in each split.
    bad : list of tuple
        ``(path, stage, reason)`` of every quarantined picture.
    views : ViewsResult or None
        Of the second pass, where views were asked for.
    """

    dataset: str
    spaces: list[FeatureSpace] = field(repr=False)
    images: int
    computed: int
    reused: int
    duplicates: int
    quarantined: int
    seconds: float
    images_per_second: float
    stage_seconds: dict[str, float] = field(repr=False)
    bottleneck: str
    classes: list[str] = field(repr=False)
    splits: dict[str, int]
    bad: list[tuple[str, str, str]] = field(repr=False)
    views: ViewsResult | None = None

    def as_json(self) -> ExtractDocument:
        """The result as the command prints it."""
        spaces = [*self.spaces, *(self.views.spaces if self.views else [])]
        document: ExtractDocument = {
            "dataset": self.dataset,
            "spaces": [
                {
                    "id": s.id,
                    "tap": s.tap,
                    "pool": s.pooling,
                    "shape": list(s.shape),
                    "view": s.view,
                }
                for s in spaces
            ],
            "images": self.images,
            "computed": self.computed,
            "reused": self.reused,
            "duplicates": self.duplicates,
            "quarantined": self.quarantined,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "stage_seconds": self.stage_seconds,
            "bottleneck": self.bottleneck,
            "classes": self.classes,
            "splits": self.splits,
            "bad": [{"path": p, "stage": s, "reason": r} for p, s, r in self.bad],
        }
        if self.views is not None:
            document["views"] = self.views.as_json()
        return document
