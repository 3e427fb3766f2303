"""Commands to copy: the command line understands each, and each means what its advice says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from support.advising import parsed, tapped_set, vgg_space
from support.samples import in_splits

from featpipe.advising.command_writer import CommandWriter
from featpipe.advising.commands import Commands
from featpipe.advising.documents import Try
from featpipe.advising.tap_rows import rows_to_measure
from featpipe.base.space import Augmentation, FeatureSpace
from featpipe.datasets.dataset import Dataset, SourceInfo
from featpipe.datasets.spaces import choose_spaces, spaces_of
from featpipe.specs.extract import ExtractSpec
from featpipe.specs.heads import HeadSpec

EARLY, DEEP = vgg_space("block4_pool"), vgg_space("block5_pool")
PIXELS = vgg_space("input", backbone="pixels", dtype="uint8", shape=(3, 64, 64))


@pytest.fixture
def commands_of(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands on a data set of these spaces, where the rows of this number are the best."""
    monkeypatch.setenv("FEATPIPE_CACHE", str(cache))

    def make(*spaces: FeatureSpace, best: int | None = 0, suffix: bool = True) -> Any:
        dataset = tapped_set(cache, in_splits(train=2, val=1), dict.fromkeys(spaces, 1.0))
        return on(dataset, best, suffix)

    def on(dataset: Dataset, best: int | None = 0, suffix: bool = True) -> Any:
        train = dataset.in_split("train")
        # Large enough that no map is flattened.
        found, _ = rows_to_measure([s for s in spaces_of(dataset) if s[0].view == 0], 10**9)
        write = CommandWriter(dataset, cache, train)
        chosen = None if best is None else found[best]
        return dataset, Commands(write, chosen, found, suffix=suffix)

    make.on = on  # type: ignore[attr-defined]
    return make


def chosen(dataset: Dataset, command: str) -> tuple[HeadSpec, FeatureSpace]:
    """What a command to train means, and the features that it chooses."""
    spec = parsed(command)
    assert isinstance(spec, HeadSpec)
    ((spaces, _),) = choose_spaces(dataset, spec.queries)
    return spec, spaces[0]


def extracts(command: str) -> ExtractSpec:
    spec = parsed(command)
    assert isinstance(spec, ExtractSpec)
    return spec


EVERY: tuple[Try, ...] = ("linear", "taps", "suffix", "views", "mlp", "pictures", "scratch")


@pytest.mark.parametrize("spaces", [(EARLY, DEEP), (DEEP,), (DEEP, PIXELS)])
@pytest.mark.parametrize("what", EVERY)
def test_the_command_line_understands_every_command(
    spaces: tuple[FeatureSpace, ...], what: Try, commands_of: Any
) -> None:
    _, commands = commands_of(*spaces)
    found = commands(what)
    assert found
    for command in found:
        parsed(command)


def test_the_linear_head_is_the_measured_one(commands_of: Any) -> None:
    _, commands = commands_of(EARLY, DEEP)
    extract, train = map(parsed, commands("linear"))
    assert isinstance(extract, ExtractSpec) and isinstance(train, HeadSpec)
    assert (extract.tap, extract.pool, extract.size) == (("block4_pool",), ("avg",), 64)
    assert (extract.weights, extract.precision) == ("random:0", "fp32")
    assert (train.head, train.tap, train.pool) == ("logistic", ("block4_pool",), "avg")


def test_stored_rows_are_not_extracted_again(commands_of: Any) -> None:
    stored = vgg_space("block4_pool", pooling="avg", shape=(16,))
    dataset, commands = commands_of(stored, DEEP)
    (train,) = commands("linear")
    assert chosen(dataset, train)[1] == stored
    (mlp,) = commands("mlp")
    assert chosen(dataset, mlp)[0].head == "mlp"


def test_a_suffix_is_trained_on_the_maps_of_the_best_tap_before_the_deepest(
    commands_of: Any,
) -> None:
    for best in (0, 1):
        dataset, commands = commands_of(EARLY, DEEP, best=best)
        (train,) = commands("suffix")
        spec, space = chosen(dataset, train)
        assert (spec.head, spec.params["top"], space) == ("suffix", "linear", EARLY)


def test_where_only_the_deepest_tap_is_cached_the_map_before_it_is_extracted(
    commands_of: Any,
) -> None:
    _, commands = commands_of(DEEP)
    extract, train = commands("suffix")
    assert extracts(extract).tap == ("block4_pool",) and extracts(extract).pool == ("none",)
    spec = parsed(train)
    assert isinstance(spec, HeadSpec)
    assert (spec.tap, spec.pool) == (("block4_pool",), "none")
    assert commands("taps") == [extract, "featpipe advise set"]


def test_pooled_features_alone_have_their_maps_extracted_for_a_suffix(commands_of: Any) -> None:
    early = vgg_space("block4_pool", pooling="avg", shape=(16,))
    deep = vgg_space("block5_pool", pooling="avg", shape=(16,))
    _, commands = commands_of(early, deep)
    extract, _ = commands("suffix")
    assert extracts(extract).pool == ("none",) and extracts(extract).tap == ("block4_pool",)


def test_a_network_that_cannot_be_asked_is_cut_at_its_own_tap(commands_of: Any) -> None:
    space = vgg_space("features", backbone="mine:build")
    dataset, commands = commands_of(space)
    (train,) = commands("suffix")
    assert chosen(dataset, train)[1] == space


def test_views_are_of_the_training_pictures(commands_of: Any) -> None:
    _, commands = commands_of(EARLY, DEEP)
    extract, _, train, *others = commands("views")
    spec = extracts(extract)
    assert spec.tap == ("block4_pool",) and spec.pool == ("none",)
    assert (spec.views, spec.augment, spec.views_of) == (4, "light", ("train",))
    trained = parsed(train)
    assert isinstance(trained, HeadSpec)
    assert (trained.head, trained.augment) == ("suffix", "light")
    assert train not in commands("suffix")
    # A suffix may take too long: a linear head on views of pooled rows.
    assert others[0].startswith("# where a suffix takes too long")
    assert extracts(others[1]).pool == ("avg",) and extracts(others[2]).views == 4
    linear = parsed(others[3])
    assert isinstance(linear, HeadSpec) and (linear.head, linear.augment) == ("linear", "light")


def test_views_of_a_linear_head_are_of_its_rows(commands_of: Any) -> None:
    stored = vgg_space("block4_pool", pooling="avg", shape=(16,))
    dataset, commands = commands_of(stored, suffix=False)
    extract, train = commands("views")
    assert extracts(extract).pool == ("avg",)
    assert chosen(dataset, train)[0].head == "linear"


def test_views_that_are_cached_are_only_trained_with(commands_of: Any) -> None:
    view = dataclasses.replace(
        EARLY, view=1, augmentation=Augmentation(policy="light", version=1, seed=0)
    )
    dataset, commands = commands_of(EARLY, DEEP, view)
    comment, train = commands("views")[:2]
    assert comment == "# the same command as for the suffix, now on views"
    assert chosen(dataset, train)[1] == EARLY
    (plain,) = commands("suffix")
    assert chosen(dataset, plain)[0].no_views and not chosen(dataset, train)[0].no_views


def test_views_of_another_policy_are_named(commands_of: Any) -> None:
    views = [
        dataclasses.replace(
            EARLY, view=1, augmentation=Augmentation(policy="flip", version=1, seed=seed)
        )
        for seed in (3, 4)
    ]
    dataset, commands = commands_of(EARLY, DEEP, *views)
    spec, _ = chosen(dataset, commands("views")[1])
    assert (spec.augment, spec.augment_seed) == ("flip", 3)


def test_more_pictures_come_before_they_are_extracted(commands_of: Any) -> None:
    comment, extract = commands_of(EARLY, DEEP)[1]("pictures")
    assert comment == "# put more pictures into pretended first"
    assert extract.startswith("featpipe extract pretended ")


def test_pixels_are_extracted_once(commands_of: Any) -> None:
    _, commands = commands_of(DEEP)
    extract, train = commands("scratch")
    assert (extracts(extract).backbone, extracts(extract).size) == ("pixels", 128)
    spec = parsed(train)
    assert isinstance(spec, HeadSpec) and (spec.head, spec.backbone) == ("simplecnn", "pixels")
    dataset, commands = commands_of(DEEP, PIXELS)
    (train,) = commands("scratch")
    assert chosen(dataset, train)[1] == PIXELS


def test_pixels_alone_get_features_first(commands_of: Any) -> None:
    _, commands = commands_of(PIXELS, best=None)
    (extract,) = commands("extract")
    assert extracts(extract).tap == ("block4_pool", "block5_pool")


def test_features_are_chosen_among_others_that_are_alike(commands_of: Any) -> None:
    fp32 = vgg_space("block4_pool", pooling="avg", shape=(16,))
    alike = (fp32, *(dataclasses.replace(fp32, precision=p) for p in ("bf16", "fp16")))
    dataset, _ = commands_of(*alike)
    for best, space in enumerate(alike):
        _, commands = commands_of.on(dataset, best)
        (train,) = commands("linear")
        assert chosen(dataset, train)[1] == space
        assert train.endswith(f"--tap block4_pool --pool avg --precision {space.precision}")


def test_data_root_split_and_cache_are_those_of_the_data_set(
    commands_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset, _ = commands_of(DEEP)
    dataset.source = SourceInfo("list", "my lists/pets.csv", str(tmp_path / "my photos"))
    dataset.info.split = [0.8, 0.1, 0.1]
    monkeypatch.setenv("FEATPIPE_CACHE", "elsewhere")
    _, commands = commands_of.on(dataset)
    extract = commands("pictures")[1]
    assert extract.startswith("featpipe extract 'my lists/pets.csv' --name set --root ")
    assert "--cache " in extract and "--cache " in commands("taps")[1]
    spec = extracts(extract)
    assert spec.root == tmp_path / "my photos"
    assert spec.split == (0.8, 0.1, 0.1)
