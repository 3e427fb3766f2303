"""Options of comparing heads, and of listing runs."""

from __future__ import annotations

from pathlib import Path

from featpipe.specs.code import AllowCode
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Choice, Folder, Text

RUN_ORDERS = ("val", "test", "age", "name")


@spec
class CompareSpec(AllowCode):
    """On which pictures heads are compared, and where the page goes."""

    on: str | None = option(
        Text(),
        "Data set; needed where the heads' own ones have different pictures in the split.",
        default_text="the one that the heads were trained on",
        default=None,
    )
    split: str | None = option(
        Text(), "test, val, train or all.", default_text="test, else val", default=None
    )
    out: Path | None = option(
        Folder(),
        "Folder for comparison.html and comparison.json.",
        default_text="comparisons/NAME-NUMBER",
        default=None,
    )


@spec
class RunsSpec(Spec):
    """How runs are listed."""

    sort: str = option(
        Choice(RUN_ORDERS),
        "val: highest validation accuracy of each data set first; test: highest test accuracy; "
        "age: newest first; name.",
        default="val",
    )
