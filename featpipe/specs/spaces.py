"""Which of a data set's feature spaces is meant."""

from __future__ import annotations

from typing import Any

from featpipe.base.choices import (
    ALL_CHANNELS,
    DECODERS,
    DTYPES,
    POOLINGS,
    PRECISIONS,
    RESIZES,
)
from featpipe.base.errors import UsageError
from featpipe.base.space import MIN_ID_BEGINNING, may_call_a_space
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Choice, Text, Whole

ALL = "all"
"""As tap or pooling of a sweep: every one that the data set has features of."""


class SpaceName:
    """The beginning of a feature space's id, or the name of its folder."""

    type_text = "str"

    def check(self, label: str, value: Any) -> str:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        if not isinstance(value, str) or not may_call_a_space(value):
            raise UsageError(
                f"expected the beginning of a feature space's id (at least {MIN_ID_BEGINNING} of "
                f"its hexadecimal digits) or the name of its folder for {label}, found {value!r}; "
                "'featpipe cache list' shows them"
            )
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        return {"type": "string", "minLength": MIN_ID_BEGINNING}


@spec
class SpaceFields(Spec):
    """Fields that feature spaces have in common; None leaves a field open."""

    backbone: str | None = option(
        Text(), "Which backbone, where the data set has several.", default=None
    )
    weights: str | None = option(
        Text(),
        "Which weights, as they were named in 'extract', where there are several.",
        default=None,
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
    channels: str | None = option(
        Choice(ALL_CHANNELS), "Which channels, where there are several.", default=None
    )
    precision: str | None = option(
        Choice(PRECISIONS), "Which precision, where there are several.", default=None
    )
    dtype: str | None = option(
        Choice(DTYPES), "Which stored dtype, where there are several.", default=None
    )
    view: int = option(Whole(low=0), "Which view; 0 is the picture itself.", default=0)
    space: str | None = option(
        SpaceName(),
        "Which feature space, by the beginning of its id, where there are several.",
        default=None,
    )


@spec
class SpaceQuery(SpaceFields):
    """Fields that a feature space must have; None leaves a field open."""

    tap: str | None = option(Text(), "Which tap, where there are several.", default=None)
    pool: str | None = option(
        Choice(POOLINGS), "Which pooling, where there are several.", default=None
    )
