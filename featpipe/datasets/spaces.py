"""The feature spaces of a data set: choosing one, and requiring one."""

from __future__ import annotations

from featpipe.base.errors import DamageError, NotFoundError, SpaceMismatchError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import Dataset


def choose_space(
    dataset: Dataset, *, tap: str | None = None, pool: str | None = None, view: int = 0
) -> tuple[FeatureSpace, str]:
    """The one feature space of a data set that fits, and how its weights were named.

    Raises
    ------
    NotFoundError
        None fits.
    UsageError
        More than one fits.
    """
    held = [FeatureSpace.from_json(text) for text in dataset.spaces]
    fitting = [
        space
        for space in held
        if tap in (None, space.tap) and pool in (None, space.pooling) and view == space.view
    ]
    if not fitting:
        raise NotFoundError(
            f"expected features of data set '{dataset.name}' at tap {tap or 'any'}, pool "
            f"{pool or 'any'}, view {view}, found: {_listed(held) or 'none'}; "
            "extract them, or choose one of those"
        )
    # Of several that differ in other options, the latest extraction's comes first.
    if len({(space.tap, space.pooling) for space in fitting}) > 1:
        raise UsageError(
            f"expected --tap and --pool that name one of the feature spaces of "
            f"'{dataset.name}', found {len(fitting)}: {_listed(fitting)}"
        )
    named = dataset.info.get("weights")
    if not isinstance(named, dict) or not isinstance(named.get(fitting[0].id), str):
        raise DamageError(
            f"expected data set '{dataset.name}' to name the weights of {fitting[0].name}, found "
            "none; run the same 'featpipe extract' again"
        )
    return fitting[0], named[fitting[0].id]


def require_space(dataset: Dataset, wanted: FeatureSpace) -> None:
    """Check that a data set has features of exactly this space.

    Raises
    ------
    SpaceMismatchError
        It has not; the fields in which its nearest one differs are named.
    """
    held = [FeatureSpace.from_json(text) for text in dataset.spaces]
    if any(space.id == wanted.id for space in held):
        return
    differences = min((wanted.differences(space) for space in held), key=len, default=[])
    if any(difference.startswith("tap:") for difference in differences):
        # What follows from another tap would only distract from it.
        consequences = ("weights:", "shape:")
        differences = [d for d in differences if not d.startswith(consequences)]
    found = "; ".join(differences) or "no features at all"
    raise SpaceMismatchError(
        f"expected features of space {wanted.name} in data set '{dataset.name}', found others "
        f"({found}); extract '{dataset.name}' with the head's own options"
    )


def _listed(spaces: list[FeatureSpace]) -> str:
    return ", ".join(
        f"{s.tap}/{s.pooling} ({s.preprocessing.size}px {s.preprocessing.resize} {s.precision})"
        for s in spaces
    )
