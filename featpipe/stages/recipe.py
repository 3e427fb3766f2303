"""A recipe carried out: extract, train and evaluate every head, compare them."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from featpipe.base.errors import NotFoundError
from featpipe.base.own_code import is_own_code, load_factory
from featpipe.base.progress import Progress, no_progress
from featpipe.base.text import escape
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import space_options, spaces_of
from featpipe.specs.head_params import params_of
from featpipe.specs.heads import HeadSpec
from featpipe.specs.offered_features import Offer, agreed, fitting, ranging
from featpipe.specs.offered_views import AskedViews, Extraction, averaged_views, training_views
from featpipe.specs.recipe import Recipe
from featpipe.specs.views import ViewChoice
from featpipe.stages.compare import Comparison, compare_scored
from featpipe.stages.evaluate import Evaluation, evaluate_scored
from featpipe.stages.extract import extract
from featpipe.stages.extract_result import ExtractResult
from featpipe.stages.scales import score_as
from featpipe.stages.train import train_head
from featpipe.stages.train_result import TrainResult

if TYPE_CHECKING:
    from featpipe.stages.documents import HeadDocument, RecipeDocument

_ChoiceT = TypeVar("_ChoiceT", bound=ViewChoice)


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe gave: its extractions, and a head with its evaluation for each ``[[head]]``.

    ``comparison`` compares the heads; None where there is only one.
    """

    recipe: str
    extracts: list[ExtractResult]
    heads: list[tuple[TrainResult, Evaluation]]
    comparison: Comparison | None

    @property
    def extract(self) -> ExtractResult:
        """The first extraction; most recipes have no other."""
        return self.extracts[0]

    def as_json(self) -> RecipeDocument:
        """The result as the command prints it."""
        heads: list[HeadDocument] = [
            {"train": train.as_json(), "evaluation": done.as_json()} for train, done in self.heads
        ]
        extracts = [done.as_json() for done in self.extracts]
        return {
            "recipe": self.recipe,
            "extract": extracts[0],
            "extracts": extracts,
            "heads": heads,
            "comparison": None if self.comparison is None else self.comparison.as_json(),
        }


def check_data(recipe: Recipe) -> None:
    """Check that the recipe's own DATA is there.

    Raises
    ------
    NotFoundError
    """
    if not recipe.data.startswith("sklearn:") and not os.path.exists(recipe.data):
        raise NotFoundError(
            f"expected the pictures of recipe {escape(str(recipe.path))} in "
            f"{escape(recipe.data)}, found nothing there; name yours with --data"
        )


def run_recipe(
    recipe: Recipe,
    *,
    cache: Path,
    data: str | None = None,
    out: Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> RecipeResult:
    """Extract, then train and evaluate every head, then compare them.

    Parameters
    ----------
    recipe : Recipe
    cache : Path
    data : str, optional
        Instead of the recipe's DATA; a relative path counts from the current folder.
    out : Path, optional
        Run folders are made in it, one per head, named by number and kind, and ``compare``.
    device : str, optional
        Instead of the recipe's, for every extraction and every head.
    overwrite : bool
        Replace heads that ``out`` already holds.
    progress : Progress
        Told how each stage goes.

    Raises
    ------
    FeatpipeError
        See the classes in :mod:`featpipe.base.errors`.
    """
    if data is None:
        check_data(recipe)
    for head in recipe.heads:
        if is_own_code(head.head):
            # Before anything is computed: it may not be permitted, or not be there.
            load_factory(head.head, what="head")
    pictures = recipe.data if data is None else data
    extracts, heads, asked = recipe.extracts, recipe.heads, recipe.evaluate
    if device is not None:
        extracts = tuple(dataclasses.replace(one, device=device) for one in extracts)
        heads = tuple(dataclasses.replace(head, device=device) for head in heads)
        asked = dataclasses.replace(asked, device=device)
    extracted = [
        extract(pictures, spec, cache=cache, progress=_numbered(progress, number, extracts))
        for number, spec in enumerate(extracts, 1)
    ]
    dataset = load_dataset(cache, extracted[0].dataset)
    offers = [_offers(dataset, one) for one in extracted]
    if asked.split is not None and asked.on is None:
        # Where that split is missing, it is said before a head is trained.
        dataset.in_split(asked.split)
    done, scores = [], []
    for number, head in enumerate(heads, 1):
        folder = None if out is None else out / f"{number}-{head.slug}"
        own = list(zip(extracts, (_called(head, some) for some in offers), strict=True))
        spec, drawn = _on_own_views(head, own)
        spec = _on_own_features(spec, _different(offers))
        spec = dataclasses.replace(spec, out=folder, overwrite=overwrite)
        bar = _numbered(progress, number, heads)
        trained = train_head(
            dataset.name, spec, cache=cache, progress=bar, most_views=_number(drawn)
        )
        started = time.perf_counter()
        averaged = averaged_views(head, asked, own)
        scored = score_as(
            trained.head,
            asked if averaged is None else _of_views(asked, averaged),
            cache=cache,
            progress=bar,
            most_views=_number(averaged),
        )
        scores.append(scored)
        done.append((trained, evaluate_scored(scored, asked, cache=cache, started=started)))
    comparison = None
    if len(done) > 1:
        folder = None if out is None else out / "compare"
        comparison = compare_scored(scores, folder, started=time.perf_counter())
    return RecipeResult(str(recipe.path), extracted, done, comparison)


def _numbered(progress: Progress, number: int, of: Sequence[object]) -> Progress:
    """Progress that also says which of several extractions or heads it is of."""
    if len(of) == 1:
        return progress
    return lambda what, total: progress(f"{what}, {number} of {len(of)}", total)


def _offers(dataset: Dataset, extracted: ExtractResult) -> list[Offer]:
    """What the feature spaces of an extraction offer to heads; the data set may have others."""
    own = {space.id for space in extracted.spaces}
    return [
        {**space_options(dataset, space), "space": space.id, "folder": space.name}
        for space, _ in spaces_of(dataset)
        if space.id in own
    ]


def _different(offers: Sequence[Sequence[Offer]]) -> list[Offer]:
    """What several extractions offer, each feature space once."""
    return list({offer["space"]: offer for some in offers for offer in some}.values())


def _called(head: HeadSpec, offers: Sequence[Offer]) -> list[Offer]:
    """Those of the feature space that a head names; all where it names none."""
    named = head.space
    if named is None:
        return list(offers)
    return [one for one in offers if named == one["folder"] or one["space"].startswith(named)]


def _on_own_views(
    head: HeadSpec, extractions: Sequence[Extraction]
) -> tuple[HeadSpec, AskedViews | None]:
    """A head's spec that draws from the views of this recipe alone, and these views.

    The data set may have others, of earlier extractions: a head draws from those only where it
    asks for them and the recipe extracts none.
    """
    views = training_views(head, extractions)
    if views is not None:
        return _of_views(head, views), views
    if head.is_open and params_of(head.head).draws_views:
        return dataclasses.replace(head, no_views=True), None
    return head, None


def _of_views(spec: _ChoiceT, views: AskedViews) -> _ChoiceT:
    return dataclasses.replace(spec, augment=views.policy, augment_seed=views.seed)


def _number(views: AskedViews | None) -> int | None:
    return None if views is None else views.number


def _on_own_features(head: HeadSpec, offers: Sequence[Offer]) -> HeadSpec:
    """A head's spec that asks for the features of this recipe where the head leaves it open."""
    fits = fitting(head, offers)
    if head.space is not None or not fits:
        # It asks for other features than this recipe's, or for one by its id.
        return head
    if len(fits) == 1 and not ranging(head):
        return dataclasses.replace(head, space=fits[0]["space"])
    return dataclasses.replace(head, **agreed(head, fits))
