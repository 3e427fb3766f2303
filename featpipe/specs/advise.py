"""Options of advice on what to try next."""

from __future__ import annotations

from featpipe.specs.code import AllowCode
from featpipe.specs.fields import default_of, option, spec
from featpipe.specs.heads import SEEDS, HeadSpec
from featpipe.specs.value_kinds import Number, Whole


@spec
class AdviseSpec(AllowCode):
    """How the facts that advice is given from are measured."""

    val: float = option(
        Number(high=1.0, above=True),
        "Share of train to validate on, where the data set has no val.",
        default=default_of(HeadSpec, "val"),
    )
    seed: int = option(
        Whole(low=0, high=SEEDS - 3),
        "Chooses the pictures of the learning curve: this one and the next two.",
        default=0,
    )
    max_pictures: int = option(
        Whole(high=None),
        "Largest number of pictures of train, and of validation, that are measured; of more, a "
        "share of each class, by content.",
        default=20_000,
    )
