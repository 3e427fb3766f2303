"""Which views a data set holds of its feature spaces, of which pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.samples import in_splits, small_space, stored_set
from support.views import LIGHT, stored_views, view_of

from featpipe.base.errors import UsageError
from featpipe.base.space import Augmentation
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.views import (
    Views,
    find_views,
    fitting_views,
    listed_views,
    only_views,
    views_command,
)
from featpipe.specs.views import ViewChoice

FIRST = small_space()
SECOND = small_space(tap="block2_pool", shape=(5,))
FLIP = Augmentation(policy="flip", version=1)
SEEDED = Augmentation(policy="light", version=LIGHT.version, seed=7)
SAMPLES = in_splits(train=3, val=2, test=2)


@pytest.fixture
def dataset(cache: Path) -> Dataset:
    return stored_set(cache, SAMPLES, spaces=[FIRST, SECOND])


def found(dataset: Dataset, *spaces: object, split: str = "train") -> list[Views]:
    return find_views(dataset, spaces, dataset.in_split(split))  # type: ignore[arg-type]


def test_views_are_found_by_augmentation_in_the_order_of_their_numbers(
    dataset: Dataset, cache: Path
) -> None:
    assert found(dataset, FIRST) == []
    stored_views(cache, dataset, (2, 1), spaces=[FIRST])
    stored_views(cache, dataset, (1,), spaces=[FIRST], drawn=SEEDED)
    stored_views(cache, dataset, (1,), spaces=[FIRST], drawn=FLIP)
    light = Views(LIGHT, ((view_of(FIRST, 1),), (view_of(FIRST, 2),)))
    flip, seeded = (Views(one, ((view_of(FIRST, 1, one),),)) for one in (FLIP, SEEDED))
    assert found(dataset, FIRST) == [flip, light, seeded]
    assert found(dataset, SECOND) == []
    assert [str(one) for one in (flip, light, seeded)] == [
        "1 view (flip)",
        "2 views (light)",
        "1 view (light, seed 7)",
    ]
    assert light.as_json() == {"policy": "light", "version": LIGHT.version, "seed": 0, "number": 2}
    # A view has no views.
    assert found(dataset, view_of(FIRST, 1)) == []


def test_taps_side_by_side_have_the_views_that_each_has(dataset: Dataset, cache: Path) -> None:
    stored_views(cache, dataset, (1, 2, 3), spaces=[FIRST])
    assert found(dataset, FIRST, SECOND) == []
    stored_views(cache, dataset, (2, 1), spaces=[SECOND])
    (views,) = found(dataset, SECOND, FIRST)
    assert views.spaces == tuple((view_of(SECOND, v), view_of(FIRST, v)) for v in (1, 2))


def test_only_views_without_a_gap_count(
    dataset: Dataset, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored_views(cache, dataset, (1, 3, 4), spaces=[FIRST])
    (views,) = found(dataset, FIRST)
    assert views.spaces == ((view_of(FIRST, 1),),) and views.number == 1
    command = views_command(dataset, [FIRST], "random:0", "train", number=4, policy="light")
    assert caplog.messages == [
        "view 2 (light, seed 0) of pictures of 'set' is missing, so of its 4 views only the first "
        f"1 counts; compute it: {command}"
    ]
    caplog.clear()
    stored_views(cache, dataset, (2,), spaces=[FIRST], drawn=FLIP, of=["train", "val"])
    rows = np.concatenate([dataset.in_split("train"), dataset.in_split("val")])
    assert find_views(dataset, [FIRST], rows) == []
    (message,) = caplog.messages
    assert "view 1 (flip, seed 0)" in message and "of its 2 views none counts" in message
    assert message.endswith("--views 2 --augment flip --augment-seed 0 --views-of all")


def test_views_count_where_they_cover_every_picture(dataset: Dataset, cache: Path) -> None:
    stored_views(cache, dataset, (1, 2), spaces=[FIRST])
    stored_views(cache, dataset, (1,), spaces=[FIRST], of=["train", "test"], drawn=FLIP)
    assert [one.number for one in found(dataset, FIRST)] == [1, 2]
    assert listed_views(found(dataset, FIRST, split="test")) == "1 view (flip)"
    assert listed_views(found(dataset, FIRST, split="all")) == "none"
    # Without a note, a space covers all.
    dataset.info.covers.clear()
    assert [one.number for one in found(dataset, FIRST, split="all")] == [1, 2]


def test_of_several_versions_the_newest_counts(dataset: Dataset, cache: Path) -> None:
    newer = Augmentation(policy="light", version=12)
    for one, views in ((newer, (1,)), (LIGHT, (1, 2))):
        stored_views(cache, dataset, views, spaces=[FIRST], drawn=one)
    (views,) = found(dataset, FIRST)
    assert views.augmentation == newer and views.number == 1


def test_an_ambiguity_names_the_options_that_resolve_it(dataset: Dataset, cache: Path) -> None:
    for one in (LIGHT, SEEDED, FLIP):
        stored_views(cache, dataset, (1,), spaces=[FIRST], drawn=one)
    held = found(dataset, FIRST)
    messages = {}
    for policy in (None, "light"):
        with pytest.raises(UsageError) as caught:
            only_views(
                fitting_views(held, ViewChoice(augment=policy)), dataset, otherwise=", or go"
            )
        messages[policy] = str(caught.value)
    assert messages == {
        None: "expected --augment to choose one of the views of 'set', found 3: 1 view (flip), "
        "1 view (light), 1 view (light, seed 7); for the first add --augment flip, or go",
        "light": "expected --augment-seed to choose one of the views of 'set', found 2: 1 view "
        "(light), 1 view (light, seed 7); for the first add --augment-seed 0, or go",
    }
    for choice, expected in (
        ({"augment": "flip"}, FLIP),
        ({"augment": "light", "augment_seed": 7}, SEEDED),
        ({"augment_seed": 7}, SEEDED),
    ):
        chosen = only_views(fitting_views(held, ViewChoice(**choice)), dataset)  # type: ignore[arg-type]
        assert chosen is not None and chosen.augmentation == expected
    assert only_views([], dataset) is None


def test_the_command_that_makes_them_is_whole(dataset: Dataset) -> None:
    assert views_command(dataset, [FIRST, SECOND], "random:0", "test", policy="flip") == (
        "featpipe extract pretended --name set --weights random:0 --backbone tiny --tap "
        "block1_pool "
        "--tap block2_pool --pool avg --size 8 --precision fp32 --views 4 --augment flip "
        "--augment-seed 0 --views-of test"
    )
    seeded = views_command(dataset, [FIRST], "random:0", "train", number=2, seed=3)
    assert seeded.endswith("--views 2 --augment light --augment-seed 3 --views-of train")


def test_pictures_of_no_split_are_not_covered_by_splits(cache: Path) -> None:
    dataset = stored_set(cache, [*SAMPLES, ("loose.png", "cat", None)], spaces=[FIRST])
    stored_views(cache, dataset, (1,), of=["train", "val", "test"])
    assert found(dataset, FIRST, split="all") == []
    assert len(find_views(dataset, [FIRST], np.arange(len(SAMPLES)))) == 1
