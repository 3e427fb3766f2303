"""Options of prediction."""

from __future__ import annotations

from pathlib import Path

from featpipe.specs.code import AllowCode
from featpipe.specs.extract import EngineOptions
from featpipe.specs.fields import option, spec
from featpipe.specs.value_kinds import Folder, Text


@spec
class PredictSpec(AllowCode, EngineOptions):
    """How new pictures are classified."""

    weights: str | None = option(
        Text(),
        "Where the backbone's weights are now, if not where they were in training.",
        default=None,
    )
    maps: Path | None = option(
        Folder(),
        "Folder for a score map of each picture: where it looks like the class it is given, as "
        "colours over it (PNG). About five times slower.",
        default=None,
    )
