"""Views in the cache: computed once, of the pictures asked for, and listed when they are whole."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import TINY_FLAGS, Run, json_of
from support.idx import write_idx
from support.library import extract, plan_extraction
from support.samples import class_picture

from featpipe.backbones import network
from featpipe.base.errors import DataError, NotFoundError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.datasets.dataset import SPLITS, Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.named_rows import NamedRows
from featpipe.decoding import pool
from featpipe.decoding.augmentation import augmentation
from featpipe.decoding.views import load_views
from featpipe.engine import extractor as runner
from featpipe.specs.extract import ExtractSpec
from featpipe.stages.extract_result import ExtractResult
from featpipe.store.feature_store import FeatureStore


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many networks were built, pictures decoded, and views computed."""
    counts = {"networks": 0, "decoded": 0, "computed": 0}

    class CountedPool(runner.DecodePool):
        def decode(self, tasks: Any) -> Iterator[Any]:
            for result in super().decode(tasks):
                counts["decoded"] += result is not None and result.kind == "pixels"
                yield result

    class CountedNetwork(network.Network):
        def __init__(self, *args: Any, **options: Any) -> None:
            counts["networks"] += 1
            super().__init__(*args, **options)

        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            counts["computed"] += len(pixels)
            return super().__call__(pixels)

    monkeypatch.setattr(runner, "DecodePool", CountedPool)
    monkeypatch.setattr(network, "Network", CountedNetwork)
    return counts


@pytest.fixture(autouse=True)
def settled_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust what was seen of files made a moment ago."""
    monkeypatch.setattr(runner, "_SETTLED_NS", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Given splits: 6 pictures of each class in train, 2 in val, 2 in test."""
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for label in (0, 1):
            folder = tmp_path / "split" / split / str(label)
            folder.mkdir(parents=True)
            for seed in range(count):
                number = 100 * SPLITS.index(split) + seed
                class_picture(label, number).save(folder / f"{seed}.png")
    return tmp_path / "split"


TRAIN, VAL, TEST = 12, 4, 4


def go(data: Any, cache: Path, tiny: dict[str, Any], **options: Any) -> ExtractResult:
    return extract(data, **{"name": "set", "cache": cache, "batch_size": 5, **tiny, **options})


def views_of(dataset: Dataset) -> dict[int, tuple[str, ...] | None]:
    """The views that a data set lists, with the splits that they cover."""
    spaces = [FeatureSpace.from_json(text) for text in dataset.spaces]
    return {s.view: dataset.info.covers.get(s.id) for s in spaces if s.view}


def reset(work: dict[str, int]) -> None:
    work.update(dict.fromkeys(work, 0))


def test_train_has_views_beside_the_pictures(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    done = go(photos, cache, tiny, views=3)
    assert done.computed == TRAIN + VAL + TEST
    assert done.views is not None
    assert (done.views.pictures, done.views.computed, done.views.reused) == (TRAIN, 3 * TRAIN, 0)
    # Decoded once more for all three views, by the network of the first pass.
    assert work == {
        "networks": 1,
        "decoded": TRAIN + VAL + TEST + TRAIN,
        "computed": TRAIN + VAL + TEST + 3 * TRAIN,
    }
    dataset = load_dataset(cache, "set")
    assert views_of(dataset) == dict.fromkeys((1, 2, 3), ("train",))
    for space in done.views.spaces:
        assert space.augmentation == augmentation("light", 0)
        assert space.original == done.spaces[0]
        covered = dataset.covered_by(space)
        assert len(covered) == TRAIN
        assert len(FeatureStore(cache, space).rows(dataset.image_sha256[covered])) == TRAIN
        assert dataset.info.weights[space.id] == "random:0"


def test_rows_of_views_are_those_of_their_pixels(photos: Path, cache: Path) -> None:
    done = extract(
        photos, name="set", cache=cache, backbone="pixels", size=14, views=2, augment="standard"
    )
    assert done.views is not None
    dataset = load_dataset(cache, "set")
    for view, space in enumerate(done.views.spaces, 1):
        covered = dataset.covered_by(space)
        rows = FeatureStore(cache, space).rows(dataset.image_sha256[covered])
        for row, number in zip(rows, covered, strict=True):
            data = (photos / dataset.paths[number]).read_bytes()
            (pixels,) = load_views(
                data,
                space.preprocessing,
                augmentation("standard", 0),
                [view],
                hashlib.sha256(data).digest(),
            )
            assert np.array_equal(row, pixels.transpose(2, 0, 1))  # H W C → C H W


def test_more_views_later_compute_the_new_ones_alone(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    go(photos, cache, tiny, views=2)
    reset(work)
    done = go(photos, cache, tiny, views=4)
    assert done.views is not None
    assert (done.views.computed, done.views.reused) == (2 * TRAIN, 2 * TRAIN)
    assert work == {"networks": 1, "decoded": TRAIN, "computed": 2 * TRAIN}
    reset(work)
    again = go(photos, cache, tiny, views=4)
    assert again.views is not None and again.views.computed == 0
    assert work == {"networks": 0, "decoded": 0, "computed": 0}
    # Fewer views, or none, take nothing away.
    go(photos, cache, tiny, views=1)
    go(photos, cache, tiny)
    assert views_of(load_dataset(cache, "set")) == dict.fromkeys((1, 2, 3, 4), ("train",))
    assert work["decoded"] == 0


def test_views_are_the_same_however_they_came(
    photos: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    one = go(photos, tmp_path / "one", tiny, views=3)
    for views in (1, 3):
        go(photos, tmp_path / "two", tiny, views=views, batch_size=2, views_of=("train", "test"))
    assert one.views is not None
    dataset = load_dataset(tmp_path / "one", "set")
    for space in one.views.spaces:
        ids = dataset.image_sha256[dataset.covered_by(space)]
        rows = FeatureStore(tmp_path / "one", space).rows(ids)
        others = FeatureStore(tmp_path / "two", space).rows(ids)
        # Company in a batch may change the last bit.
        assert np.allclose(rows[:], others[:], atol=2e-3)


def test_splits_are_added_to_those_covered(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    go(photos, cache, tiny, views=2)
    reset(work)
    done = go(photos, cache, tiny, views=1, views_of="test")
    assert done.views is not None and done.views.computed == TEST
    assert views_of(load_dataset(cache, "set")) == {1: ("train", "test"), 2: ("train",)}
    go(photos, cache, tiny, views=1, views_of=("val", "all"))
    assert views_of(load_dataset(cache, "set")) == {1: None, 2: ("train",)}
    assert work["computed"] == TEST + VAL
    # What covers everything covers train.
    go(photos, cache, tiny, views=1)
    assert views_of(load_dataset(cache, "set"))[1] is None


def test_policies_and_seeds_are_views_of_their_own(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    for options in ({}, {"augment": "flip"}, {"augment_seed": 1}):
        done = go(photos, cache, tiny, views=1, **options)
        assert done.views is not None and done.views.computed == TRAIN
    assert len(load_dataset(cache, "set").spaces) == 4


def test_a_second_view_by_flipping_is_said_to_be_waste(
    photos: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"name": "set", "cache": cache, "backbone": "pixels", "size": 8, "augment": "flip"}
    for views, is_said in ((1, False), (2, True)):
        with caplog.at_level(logging.WARNING, "featpipe"):
            extract(photos, views=views, **options)
        assert ("--views 1 is enough" in caplog.text) == is_said


def test_several_taps_are_computed_in_one_pass(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    go(photos, cache, {**tiny, "tap": "block1_pool"}, views=1)
    reset(work)
    done = go(photos, cache, {**tiny, "tap": ("block1_pool", "block1_conv2")}, views=2)
    assert done.views is not None
    # View 1 lacks the rows of the second tap.
    assert (done.views.computed, done.views.reused) == (2 * TRAIN, 0)
    assert len(done.views.spaces) == 4
    for space in done.views.spaces:
        assert len(FeatureStore(cache, space).index.ids) == TRAIN
        assert len(list(FeatureStore(cache, space).segments_folder.iterdir())) == 1


def test_copies_of_a_picture_are_computed_once(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    shutil.copy(photos / "train" / "0" / "0.png", photos / "train" / "0" / "copy.png")
    done = go(photos, cache, tiny, views=2)
    assert done.views is not None
    assert (done.duplicates, done.views.pictures, done.views.computed) == (1, TRAIN, 2 * TRAIN)


def test_quarantined_pictures_have_no_views(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    (photos / "train" / "0" / "broken.png").write_bytes(b"no picture")
    done = go(photos, cache, tiny, views=1)
    assert done.views is not None
    assert (done.quarantined, done.views.computed) == (1, TRAIN)


def test_new_pictures_take_the_views_off_the_list_and_say_how_to_complete_them(
    photos: Path,
    cache: Path,
    tiny: dict[str, Any],
    work: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    go(photos, cache, tiny, views=2, augment="standard", augment_seed=3, views_of=("train", "val"))
    # A new test picture matters not.
    class_picture(0, 991).save(photos / "test" / "0" / "new.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        go(photos, cache, tiny)
    assert "views" not in caplog.text
    assert views_of(load_dataset(cache, "set")) == dict.fromkeys((1, 2), ("train", "val"))
    class_picture(0, 992).save(photos / "val" / "0" / "new.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        go(photos, cache, tiny)
    assert (
        "views (standard, seed 3) do not cover all pictures of data set 'set' any more, so it "
        "lists them no longer; complete them with --views 2 --augment standard --augment-seed 3 "
        "--views-of train --views-of val"
    ) in caplog.text
    assert views_of(load_dataset(cache, "set")) == {}
    caplog.clear()
    reset(work)
    options = {"augment": "standard", "augment_seed": 3, "views_of": ("train", "val")}
    with caplog.at_level(logging.WARNING, "featpipe"):
        done = go(photos, cache, tiny, views=2, **options)
    assert done.views is not None and done.views.computed == 2
    assert work["decoded"] == 1
    assert "any more" not in caplog.text
    # Asked for at once, they are completed without a word.
    class_picture(0, 993).save(photos / "val" / "0" / "newer.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        go(photos, cache, tiny, views=2, **options)
    assert "any more" not in caplog.text
    assert len(views_of(load_dataset(cache, "set"))) == 2


def test_splits_by_content_are_those_of_the_frozen_list(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    done = go(photo_folder, cache, tiny, views=1)
    assert done.views is not None and done.views.computed == done.splits["train"]
    with pytest.raises(UsageError, match=r"found: train, val\), found 'test'; name one of"):
        go(photo_folder, cache, tiny, views=1, views_of="test", split=(0.5, 0.5, 0.0))


def test_pictures_without_labels_have_views_of_all_alone(
    tmp_path: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    (tmp_path / "bare").mkdir()
    for seed in range(3):
        class_picture(0, seed).save(tmp_path / "bare" / f"{seed}.png")
    with pytest.raises(UsageError, match=r"has \(found: none\), found 'train'; .* or 'all'"):
        go(tmp_path / "bare", cache, tiny, views=1)
    assert work["decoded"] == 0, "it is said before anything is computed"
    done = go(tmp_path / "bare", cache, tiny, views=1, views_of="all")
    assert done.views is not None and done.views.computed == 3
    assert views_of(load_dataset(cache, "set")) == {1: None}


@pytest.mark.parametrize(
    "harm", [lambda path: path.unlink(), lambda path: class_picture(1, 77).save(path)]
)
def test_a_picture_that_changed_since_it_was_listed_fails_the_pass_at_its_end(
    harm: Any,
    photos: Path,
    cache: Path,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from featpipe.stages import extract as stage

    path = photos / "train" / "1" / "3.png"
    real = stage.ViewPass.run

    def late(self: Any, *args: Any) -> Any:
        harm(path)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(stage.ViewPass, "run", late)
        with pytest.raises(DataError) as caught:
            go(photos, cache, tiny, views=2)
    said = str(caught.value)
    assert "found 1 that changed or cannot be read, among them 'train/1/3.png' (read: " in said
    assert "run the same command again" in said
    dataset = load_dataset(cache, "set")
    assert views_of(dataset) == {}, "no view is listed before it is whole"
    done = go(photos, cache, tiny, views=2)
    assert done.views is not None
    assert done.views.reused == 2 * (TRAIN - 1), "rows of the others were kept"
    assert len(views_of(load_dataset(cache, "set"))) == 2


def test_options_of_views_need_views() -> None:
    for options in ({"augment": "light"}, {"augment_seed": 1}, {"views_of": "test"}):
        (name,) = options
        with pytest.raises(UsageError, match=f"--views together with --{name.replace('_', '-')}"):
            ExtractSpec.from_options({"name": "x", **options})
    with pytest.raises(UsageError, match="expected --views of 0 to 1000, found 1001"):
        ExtractSpec.from_options({"name": "x", "views": 1001})
    with pytest.raises(UsageError, match="expected --augment to be one of flip, light, standard"):
        ExtractSpec.from_options({"name": "x", "views": 1, "augment": "heavy"})


def test_a_view_names_the_rows_of_its_splits_alone(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    done = go(photos, cache, tiny, views=1)
    assert done.views is not None
    named = NamedRows.of_cache(cache)
    assert len(named.of_space(done.spaces[0])) == TRAIN + VAL + TEST
    assert len(named.of_space(done.views.spaces[0])) == TRAIN


def test_a_dry_run_says_how_many_views_are_missing(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    before = plan_extraction(photos, cache=cache, name="set", views=2, **tiny)
    assert before.views is not None and before.views.to_compute is None
    go(photos, cache, tiny, views=1)
    reset(work)
    plan = plan_extraction(photos, cache=cache, name="set", views=3, **tiny)
    assert plan.views is not None and plan.views.to_compute == 2 * TRAIN
    assert plan.as_json()["views"] == {
        "policy": "light",
        "version": 1,
        "seed": 0,
        "number": 3,
        "of": ["train"],
        "to_compute": 2 * TRAIN,
    }
    assert work["decoded"] == 0
    assert plan_extraction(photos, cache=cache, name="set", **tiny).views is None


# Sharded


def test_shards_compute_their_own_views_once_all_are_merged(
    photos: Path, tmp_path: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    with caplog.at_level(logging.WARNING, "featpipe"):
        first = go(photos, cache, tiny, views=2, shard="1/2")
    assert "views follow once all shards are done: run the same command again" in caplog.text
    assert first.views is not None
    assert (first.views.computed, first.views.is_complete) == (0, False)
    second = go(photos, cache, tiny, views=2, shard="2/2")
    assert second.views is not None
    assert second.views.computed > 0 and not second.views.is_complete
    assert views_of(load_dataset(cache, "set")) == {}
    first = go(photos, cache, tiny, views=2, shard="1/2")
    assert first.views is not None
    assert first.views.computed + second.views.computed == 2 * TRAIN
    assert first.views.is_complete
    listed = load_dataset(cache, "set")
    assert views_of(listed) == dict.fromkeys((1, 2), ("train",))
    # Merging once more forgets nothing, whether views are asked for or not.
    go(photos, cache, tiny, shard="2/2")
    again = go(photos, cache, tiny, views=2, shard="2/2")
    assert again.views is not None and again.views.computed == 0 and again.views.is_complete
    assert load_dataset(cache, "set").spaces == listed.spaces
    whole = go(photos, tmp_path / "whole", tiny, views=2)
    assert whole.views is not None
    assert set(listed.spaces) == set(load_dataset(tmp_path / "whole", "set").spaces)


# The command line


def test_the_command_tells_what_it_did_with_views(featpipe: Run, photos: Path) -> None:
    words = ("extract", photos, "--name", "set", *TINY_FLAGS, "--views", "2", "--views-of", "test")
    done = featpipe(*words, "--augment", "standard", "--augment-seed", "7", "--json")
    assert done.returncode == 0, done.stderr
    found = json_of(done)
    views = found["views"]
    assert views.pop("seconds") > 0 and set(views.pop("stage_seconds")) == {
        "read",
        "decode",
        "backbone",
        "write",
    }
    assert views == {
        "policy": "standard",
        "version": 1,
        "seed": 7,
        "number": 2,
        "of": ["test"],
        "pictures": TEST,
        "computed": 2 * TEST,
        "reused": 0,
        "complete": True,
    }
    assert [space["view"] for space in found["spaces"]] == [0, 1, 2]
    again = featpipe(*words, "--augment", "standard", "--augment-seed", "7")
    assert (
        f"views 1 to 2 (standard, seed 7) of test: {TEST} pictures, 0 views computed, "
        f"{2 * TEST} reused" in again.stdout
    )
    assert "nothing to compute" in again.stdout
    stores = featpipe("cache", "list").stdout
    assert "view 2 (standard, seed 7), of set" in stores
    names = json_of(featpipe("cache", "info", "set", "--json"))["covers"]
    assert len(names) == 2 and set(map(tuple, names.values())) == {("test",)}
    assert featpipe("cache", "verify").returncode == 0
    collected = json_of(featpipe("cache", "gc", "--grace", "0", "--json"))
    assert collected["rows"] == 0
    refused = featpipe("extract", photos, "--name", "set", *TINY_FLAGS, "--augment", "flip")
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: expected --views together with --augment, found none; say how many views each "
        "picture shall have, such as 4\n"
    )
    unknown = featpipe(*words, "--views-of", "valid")
    assert unknown.returncode == 2 and "--views-of to be one of train, val" in unknown.stderr


def test_a_view_is_removed_as_any_feature_space(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    from featpipe.stages.removal import find_removal, remove

    done = go(photos, cache, tiny, views=2)
    assert done.views is not None
    remove(cache, find_removal(cache, done.views.spaces[1].name))
    dataset = load_dataset(cache, "set")
    assert views_of(dataset) == {1: ("train",)}
    assert set(dataset.info.covers) == {done.views.spaces[0].id}


def test_relabelling_keeps_the_views(photos: Path, tmp_path: Path, tiny: dict[str, Any]) -> None:
    from featpipe.specs.audit import RelabelSpec
    from featpipe.stages.relabel import relabel

    cache = tmp_path / "cache"
    go(photos, cache, tiny, views=2, augment="standard")
    (tmp_path / "fixes.csv").write_text("path,label\ntrain/0/0.png,1\n")
    done = relabel("set", tmp_path / "fixes.csv", RelabelSpec(), cache=cache)
    assert views_of(load_dataset(cache, done.dataset)) == dict.fromkeys((1, 2), ("train",))
    (options,) = done.extract_options
    assert options.endswith("--views 2 --augment standard --augment-seed 0 --views-of train")
    assert done.data is not None
    again = go(done.data, cache, tiny, name="again", root=photos, views=2, augment="standard")
    assert again.views is not None
    assert (again.computed, again.views.computed) == (0, 0)


def test_a_recipe_may_ask_for_views(photos: Path, tmp_path: Path) -> None:
    from featpipe.specs.recipe import load_recipe

    path = tmp_path / "recipe.toml"
    path.write_text(
        '[dataset]\nname = "set"\ndata = "split"\n[extract]\nbackbone = "pixels"\nsize = 8\n'
        'views = 4\naugment = "flip"\naugment_seed = 2\nviews_of = ["train", "val"]\n'
        '[[head]]\nkind = "linear"\n'
    )
    (spec,) = load_recipe(path).extracts
    assert (spec.views, spec.policy, spec.augment_seed) == (4, "flip", 2)
    assert spec.views_of == ("train", "val")


def test_a_split_without_pictures_has_no_views(
    photo_folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    for path in [*photo_folder.rglob("*.png")][2:]:
        path.unlink()
    with pytest.raises(NotFoundError, match="expected a split '"):
        for split in ("val", "test"):
            go(photo_folder, cache, tiny, views=1, views_of=split)


def test_pictures_that_are_no_files_have_views(tmp_path: Path, cache: Path) -> None:
    write_idx(tmp_path / "idx", train=9, t10k=3)
    done = extract(
        tmp_path / "idx",
        name="set",
        cache=cache,
        backbone="pixels",
        size=6,
        resize="squash",
        channels="grey",
        views=3,
    )
    assert done.views is not None
    assert (done.views.pictures, done.views.computed) == (9, 27)
    assert views_of(load_dataset(cache, "set")) == dict.fromkeys((1, 2, 3), ("train",))


def test_many_views_are_decoded_in_parts(
    photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, work: dict[str, int]
) -> None:
    options = {"name": "set", "cache": cache, "backbone": "pixels", "size": 8, "views": 5}
    # Room for two views of a picture.
    monkeypatch.setattr(pool, "_TASK_BYTES", 2 * 8 * 8 * 3)
    done = extract(photos, **options)
    assert done.views is not None and done.views.computed == 5 * TRAIN
    assert work["decoded"] == TRAIN + VAL + TEST + 3 * TRAIN
    monkeypatch.undo()
    again = extract(photos, **{**options, "cache": cache.with_name("other")})
    assert again.views is not None
    dataset = load_dataset(cache, "set")
    for space in done.views.spaces:
        ids = dataset.image_sha256[dataset.covered_by(space)]
        rows, others = (
            FeatureStore(place, space).rows(ids)[:] for place in (cache, cache.with_name("other"))
        )
        assert np.array_equal(rows, others)
