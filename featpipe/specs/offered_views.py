"""Which of the views that a recipe extracts its heads draw from, and average over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from featpipe.base.errors import UsageError
from featpipe.base.views import counted_views
from featpipe.specs.evaluate import EvaluateSpec
from featpipe.specs.extract import ALL_PICTURES, ExtractSpec
from featpipe.specs.head_params import params_of
from featpipe.specs.heads import HeadSpec
from featpipe.specs.offered_features import CHOOSING, Offer, fitting, offers_of
from featpipe.specs.views import ViewChoice

Extraction = tuple[ExtractSpec, Sequence[Offer]]
"""An extraction and the features that it offers."""

_Views = dict[tuple[str, int], int]
"""Numbers of views by policy and seed."""


@dataclass(frozen=True)
class AskedViews:
    """Views that an extraction was asked for."""

    policy: str
    seed: int
    number: int


def check_views(
    heads: Sequence[HeadSpec], evaluation: EvaluateSpec, extracts: Sequence[ExtractSpec]
) -> None:
    """Refuse heads and averages whose views a recipe leaves open or does not extract.

    Raises
    ------
    UsageError
    """
    extractions = [(one, offers_of([one])) for one in extracts]
    for head in heads:
        # Which features a named space has is known when they are extracted.
        if head.space is None:
            training_views(head, extractions)
            averaged_views(head, evaluation, extractions)


def training_views(head: HeadSpec, extractions: Sequence[Extraction]) -> AskedViews | None:
    """The views that a head draws from: those of train that its features are extracted with.

    None where it draws from none, and where it asks for some that the recipe does not extract.

    Raises
    ------
    UsageError
        The recipe leaves open which, or the head asks for others.
    """
    if head.no_views or head.view or not params_of(head.head).draws_views:
        return None
    asked = _asked(head, extractions, lambda spec: _covers(spec, "train"))
    fits = [_chosen(views, head) for views in asked]
    every = {key: number for views in asked for key, number in views.items()}
    if not any(fits):
        if every and not head.is_open:
            raise UsageError(
                "expected 'augment' and 'augment_seed' in [[head]] to fit the views that [extract] "
                f"asks for, found that of kind {head.head!r} to fit none of: {_listed(every)}; "
                "leave them out, or change 'augment' in [extract]"
            )
        return None
    if any(views != fits[0] for views in fits):
        raise UsageError(
            "expected the same views of all features that a [[head]] is trained on, found other "
            f"ones among those of kind {head.head!r}; change 'views' in the [[extract]] tables, "
            "or add no_views = true to that [[head]]"
        )
    return _only(fits[0], f"[[head]] of kind {head.head!r}")


def averaged_views(
    head: HeadSpec, evaluation: EvaluateSpec, extractions: Sequence[Extraction]
) -> AskedViews | None:
    """The views that a head's probabilities are averaged over: those of the evaluated split.

    Where there are several, they are of the augmentation that the head was trained on. None where
    nothing is averaged, or where the features or the pictures are not this recipe's.

    Raises
    ------
    UsageError
        The recipe extracts no such views, or leaves open which.
    """
    if not evaluation.tta or evaluation.on is not None or head.view:
        return None
    split = evaluation.split
    # Nobody knows yet whether there is a test split: without one, val is evaluated.
    meant = ("test", "val") if split is None else (split,)
    asked = _asked(head, extractions, lambda spec: any(_covers(spec, one) for one in meant))
    if not asked:
        return None
    fits = [_chosen(views, evaluation) for views in asked]
    common = set.intersection(*map(set, fits))
    if not common:
        named = split or "test"
        words = f"'{evaluation.augment}' views" if evaluation.augment else "views"
        raise UsageError(
            f"expected {words} of the evaluated split for 'tta' in [evaluate], found none of "
            f"{named} in [extract]; add 'views' there, with views_of = "
            f'["train", "{named}"], or leave out \'tta\''
        )
    drawn = training_views(head, extractions)
    if drawn is not None and evaluation.is_open and (drawn.policy, drawn.seed) in common:
        common = {(drawn.policy, drawn.seed)}
    return _only({key: min(views[key] for views in fits) for key in common}, "[evaluate]")


def _asked(
    head: HeadSpec, extractions: Sequence[Extraction], counts: Callable[[ExtractSpec], bool]
) -> list[_Views]:
    """Of each of the features that a head may mean, the views that are extracted."""
    found: dict[tuple[object, ...], _Views] = {}
    for spec, offers in extractions:
        for offer in fitting(head, offers):
            views = found.setdefault(tuple(offer[name] for name in CHOOSING), {})
            if spec.views and counts(spec):
                key = (spec.policy, spec.augment_seed)
                views[key] = max(spec.views, views.get(key, 0))
    return list(found.values())


def _covers(spec: ExtractSpec, split: str) -> bool:
    every = {"train", "val", "test"} <= set(spec.views_of) and split == ALL_PICTURES
    return every or bool({split, ALL_PICTURES} & set(spec.views_of))


def _chosen(views: _Views, choice: ViewChoice) -> _Views:
    return {
        (policy, seed): number
        for (policy, seed), number in views.items()
        if choice.augment in (None, policy) and choice.augment_seed in (None, seed)
    }


def _only(views: _Views, section: str) -> AskedViews:
    if len(views) > 1:
        policies = {policy for policy, _ in views}
        key = "augment" if len(policies) > 1 else "augment_seed"
        raise UsageError(
            f"expected '{key}' in {section} to choose one of the views that are extracted, found "
            f"{len(views)}: {_listed(views)}; add '{key}'"
        )
    (((policy, seed), number),) = views.items()
    return AskedViews(policy, seed, number)


def _listed(views: _Views) -> str:
    return ", ".join(
        counted_views(number, policy, seed) for (policy, seed), number in sorted(views.items())
    )
