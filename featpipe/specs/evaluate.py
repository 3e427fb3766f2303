"""Options of evaluation."""

from __future__ import annotations

from featpipe.specs.code import AllowCode
from featpipe.specs.fields import option, spec
from featpipe.specs.value_kinds import Text


@spec
class EvaluateSpec(AllowCode):
    """Which pictures a head is scored on."""

    on: str | None = option(
        Text(), "Data set.", default_text="the one that the head was trained on", default=None
    )
    split: str | None = option(
        Text(), "test, val, train or all.", default_text="test, else val", default=None
    )
