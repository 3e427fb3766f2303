"""A head's probabilities for the labelled pictures of a split."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DataError, NotFoundError
from featpipe.datasets.dataset import NO_LABEL, SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import require_spaces
from featpipe.datasets.view_coverage import require_covered
from featpipe.datasets.views import Views
from featpipe.reports.documents import ScaleScore
from featpipe.runs.run import Run
from featpipe.runs.trained_head import TrainedHead
from featpipe.specs.views import ViewChoice
from featpipe.stages.averaged_views import views_of_split, views_to_average
from featpipe.store.joined_rows import open_rows
from featpipe.store.row_array import RowArray


@dataclass(frozen=True)
class ToScore:
    """A head, and the labelled pictures of a split that it is to be scored on.

    Attributes
    ----------
    run : Run
    trained : TrainedHead
    dataset : Dataset
    split : str
        The one that was scored, whether or not somebody asked for it.
    is_fallback : bool
        Whether it is not test although nobody asked for another one.
    chosen : ndarray of intp, shape (n,)
        Numbers of the pictures in the data set.
    y : ndarray of int64, shape (n,)
        True classes, as indices into the head's classes.
    """

    run: Run
    trained: TrainedHead
    dataset: Dataset
    split: str
    is_fallback: bool
    chosen: NDArray[np.intp]
    y: NDArray[np.int64]

    @property
    def classes(self) -> list[str]:
        """The classes that the head knows."""
        return self.trained.head.classes_.tolist()

    @property
    def ids(self) -> NDArray[np.uint8]:
        """Image ids of the pictures, (n, 32)."""
        return self.dataset.image_sha256[self.chosen]

    def pictures(self) -> list[tuple[str, str]]:
        """Path and split of each picture; an empty text for one without a split."""
        names = (*SPLITS, "")
        dataset = self.dataset
        return [(dataset.paths[i], names[dataset.split[i]]) for i in self.chosen]

    def trained_on(self) -> list[str]:
        """Paths of the pictures whose very bytes the head was trained or validated on."""
        seen = {row.tobytes() for row in self.trained.train_ids}
        pairs = zip(self.chosen, self.ids, strict=True)
        return [self.dataset.paths[i] for i, image_id in pairs if image_id.tobytes() in seen]


@dataclass(frozen=True)
class Scored(ToScore):
    """A head, and what it says of the labelled pictures of a split.

    Attributes
    ----------
    probabilities : ndarray of float64, shape (n, classes)
        Rows sum to 1.
    views : Views, optional
        The views that the probabilities are averaged over, beside the picture itself; None: they
        are those of the picture.
    scales : list of ScaleScore
        Of each size that the probabilities are averaged over; empty where the pictures have the
        size of training alone.
    """

    probabilities: NDArray[np.float64]
    views: Views | None = None
    scales: list[ScaleScore] = field(default_factory=list)


def score_head(
    head: Path,
    *,
    on: str | None,
    split: str | None,
    cache: Path,
    averaged_views: ViewChoice | None = None,
    most_views: int | None = None,
) -> Scored:
    """Compute a head's probabilities for the labelled pictures of a split, from cached features.

    Parameters
    ----------
    head : Path
        Run folder.
    on : str or None
        Data set; None for the head's own.
    split : str or None
        None for test where it has labelled pictures, else val.
    cache : Path
    averaged_views : ViewChoice, optional
        Average the probabilities over each picture and its views, which have this.
    most_views : int, optional
        Only so many views are averaged over: the first ones.

    Raises
    ------
    NotFoundError
        No such head, data set or split; or none was asked for and there is neither test nor val;
        or no views to average over.
    SpaceMismatchError
        The data set has no features of one of the head's spaces.
    UsageError
        There are views of several augmentations, and nothing says which are meant.
    DataError
        Nothing to score, or a class the head does not know.
    """
    todo = pictures_to_score(head, on=on, split=split, cache=cache)
    trained = todo.trained
    require_spaces(todo.dataset, trained.spaces, trained.weights_name)
    require_covered(todo.dataset, trained.spaces, trained.weights_name, todo.chosen)
    each, views = [open_rows(cache, trained.spaces, todo.ids)], None
    if averaged_views is not None:
        views = views_to_average(todo.dataset, trained, todo.chosen, todo.split, averaged_views)
        views = views.first(most_views)
        each += views_of_split(cache, todo.dataset, trained, views, todo.chosen, todo.split)
    return Scored(**vars(todo), probabilities=_averaged(trained, each), views=views)


def pictures_to_score(head: Path, *, on: str | None, split: str | None, cache: Path) -> ToScore:
    """Choose the labelled pictures of a split; parameters and errors as :func:`score_head`."""
    run = Run.at(head)
    trained = run.load_head()
    dataset = load_dataset(cache, on if on is not None else str(trained.dataset["name"]))
    scored = split if split is not None else _split_to_score(dataset)
    chosen = _labelled(dataset, scored)
    return ToScore(
        run=run,
        trained=trained,
        dataset=dataset,
        split=scored,
        is_fallback=split is None and scored != "test",
        chosen=chosen,
        y=_labels(dataset, chosen, trained.head.classes_.tolist(), scored),
    )


def _averaged(trained: TrainedHead, each: list[RowArray]) -> NDArray[np.float64]:
    """A head's probabilities of rows in several views, averaged over the views."""
    first, *others = each
    total = trained.head.predict_proba(first)
    for rows in others:
        total += trained.head.predict_proba(rows)
    return total if not others else total / len(each)


def _split_to_score(dataset: Dataset) -> str:
    """Test, else val: the first of them that has labelled pictures."""
    there = [split for split in ("test", "val") if split in dataset.split_names]
    if not there:
        found = ", ".join(dataset.split_names) or "none"
        raise NotFoundError(
            f"expected a split 'test' or 'val' in data set '{dataset.name}', found: {found}; "
            "name one of those with --split, or 'all'"
        )
    return next((split for split in there if len(_labelled(dataset, split))), there[0])


def _labelled(dataset: Dataset, split: str) -> NDArray[np.intp]:
    """Row numbers of the usable pictures of a split that have a label."""
    rows = dataset.in_split(split)
    labelled: NDArray[np.intp] = rows[dataset.label[rows] != NO_LABEL]
    return labelled


def _labels(
    dataset: Dataset, chosen: NDArray[np.intp], classes: list[str], split: str
) -> NDArray[np.int64]:
    if not len(chosen):
        raise DataError(
            f"expected labelled pictures in split '{split}' of '{dataset.name}', found none"
        )
    number = {name: i for i, name in enumerate(classes)}
    names = [dataset.classes[i] for i in dataset.label[chosen]]
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise DataError(
            f"expected only classes the head knows ({', '.join(map(repr, classes[:5]))}"
            f"{', …' if len(classes) > 5 else ''}) in split '{split}' of '{dataset.name}', found "
            f"{', '.join(map(repr, unknown[:5]))}; train on pictures of every class"
        )
    return np.array([number[name] for name in names], np.int64)
