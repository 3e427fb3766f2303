"""Cached features as arrays: the right rows, or a message that names the choice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.library import extract, train_head
from support.samples import in_splits, small_space, stored_set
from support.views import stored_views

import featpipe
from featpipe.base.cache import default_cache
from featpipe.base.errors import DamageError, NotFoundError, SpaceMismatchError, UsageError
from featpipe.base.space import Augmentation, FeatureSpace
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.datasets.spaces import choose_space, require_spaces
from featpipe.datasets.view_coverage import require_covered
from featpipe.integrations.arrays import open_features
from featpipe.specs.spaces import SpaceQuery
from featpipe.store.feature_store import FeatureStore

PREP = small_space().preprocessing
SEVERAL = [
    small_space(),
    small_space(tap="block2_pool", pooling="none", shape=(2, 3, 3), dtype="float32"),
    small_space(tap="block2_pool"),
]


@pytest.mark.parametrize(("split", "n"), [("train", 10), ("val", 4), ("test", 6), ("all", 20)])
def test_a_split_is_its_rows_and_labels(split: str, n: int, cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=5, val=2, test=3))
    X, y = open_features("set", split, cache=cache)
    assert X.shape == (n, 4) and len(X) == n and X.dtype == np.float16
    assert y.shape == (n,) and y.dtype == np.int64
    rows = dataset.in_split(split)
    assert np.array_equal(y, dataset.label[rows])
    stored = FeatureStore(cache, small_space()).rows(dataset.image_sha256)
    assert np.array_equal(np.asarray(X), np.asarray(stored)[rows])
    # The centre of a class lies six away on its own axis.
    assert (np.asarray(X)[:, :2].argmax(axis=1) == y).mean() > 0.9


def test_maps_keep_their_shape_and_dtype(cache: Path) -> None:
    stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    X, _ = open_features("set", tap="block2_pool", pool="none", cache=cache)
    assert X.shape == (6, 2, 3, 3) and X.dtype == np.float32
    assert X[0].shape == (2, 3, 3)


def test_unlabelled_pictures_are_minus_one(cache: Path) -> None:
    samples = [("a.png", None, None), ("b.png", "dog", None), ("c.png", None, None)]
    stored_set(cache, samples)
    _, y = open_features("set", "all", cache=cache)
    assert y.tolist() == [-1, 0, -1]


def test_features_are_mapped_and_cannot_be_written(cache: Path) -> None:
    stored_set(cache, in_splits(train=3))
    X, _ = open_features("set", cache=cache)
    assert isinstance(X, featpipe.FeatureRows)
    with pytest.raises(ValueError, match="read-only"):
        X[0:1][0, 0] = 1


def test_a_choice_among_several_spaces_must_be_made(cache: Path) -> None:
    stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    with pytest.raises(UsageError, match=r"found 3 .* --tap .*, --pool .*add --tap block1"):
        open_features("set", cache=cache)
    with pytest.raises(UsageError, match=r"found 2 .* --pool .*; .* add --pool none"):
        open_features("set", tap="block2_pool", cache=cache)
    with pytest.raises(UsageError, match=r"found 2 .* --tap .*; .* --tap block1_pool"):
        open_features("set", pool="avg", cache=cache)
    # Half a choice is enough where it leaves one.
    assert open_features("set", tap="block1_pool", cache=cache)[0].shape == (6, 4)
    assert open_features("set", pool="none", cache=cache)[0].shape == (6, 2, 3, 3)


@pytest.mark.parametrize(
    "choice", [{"tap": "block5_pool"}, {"pool": "max"}, {"view": 1}, {"tap": "x", "pool": "none"}]
)
def test_a_choice_that_fits_nothing_names_what_there_is(
    choice: dict[str, Any], cache: Path
) -> None:
    stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    with pytest.raises(
        NotFoundError, match=r"found: block1_pool/avg \(tiny 8px crop fp32.*\), block2"
    ):
        open_features("set", cache=cache, **choice)


def test_views_that_differ_in_augmentation_alone_are_told_apart(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=[small_space()])
    seeded = Augmentation(policy="flip", version=1, seed=4)
    made = [*stored_views(cache, dataset, (1,)), *stored_views(cache, dataset, (1,), drawn=seeded)]
    with pytest.raises(UsageError) as caught:
        choose_space(dataset, SpaceQuery(view=1))
    ids = [space.id[:8] for space in made]
    assert str(caught.value) == (
        "expected options that choose one of the feature spaces of 'set', found 2 spaces that "
        f"differ in augmentation (light seed 0, flip seed 4); for the first add --space {ids[0]}"
    )
    for note, name, of in zip(
        caught.value.__notes__[1:], ids, ("light seed 0", "flip seed 4"), strict=True
    ):
        assert f"--space {name}" in note and f"view 1 of {of}), 4 float16" in note


def test_views_are_listed_only_where_they_are_asked_for(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    stored_views(cache, dataset)
    with pytest.raises(NotFoundError) as caught:
        choose_space(dataset, SpaceQuery(tap="block3_pool"))
    assert str(caught.value).count("block1_pool") == 1
    assert len(caught.value.__notes__) == 1 + len(SEVERAL)
    assert not any("view" in note for note in caught.value.__notes__)
    with pytest.raises(NotFoundError) as caught:
        choose_space(dataset, SpaceQuery(tap="block3_pool", view=1))
    assert len(caught.value.__notes__) == 1 + 3 * len(SEVERAL)


def test_a_view_that_does_not_cover_a_picture_names_the_command(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3, val=2, test=2))
    (view,) = stored_views(cache, dataset, (1,))
    train, val = dataset.in_split("train"), dataset.in_split("val")
    require_covered(dataset, [view, small_space()], "random:0", train)
    require_covered(dataset, [small_space()], "random:0", val)
    with pytest.raises(NotFoundError) as caught:
        require_covered(dataset, [view], "random:0", np.concatenate([train, val]))
    assert str(caught.value) == (
        "expected view 1 (light, seed 0) of all 10 pictures, found it of train alone in data set "
        "'set'; compute it of val too: featpipe extract pretended --name set --weights random:0 "
        "--backbone tiny --tap block1_pool --pool avg --size 8 --precision fp32 --views 1 "
        "--augment light --augment-seed 0 --views-of val"
    )
    with pytest.raises(NotFoundError, match=r"--views-of test$"):
        open_features("set", "test", cache=cache, view=1)
    with pytest.raises(NotFoundError, match=r"--views-of val$"):
        train_head("set", cache=cache, view=1)


def test_a_head_on_maps_takes_those_that_are_not_pooled(cache: Path, tmp_path: Path) -> None:
    maps = small_space(pooling="none", shape=(3, 28, 28))
    stored_set(cache, in_splits(train=6, val=3), spaces=[small_space(), maps])
    options = {"epochs": 1, "device": "cpu"}
    done = train_head("set", cache=cache, head="lenet", out=tmp_path / "run", **options)
    assert done.spaces == [maps.id]
    with pytest.raises(UsageError, match="differ in --pool"):
        train_head("set", cache=cache, head="linear", **options)
    with pytest.raises(UsageError, match="found flat rows"):
        train_head("set", cache=cache, head="lenet", pool="avg", **options)


def test_what_is_not_there_is_named(cache: Path) -> None:
    stored_set(cache, in_splits(train=3, test=2))
    with pytest.raises(NotFoundError, match=r"data set 'sets' .* found: set; make it"):
        open_features("sets", cache=cache)
    with pytest.raises(NotFoundError, match=r"a split 'val' .* found: train, test"):
        open_features("set", "val", cache=cache)


def differing() -> list[FeatureSpace]:
    """Three spaces at one tap and pooling: they differ in backbone and size alone."""
    return [
        small_space(backbone=backbone, preprocessing=dataclasses.replace(PREP, size=size))
        for backbone, size in (("vgg19", 224), ("vgg16", 224), ("vgg16", 180))
    ]


def test_spaces_that_differ_in_any_field_are_not_guessed_between(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=differing())
    with pytest.raises(UsageError) as caught:
        choose_space(dataset, SpaceQuery())
    assert str(caught.value) == (
        "expected options that choose one of the feature spaces of 'set', found 3 spaces that "
        "differ in --backbone (vgg19, vgg16), --size (224, 180); for the first add "
        "--backbone vgg19 --size 224"
    )
    ids = [space.id[:8] for space in differing()]
    assert caught.value.__notes__ == [
        "options that choose it       or                features",
        f"--backbone vgg19 --size 224  --space {ids[0]}  block1_pool/avg (vgg19 224px crop fp32), "
        "4 float16",
        f"--backbone vgg16 --size 224  --space {ids[1]}  block1_pool/avg (vgg16 224px crop fp32), "
        "4 float16",
        f"--backbone vgg16 --size 180  --space {ids[2]}  block1_pool/avg (vgg16 180px crop fp32), "
        "4 float16",
    ]
    with pytest.raises(UsageError, match=r"found 2 spaces that differ in --size \(224, 180\)"):
        choose_space(dataset, SpaceQuery(backbone="vgg16"))


@pytest.mark.parametrize(
    ("changes", "query"),
    [
        ({"backbone": "vgg19"}, {"backbone": "vgg19"}),
        ({"tap": "block2_pool"}, {"tap": "block2_pool"}),
        ({"pooling": "max"}, {"pool": "max"}),
        ({"precision": "bf16"}, {"precision": "bf16"}),
        ({"dtype": "float32"}, {"dtype": "float32"}),
        ({"view": 1}, {"view": 1}),
        ({"weights": "cd" * 32}, {"weights": "random:1"}),
        ({"weights": "cd" * 32}, {"weights": "cdcdcdcd"}),
        ({"preprocessing": dataclasses.replace(PREP, size=64)}, {"size": 64}),
        ({"preprocessing": dataclasses.replace(PREP, resize="squash")}, {"resize": "squash"}),
        (
            {"preprocessing": dataclasses.replace(PREP, decoder="pillow-draft")},
            {"decoder": "pillow-draft"},
        ),
    ],
)
def test_every_field_can_be_asked_for(
    changes: dict[str, Any], query: dict[str, Any], cache: Path
) -> None:
    other = small_space(**changes)
    dataset = stored_set(cache, in_splits(train=3), spaces=[small_space(), other])
    dataset.info.weights = {small_space().id: "random:0", other.id: "random:1"}
    save_dataset(cache, dataset)
    assert choose_space(dataset, SpaceQuery(**query))[0] == other
    rows, _ = open_features("set", cache=cache, **query)
    assert rows.dtype == other.dtype


@pytest.mark.parametrize("length", [4, 8, 64])
def test_a_space_can_be_asked_for_by_the_beginning_of_its_id(length: int, cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    for space in SEVERAL:
        assert choose_space(dataset, SpaceQuery(space=space.id[:length]))[0] == space
        assert choose_space(dataset, SpaceQuery(space=space.name))[0] == space
        X, _ = open_features("set", cache=cache, space=space.id[:length])
        assert X.shape[1:] == space.shape


def test_an_id_says_which_view_is_meant(cache: Path) -> None:
    other = small_space(view=1)
    dataset = stored_set(cache, in_splits(train=3), spaces=[small_space(), other])
    assert choose_space(dataset, SpaceQuery(space=other.id[:8]))[0] == other


@pytest.mark.parametrize("beginning", ["", "abc", "ABCDEF", "xyz0", "a" * 65, "tiny-block1_pool"])
def test_what_cannot_be_the_beginning_of_an_id_is_refused(beginning: str) -> None:
    with pytest.raises(UsageError, match=r"at least 4 .* for --space, found"):
        SpaceQuery(space=beginning)


def test_an_unknown_beginning_is_not_found_and_an_ambiguous_one_is_no_choice(cache: Path) -> None:
    seen: dict[str, FeatureSpace] = {}
    for number in range(10_000):
        space = small_space(tap=f"block{number}")
        other = seen.setdefault(space.id[:4], space)
        if other is not space:
            break
    dataset = stored_set(cache, in_splits(train=3), spaces=[other, space])
    with pytest.raises(UsageError, match=rf"found 2 spaces that differ in --tap .* {space.tap}"):
        choose_space(dataset, SpaceQuery(space=space.id[:4]))
    with pytest.raises(NotFoundError, match=r"with space 0123456789, found: block") as caught:
        choose_space(dataset, SpaceQuery(space="0123456789"))
    assert len(caught.value.__notes__) == 3


def test_the_fewest_options_that_choose_a_space_are_shown(cache: Path) -> None:
    # They differ in tap, pooling and dtype; two of these are enough.
    dataset = stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    with pytest.raises(UsageError) as caught:
        choose_space(dataset, SpaceQuery())
    shown = [note.partition("  ")[0] for note in caught.value.__notes__[1:]]
    assert shown == [f"--tap {space.tap} --pool {space.pooling}" for space in SEVERAL]
    for space, options in zip(SEVERAL, shown, strict=True):
        words = options.replace("--", "").split()
        asked = dict(zip(words[::2], words[1::2], strict=True))
        assert choose_space(dataset, SpaceQuery(**asked))[0] == space


def test_where_no_option_tells_spaces_apart_their_ids_do(cache: Path) -> None:
    spaces = [small_space(), small_space(weights="cd" * 32)]
    dataset = stored_set(cache, in_splits(train=3), spaces=spaces)
    with pytest.raises(UsageError, match=rf"the first add --space {spaces[0].id[:8]}") as caught:
        choose_space(dataset, SpaceQuery())
    assert [note.split()[1] for note in caught.value.__notes__[1:]] == [s.id[:8] for s in spaces]


def test_weights_of_one_name_are_told_apart_by_their_digests(cache: Path) -> None:
    spaces = [small_space(), small_space(weights="cd" * 32)]
    dataset = stored_set(cache, in_splits(train=3), spaces=spaces)
    with pytest.raises(UsageError, match=r"differ in --weights \(abababababab, cdcdcdcdcdcd\)"):
        choose_space(dataset, SpaceQuery())
    assert choose_space(dataset, SpaceQuery(weights="cdcdcdcdcdcd"))[0] == spaces[1]


def test_every_extraction_is_opened_by_its_size(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    for size, side in ((16, 8), (32, 16), (16, 8)):
        extract(photo_folder, name="set", cache=cache, **{**tiny, "size": size})
        X, _ = open_features("set", "all", cache=cache, size=size)
        assert X.shape == (40, 64, side, side)
    # Both are still there, and each keeps the name of its weights.
    dataset = load_dataset(cache, "set")
    assert len(dataset.spaces) == 2
    assert choose_space(dataset, SpaceQuery(size=32))[1] == "random:0"


def test_a_space_that_is_there_is_enough(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=SEVERAL)
    for space in SEVERAL:
        require_spaces(dataset, [FeatureSpace.from_json(space.canonical_json)], "random:0")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"precision": "bf16"}, "precision: bf16, not fp32"),
        ({"dtype": "float32"}, "dtype: float32, not float16"),
        ({"weights": "cd" * 32}, "weights: cdcdcdcdcdcd…, not abababababab…"),
        (
            {"preprocessing": dataclasses.replace(PREP, size=9)},
            r"preprocessing\.size: 9, not 8",
        ),
        ({"view": 1}, "view: 1, not 0"),
    ],
)
def test_the_nearest_space_and_its_differences_are_named(
    change: dict[str, Any], named: str, cache: Path
) -> None:
    dataset = stored_set(cache, in_splits(train=3), spaces=[SEVERAL[1], SEVERAL[0]])
    with pytest.raises(
        SpaceMismatchError,
        match=rf"found others \({named}\); extract them: featpipe extract pretended --name set ",
    ):
        require_spaces(dataset, [small_space(**change)], "random:0")


def test_a_set_without_features_says_so(cache: Path) -> None:
    dataset = dataclasses.replace(stored_set(cache, in_splits(train=3)), spaces=[])
    with pytest.raises(SpaceMismatchError, match="no features at all"):
        require_spaces(dataset, [small_space()], "random:0")
    with pytest.raises(NotFoundError, match="found none; they were removed"):
        choose_space(dataset, SpaceQuery())


def test_a_damaged_row_is_refused_when_read(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=4))
    (segment,) = FeatureStore(cache, small_space()).segments_folder.glob("*.h5")
    X, _ = open_features("set", cache=cache)
    (place,) = [
        i
        for i in range(segment.stat().st_size)
        if segment.read_bytes()[i : i + 8] == np.asarray(X[2]).tobytes()
    ]
    data = bytearray(segment.read_bytes())
    data[place + 3] ^= 4
    segment.chmod(0o644)
    segment.write_bytes(data)
    X, y = open_features("set", cache=cache)
    assert len(y) == len(dataset.in_split("train"))
    assert np.isfinite(X[1]).all()
    with pytest.raises(DamageError, match="checksum"):
        X[2]


def test_the_cache_root_is_found_in_the_environment(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_set(cache, in_splits(train=3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEATPIPE_CACHE", raising=False)
    assert default_cache() == Path("cache")
    assert open_features("set")[0].shape == (6, 4)
    monkeypatch.setenv("FEATPIPE_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(NotFoundError, match="elsewhere"):
        open_features("set")
    # What is said outright beats the environment.
    assert open_features("set", cache=str(cache))[0].shape == (6, 4)
    monkeypatch.setenv("FEATPIPE_CACHE", "")
    assert default_cache() == Path("cache")


def test_a_tap_may_be_asked_for_by_any_of_its_names(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    extract(photo_folder, name="set", cache=cache, **{**tiny, "tap": "features.4"})
    dataset = load_dataset(cache, "set")
    for name in ("features.4", "block1_pool"):
        assert choose_space(dataset, SpaceQuery(tap=name))[0].tap == "block1_pool"


def test_what_was_asked_for_is_shown_of_what_is_there(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3))
    with pytest.raises(
        NotFoundError, match=r"with weights random:1, found: .*, weights random:0\)"
    ):
        choose_space(dataset, SpaceQuery(weights="random:1"))
    with pytest.raises(NotFoundError, match=r"with dtype float32, found: .*, dtype float16\)"):
        choose_space(dataset, SpaceQuery(dtype="float32"))


def test_a_space_that_is_listed_twice_is_one(cache: Path) -> None:
    dataset = stored_set(cache, in_splits(train=3))
    dataset.spaces *= 2
    assert choose_space(dataset, SpaceQuery())[0] == small_space()
