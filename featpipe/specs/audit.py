"""Options of an audit, and of the list with other labels that follows it."""

from __future__ import annotations

from pathlib import Path

from featpipe.specs.extract import DatasetName
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.heads import SEEDS
from featpipe.specs.spaces import SpaceQuery
from featpipe.specs.value_kinds import Flag, Folder, Number, Whole


@spec
class AuditSpec(SpaceQuery):
    """How a data set is searched for mistakes."""

    out: Path | None = option(
        Folder(), "Folder of the audit.", default_text="audits/NAME-NUMBER", default=None
    )
    overwrite: bool = option(
        Flag(), "Replace an audit that the folder already holds, its fixes too.", default=False
    )
    distance: float = option(
        Number(above=True),
        "Pictures are near duplicates if their distance is below this share of the median "
        "distance to the tenth neighbour.",
        default=0.2,
    )
    folds: int = option(
        Whole(low=2),
        "Probabilities of a picture come from a head trained on the other folds.",
        default=5,
    )
    seed: int = option(Whole(low=0, high=SEEDS - 1), "Draws the folds.", default=0)
    max_pairs: int = option(Whole(), "Largest number of near duplicates listed.", default=1000)
    max_outliers: int = option(Whole(), "Largest number of outliers listed.", default=50)
    min_class: int = option(Whole(), "A class of fewer pictures is called tiny.", default=5)


@spec
class RelabelSpec(Spec):
    """Where a list with other labels goes."""

    name: str | None = option(
        DatasetName(), "Name of the new data set.", default_text="NAME-relabelled", default=None
    )
    out: Path | None = option(
        Folder(),
        "Folder for the list that 'extract' takes.",
        default_text="that of FIXES",
        default=None,
    )
    overwrite: bool = option(Flag(), "Replace a data set and a list of that name.", default=False)
