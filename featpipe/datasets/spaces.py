"""The feature spaces of a data set: choosing one, and requiring one."""

from __future__ import annotations

from featpipe.base.errors import DamageError, NotFoundError, SpaceMismatchError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import Dataset
from featpipe.specs.fields import flag
from featpipe.specs.spaces import SpaceQuery


def choose_space(dataset: Dataset, query: SpaceQuery) -> tuple[FeatureSpace, str]:
    """The one feature space of a data set that has the fields asked for.

    Returns
    -------
    space : FeatureSpace
    weights : str
        How its weights were named when its features were made.

    Raises
    ------
    NotFoundError
        No space has them.
    UsageError
        Several spaces have them; the fields in which those differ are named.
    """
    held = [FeatureSpace.from_json(text) for text in dataset.spaces]
    fitting = [space for space in held if _has(space, _weights_name(dataset, space), query)]
    if not fitting:
        raise NotFoundError(
            f"expected features of data set '{dataset.name}' with {_asked(query)}, found: "
            f"{_listed(held) or 'none'}; extract them, or choose one of those"
        )
    if len(fitting) > 1:
        raise UsageError(
            f"expected options that choose one of the feature spaces of '{dataset.name}', found "
            f"{len(fitting)} spaces that differ in {_choices(dataset, fitting)}: "
            f"{_listed(fitting)}"
        )
    space = fitting[0]
    weights = _weights_name(dataset, space)
    if not weights:
        raise DamageError(
            f"expected data set '{dataset.name}' to name the weights of {space.name}, found none; "
            "run the same 'featpipe extract' again"
        )
    return space, weights


def _weights_name(dataset: Dataset, space: FeatureSpace) -> str:
    return dataset.info.weights.get(space.id, "")


def _fields(space: FeatureSpace) -> dict[str, object]:
    """What a query can ask of a space, except for its weights, by the names of the options."""
    return {
        "backbone": space.backbone,
        "tap": space.tap,
        "pool": space.pooling,
        "size": space.preprocessing.size,
        "resize": space.preprocessing.resize,
        "decoder": space.preprocessing.decoder,
        "precision": space.precision,
        "dtype": space.dtype,
        "view": space.view,
    }


def _has(space: FeatureSpace, weights: str, query: SpaceQuery) -> bool:
    if query.weights not in (None, weights) and not _is_digest(query.weights, space):
        return False
    return all(getattr(query, name) in (None, value) for name, value in _fields(space).items())


def _is_digest(weights: str | None, space: FeatureSpace) -> bool:
    """Whether a text is the beginning of the digest of a space's weights."""
    return weights is not None and len(weights) >= 8 and space.weights.startswith(weights)


def _asked(query: SpaceQuery) -> str:
    given = {name: getattr(query, name) for name in SpaceQuery.option_names()}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)


def _choices(dataset: Dataset, spaces: list[FeatureSpace]) -> str:
    """The options in which spaces differ, each with its values; by digest if by nothing else."""
    tables = [{"weights": _weights_name(dataset, space), **_fields(space)} for space in spaces]
    values = {name: list(dict.fromkeys(table[name] for table in tables)) for name in tables[0]}
    differing = {name: found for name, found in values.items() if len(found) > 1}
    if not differing:
        differing = {"weights": [space.weights[:12] for space in spaces]}
    return ", ".join(
        f"{flag(name)} ({', '.join(map(str, found))})" for name, found in differing.items()
    )


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
        f"{s.tap}/{s.pooling} ({s.backbone} {s.preprocessing.size}px {s.preprocessing.resize} "
        f"{s.precision})"
        for s in spaces
    )
