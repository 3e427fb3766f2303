"""Options of collecting the garbage of a cache."""

from __future__ import annotations

from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Flag, Number

HOUR_S = 3600.0


@spec
class GarbageSpec(Spec):
    """What ``featpipe cache gc`` can be told, besides the cache."""

    grace: float = option(
        Number(), "Hours that rows stay after they were written, named or not.", default=24.0
    )
    dry_run: bool = option(Flag(), "Only say what would go.", default=False)
