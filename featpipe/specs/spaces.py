"""Which of a data set's feature spaces is meant."""

from __future__ import annotations

from featpipe.base.choices import DECODERS, DTYPES, POOLINGS, PRECISIONS, RESIZES
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Choice, Text, Whole


@spec
class SpaceQuery(Spec):
    """Fields that a feature space must have; None leaves a field open."""

    backbone: str | None = option(
        Text(), "Which backbone, where the data set has several.", default=None
    )
    weights: str | None = option(
        Text(),
        "Which weights, as they were named in 'extract', where there are several.",
        default=None,
    )
    tap: str | None = option(Text(), "Which tap, where there are several.", default=None)
    pool: str | None = option(
        Choice(POOLINGS), "Which pooling, where there are several.", default=None
    )
    size: int | None = option(
        Whole(), "Which input size in pixels, where there are several.", default=None
    )
    resize: str | None = option(
        Choice(RESIZES), "Which resizing, where there are several.", default=None
    )
    decoder: str | None = option(
        Choice(DECODERS), "Which decoder, where there are several.", default=None
    )
    precision: str | None = option(
        Choice(PRECISIONS), "Which precision, where there are several.", default=None
    )
    dtype: str | None = option(
        Choice(DTYPES), "Which stored dtype, where there are several.", default=None
    )
    view: int = option(Whole(low=0), "Which view; 0 is the picture itself.", default=0)
