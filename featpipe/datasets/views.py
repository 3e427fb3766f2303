"""The views that a data set holds of its feature spaces, and the choice of those of one policy."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.base.space import Augmentation, FeatureSpace
from featpipe.base.views import ViewsDocument, counted_views
from featpipe.datasets.dataset import NO_SPLIT, SPLITS, Dataset
from featpipe.datasets.source_command import extract_command
from featpipe.datasets.spaces import extract_options, spaces_of, view_options
from featpipe.specs.extract import ALL_PICTURES, DEFAULT_AUGMENT
from featpipe.specs.fields import flag
from featpipe.specs.views import ViewChoice

log = logging.getLogger("featpipe")

ADVISED_POLICY, ADVISED_VIEWS = DEFAULT_AUGMENT, 4
"""What is advised where nothing says which views."""


@dataclass(frozen=True)
class Views:
    """The views of one augmentation, of feature spaces whose rows lie side by side.

    Attributes
    ----------
    augmentation : Augmentation
    spaces : tuple of tuple of FeatureSpace
        The feature spaces of each view, in the order of those of view 0; at least one view.
    """

    augmentation: Augmentation
    spaces: tuple[tuple[FeatureSpace, ...], ...]

    @property
    def number(self) -> int:
        """How many views there are, view 0 not counted."""
        return len(self.spaces)

    def first(self, number: int | None) -> Views:
        """The first of the views; all of them for None."""
        return dataclasses.replace(self, spaces=self.spaces[:number])

    def __str__(self) -> str:
        return counted_views(self.number, self.augmentation.policy, self.augmentation.seed)

    def as_json(self) -> ViewsDocument:
        """What ``train-head`` prints of them, and a head's file keeps."""
        one = self.augmentation
        return {
            "policy": one.policy,
            "version": one.version,
            "seed": one.seed,
            "number": self.number,
        }


def find_views(
    dataset: Dataset, originals: Sequence[FeatureSpace], rows: NDArray[np.intp]
) -> list[Views]:
    """The views of feature spaces that a data set holds for given pictures, by augmentation.

    A view counts where every one of the feature spaces has it, and all views before it: heads and
    reports name views by their number. A warning tells which one is missing. Of several versions of
    a policy and seed the newest one counts.

    Parameters
    ----------
    dataset : Dataset
    originals : sequence of FeatureSpace
        Those of view 0; a space that is a view itself has none.
    rows : ndarray of int
        Row numbers of the pictures.
    """
    of_original: list[dict[tuple[Augmentation, int], FeatureSpace]] = [{} for _ in originals]
    numbers = {space.id: i for i, space in enumerate(originals)}
    for space, _ in spaces_of(dataset):
        drawn, i = space.augmentation, numbers.get(space.original.id)
        if drawn is None or i is None:
            continue
        if np.isin(rows, dataset.covered_by(space)).all():
            of_original[i][drawn, space.view] = space
    common = set.intersection(*(set(held) for held in of_original))
    newest: dict[tuple[str, int], Augmentation] = {}
    for one in sorted({one for one, _ in common}, key=lambda one: one.version):
        newest[one.policy, one.seed] = one
    found = []
    for _, one in sorted(newest.items()):
        held = {view for other, view in common if other == one}
        whole = range(1, min(set(range(1, max(held) + 2)) - held))
        if len(whole) < len(held):
            _warn_of_gap(dataset, originals, rows, one, len(whole), max(held))
        if whole:
            spaces = (tuple(of[one, view] for of in of_original) for view in whole)
            found.append(Views(one, tuple(spaces)))
    return found


def _warn_of_gap(
    dataset: Dataset,
    originals: Sequence[FeatureSpace],
    rows: NDArray[np.intp],
    one: Augmentation,
    whole: int,
    last: int,
) -> None:
    """Say that views after a missing one do not count, and which command computes it."""
    numbers = np.unique(dataset.split[rows]).tolist()
    split = SPLITS[numbers[0]] if len(numbers) == 1 and numbers[0] != NO_SPLIT else ALL_PICTURES
    weights = next(weights for space, weights in spaces_of(dataset) if space.original in originals)
    log.warning(
        "view %d (%s) of pictures of '%s' is missing, so of its %d views %s; compute it: %s",
        *(whole + 1, one, dataset.name, last),
        f"only the first {whole} count{'s' * (whole == 1)}" if whole else "none counts",
        views_command(
            *(dataset, originals, weights, split), number=last, policy=one.policy, seed=one.seed
        ),
    )


def fitting_views(found: Sequence[Views], choice: ViewChoice) -> list[Views]:
    """Those that have what the choice asks for."""
    return [
        views
        for views in found
        if choice.augment in (None, views.augmentation.policy)
        and choice.augment_seed in (None, views.augmentation.seed)
    ]


def only_views(found: Sequence[Views], dataset: Dataset, *, otherwise: str = "") -> Views | None:
    """The one of them; None where there is none.

    Parameters
    ----------
    found : sequence of Views
    dataset : Dataset
        For the message.
    otherwise : str
        What else could be done, for the message.

    Raises
    ------
    UsageError
        There are several.
    """
    if len(found) > 1:
        policies = {views.augmentation.policy for views in found}
        first = found[0].augmentation
        chosen = {"augment": first.policy} if len(policies) > 1 else {}
        if [views.augmentation.policy for views in found].count(first.policy) > 1:
            chosen["augment_seed"] = str(first.seed)
        flags = " and ".join(map(flag, chosen))
        example = " ".join(f"{flag(name)} {value}" for name, value in chosen.items())
        raise UsageError(
            f"expected {flags} to choose one of the views of '{dataset.name}', found "
            f"{len(found)}: {listed_views(found)}; for the first add {example}{otherwise}"
        )
    return found[0] if found else None


def listed_views(found: Sequence[Views]) -> str:
    """``2 views (flip), 4 views (light)``, or ``none``."""
    return ", ".join(map(str, found)) or "none"


def asked_words(choice: ViewChoice) -> str:
    """`` of policy light and seed 3``; empty where nothing is asked for."""
    given = {"policy": choice.augment, "seed": choice.augment_seed}
    words = " and ".join(f"{name} {value}" for name, value in given.items() if value is not None)
    return f" of {words}" if words else ""


def views_command(
    dataset: Dataset,
    originals: Sequence[FeatureSpace],
    weights: str,
    split: str,
    *,
    number: int | None = None,
    policy: str | None = None,
    seed: int | None = None,
) -> str:
    """The command that computes views, to be copied.

    Parameters
    ----------
    dataset : Dataset
    originals : sequence of FeatureSpace
        Those of view 0.
    weights : str
        How their weights are named.
    split : str
        Whose pictures' views.
    number, policy, seed
        Of the views; what is None is advised.
    """
    options = [
        extract_options(originals, weights),
        view_options(policy or ADVISED_POLICY, seed or 0, [split], number or ADVISED_VIEWS),
    ]
    return extract_command(dataset, *options)
