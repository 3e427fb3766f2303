"""Options of prediction."""

from __future__ import annotations

from featpipe.specs.code import AllowCode
from featpipe.specs.extract import EngineOptions
from featpipe.specs.fields import option, spec
from featpipe.specs.value_kinds import Text


@spec
class PredictSpec(AllowCode, EngineOptions):
    """How new pictures are classified."""

    weights: str | None = option(
        Text(),
        "Where the backbone's weights are now, if not where they were in training.",
        default=None,
    )
