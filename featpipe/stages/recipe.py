"""A recipe carried out: extract, train and evaluate every head, compare them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featpipe.base.errors import NotFoundError
from featpipe.base.own_code import is_own_code, load_factory
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.base.text import escape
from featpipe.specs.compare import CompareSpec
from featpipe.specs.heads import HeadSpec
from featpipe.specs.recipe import Recipe
from featpipe.specs.spaces import ALL
from featpipe.stages.compare import Comparison, compare
from featpipe.stages.evaluate import Evaluation, evaluate
from featpipe.stages.extract import ExtractResult, extract
from featpipe.stages.train import train_head
from featpipe.stages.train_result import TrainResult

if TYPE_CHECKING:
    from featpipe.stages.documents import HeadDocument, RecipeDocument


@dataclass(frozen=True)
class RecipeResult:
    """What a recipe gave: one extraction, and a head with its evaluation for each ``[[head]]``.

    ``comparison`` compares the heads; None where there is only one.
    """

    recipe: str
    extract: ExtractResult
    heads: list[tuple[TrainResult, Evaluation]]
    comparison: Comparison | None

    def as_json(self) -> RecipeDocument:
        """The result as the command prints it."""
        heads: list[HeadDocument] = [
            {"train": train.as_json(), "evaluation": done.as_json()} for train, done in self.heads
        ]
        return {
            "recipe": self.recipe,
            "extract": self.extract.as_json(),
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
        Instead of the recipe's.
    overwrite : bool
        Replace heads that ``out`` already holds.
    progress : Progress
        Told how each stage goes.
    """
    if data is None:
        check_data(recipe)
    for head in recipe.heads:
        if is_own_code(head.head):
            # Before anything is computed: it may not be permitted, or not be there.
            load_factory(head.head, what="head")
    extraction, heads = recipe.extract, recipe.heads
    if device is not None:
        extraction = dataclasses.replace(extraction, device=device)
        heads = tuple(dataclasses.replace(head, device=device) for head in heads)
    pictures = recipe.data if data is None else data
    extracted = extract(pictures, extraction, cache=cache, progress=progress)
    done = []
    for number, head in enumerate(heads, 1):
        folder = None if out is None else out / f"{number}-{head.slug}"
        spec = _on_own_features(head, extracted.spaces)
        spec = dataclasses.replace(spec, out=folder, overwrite=overwrite)
        trained = train_head(extraction.name, spec, cache=cache, progress=progress)
        done.append((trained, evaluate(trained.head, recipe.evaluate, cache=cache)))
    comparison = None
    if len(done) > 1:
        asked = CompareSpec(
            on=recipe.evaluate.on,
            split=done[0][1].split,
            out=None if out is None else out / "compare",
        )
        comparison = compare([trained.head for trained, _ in done], asked, cache=cache)
    return RecipeResult(str(recipe.path), extracted, done, comparison)


def _on_own_features(head: HeadSpec, extracted: list[FeatureSpace]) -> HeadSpec:
    """A head's spec that asks for the features of this recipe where the head leaves it open.

    The data set may also have features that other extractions computed.
    """
    fitting = [
        space
        for space in extracted
        if (head.tap in (None, (ALL,)) or space.tap in head.tap)
        and head.pool in (None, ALL, space.pooling)
        and (head.space is None or space.is_called(head.space))
    ]
    taps = head.tap or ()
    if not fitting or (len(fitting) != max(len(taps), 1) and not head.ranging):
        return head
    # Spaces of one extraction differ in tap and pooling alone.
    space = fitting[0]
    own: dict[str, Any] = {
        "backbone": space.backbone,
        # The digest is that of the weights up to a tap.
        "weights": space.weights if len({one.tap for one in fitting}) == 1 else head.weights,
        "tap": (space.tap,) if len(taps) < 2 else taps,
        "pool": space.pooling,
        "size": space.preprocessing.size,
        "resize": space.preprocessing.resize,
        "decoder": space.preprocessing.decoder,
        "precision": space.precision,
        "dtype": space.dtype,
    }
    others = ("backbone", "weights", "size", "resize", "decoder", "precision", "dtype")
    if any(getattr(head, name) not in (None, own[name]) for name in others):
        # It asks for other features than this recipe's.
        return head
    return dataclasses.replace(head, **{**own, **dict.fromkeys(head.ranging, ALL)})
