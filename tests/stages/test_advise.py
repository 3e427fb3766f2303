"""Advice on made-up data sets: the facts are what was made, and nothing else is touched."""

from __future__ import annotations

import builtins
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.advising import tapped_set, vgg_space
from support.samples import in_splits, small_space, stored_set

from featpipe import api
from featpipe.base.errors import DamageError, DataError, NotFoundError, UsageError
from featpipe.base.space import Augmentation
from featpipe.datasets.dataset import Status
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.store.feature_store import FeatureStore

EARLY, DEEP = vgg_space("block4_pool"), vgg_space("block5_pool")
MEAN_EARLY = vgg_space("block4_pool", pooling="avg", shape=(16,))
MEAN_DEEP = vgg_space("block5_pool", pooling="avg", shape=(16,))


@pytest.fixture
def advise(cache: Path) -> Any:
    def go(**options: Any) -> Any:
        return api.advise("set", cache=cache, **options)

    return go


def tried(found: Any) -> list[str]:
    return [one["try"] for one in found["advice"]]


def splits_of(classes: int, **counts: int) -> list[tuple[str, str, str]]:
    return [
        (f"{split}/{label}/{i}.png", f"class{label:03}", split)
        for split, count in counts.items()
        for label in range(classes)
        for i in range(count)
    ]


def test_the_facts_are_those_of_the_data_set(cache: Path, advise: Any) -> None:
    dataset = tapped_set(cache, in_splits(train=30, val=20, test=10), {EARLY: 1.0, DEEP: 4.0})
    dataset.status[0] = Status.QUARANTINED  # of cat, in train
    dataset.reasons = {0: ["read", "gone"]}  # type: ignore[dict-item]
    save_dataset(cache, dataset)
    found = advise()
    assert set(found) == {"dataset", "facts", "advice", "not_advised", "seconds"}
    facts = found["facts"]
    assert facts["pictures"] == {
        "usable": 119,
        "train": 59,
        "val": 40,
        "test": 20,
        "unlabelled": 0,
        "quarantined": 1,
        "val_from": "val",
    }
    assert facts["classes"][0] == {
        "class": "cat",
        "pictures": 59,
        "train": 29,
        "val": 20,
        "test": 10,
        "quarantined": 1,
    }
    assert facts["class_sizes"] == {
        "smallest": 29,
        "median": 29.5,
        "largest": 30,
        "imbalance_ratio": 30 / 29,
    }
    assert facts["baseline_accuracy"] == 0.5
    assert facts["smallest_provable_difference"] == 6 / 40
    assert [tap["tap"] for tap in facts["taps"]] == ["block4_pool"] * 2 + ["block5_pool"] * 2
    assert [tap["rows"] for tap in facts["taps"]] == ["mean over places", "flattened"] * 2
    assert [tap["numbers"] for tap in facts["taps"]] == [16, 64] * 2
    assert [p["share"] for p in facts["learning_curve"]] == [0.25, 0.5, 1.0]
    assert [p["pictures"] for p in facts["learning_curve"]] == [16, 30, 59]
    assert [len(p["draws"]) for p in facts["learning_curve"]] == [3, 3, 1]


def test_similar_content_and_enough_data_end_at_the_linear_head(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=40, val=100), {EARLY: 1.0, DEEP: 8.0})
    found = advise()
    facts = found["facts"]
    assert (facts["content"], facts["data"]) == ("similar", "enough")
    (one,) = facts["tap_comparisons"]
    assert (one["deepest"], one["earlier"]) == ("block5_pool", "block4_pool")
    assert one["only_deepest_right"] > 20 and one["p_value"] < 1e-4
    assert tried(found) == ["linear"]
    assert {one["try"] for one in found["not_advised"]} >= {"suffix", "views", "mlp", "scratch"}


def test_different_content_asks_for_the_earlier_tap_to_be_retrained(
    cache: Path, advise: Any
) -> None:
    tapped_set(cache, in_splits(train=40, val=100), {EARLY: 2.0, DEEP: 0.5})
    found = advise()
    assert found["facts"]["content"] == "different"
    assert found["facts"]["gap"]["tap"] == "block4_pool"
    assert "suffix" in tried(found)
    suffix = next(one for one in found["advice"] if one["try"] == "suffix")
    assert "--tap block4_pool" in suffix["commands"][0]
    # Ten epochs, forward and twice backward, of block5 and the classifier at 64 px.
    passes = found["facts"]["suffix_passes"]
    assert 1 < passes < 10 and f"extracting {passes:g} times" in suffix["why"]


def test_equal_taps_are_not_told_apart(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=40, val=50), {EARLY: 2.0, DEEP: 2.0})
    assert advise()["facts"]["content"] == "undecided"


def test_the_head_of_the_command_has_the_accuracy_of_the_fact(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=30, val=50), {MEAN_EARLY: 1.5, DEEP: 0.1})
    found = advise()
    (best,) = (tap for tap in found["facts"]["taps"] if tap["tap"] == "block4_pool")
    assert best["rows"] == "stored"
    (command,) = found["advice"][0]["commands"]
    assert "--head logistic" in command and "--tap block4_pool --pool avg" in command
    trained = api.train_head(
        "set",
        cache=cache,
        out=cache / "run",
        head="logistic",
        tap="block4_pool",
        pool="avg",
    )
    assert trained.val["accuracy"] == pytest.approx(best["val_accuracy"])
    assert trained.best.at == best["C"]


def test_the_same_seed_gives_the_same_advice(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=30, val=30), {EARLY: 1.0, DEEP: 1.5})

    def timeless(found: Any) -> Any:
        taps = [{**tap, "seconds": 0} for tap in found["facts"]["taps"]]
        return {**found, "seconds": 0, "facts": {**found["facts"], "taps": taps}}

    first, again, other = advise(), advise(), advise(seed=7)
    assert timeless(first) == timeless(again)
    assert other["facts"]["taps"][0]["C"] == first["facts"]["taps"][0]["C"]
    curves = [found["facts"]["learning_curve"] for found in (first, other)]
    assert curves[0] != curves[1] and curves[0][-1] == curves[1][-1]


def test_no_picture_is_opened_and_nothing_is_written(
    cache: Path, advise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tapped_set(cache, in_splits(train=10, val=10), {EARLY: 1.0, DEEP: 1.0})
    monkeypatch.chdir(tmp_path)
    advise()  # leaves the store's index, as any reader does
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    opened: list[str] = []
    plain = builtins.open

    def spy(file: Any, *args: Any, **options: Any) -> Any:
        opened.append(os.fspath(file) if isinstance(file, str | os.PathLike) else "")
        return plain(file, *args, **options)

    monkeypatch.setattr(builtins, "open", spy)
    advise()
    assert not [name for name in opened if "pretended" in name]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_set_without_validation_uses_a_share_of_train(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=50, test=5), {DEEP: 3.0})
    facts = advise(val=0.3)["facts"]
    assert facts["pictures"]["val_from"] == "0.3 of train, by content"
    assert facts["pictures"]["train"] + facts["pictures"]["val"] == 100
    assert 15 <= facts["pictures"]["val"] <= 45


def test_one_tap_alone_asks_for_an_earlier_one(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=30, val=50), {DEEP: 1.5})
    found = advise()
    assert found["facts"]["content"] == "unknown" and not found["facts"]["tap_comparisons"]
    taps = next(one for one in found["advice"] if one["try"] == "taps")
    assert "--tap block4_pool" in taps["commands"][0]


def test_one_picture_per_class_has_no_learning_curve(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=1, val=9), {EARLY: 1.0, DEEP: 1.0})
    found = advise()
    facts = found["facts"]
    assert [p["pictures"] for p in facts["learning_curve"]] == [2, 2, 2]
    assert (facts["doubling_gain"], facts["data"]) == (None, "unknown")
    against = {one["try"]: one["why"] for one in found["not_advised"]}
    assert "1 training picture, fewer than 20" in against["suffix"]


def test_many_classes(cache: Path, advise: Any) -> None:
    tapped_set(cache, splits_of(101, train=2, val=1), {MEAN_EARLY: 1.0, MEAN_DEEP: 3.0})
    found = advise()
    assert len(found["facts"]["classes"]) == 101
    assert found["facts"]["baseline_accuracy"] == 1 / 101
    assert found["advice"]


def test_a_tiny_validation_split_proves_nothing(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=20, val=2), {EARLY: 1.0, DEEP: 1.0})
    assert advise()["facts"]["smallest_provable_difference"] == 1.5


def test_more_pictures_than_the_limit_are_measured_in_part(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=40, val=40), {DEEP: 2.0})
    facts = advise(max_pictures=20)["facts"]
    assert facts["measured_on"] == {"train": 20, "val": 20}
    assert facts["pictures"]["train"] == 80
    assert facts["class_sizes"]["median"] == 40


def test_classes_that_train_lacks_are_counted_and_not_measured(cache: Path, advise: Any) -> None:
    samples = [*in_splits(train=20, val=10), ("x.png", "emu", "val")]
    tapped_set(cache, samples, {DEEP: 2.0})
    facts = advise()["facts"]
    assert facts["measured_on"]["val"] == 20
    assert facts["classes"][-1]["class"] == "emu"


def test_views_are_no_taps(cache: Path, advise: Any) -> None:
    view = dataclasses.replace(
        DEEP, view=1, augmentation=Augmentation(policy="light", version=1, seed=0)
    )
    tapped_set(cache, in_splits(train=20, val=20), {DEEP: 1.0, view: 9.0})
    facts = advise()["facts"]
    assert facts["cached_views"] == 1
    assert {tap["space"] for tap in facts["taps"]} == {DEEP.id}


def test_pixels_alone_ask_for_features(cache: Path, advise: Any) -> None:
    pixels = vgg_space("input", backbone="pixels", dtype="uint8", shape=(3, 8, 8))
    tapped_set(cache, in_splits(train=9, val=9), {pixels: 3.0})
    found = advise()
    assert tried(found) == ["extract"] and found["facts"]["gap"] is None
    assert found["facts"]["taps"] == [] and found["facts"]["learning_curve"] == []


def test_code_of_the_users_own_is_not_run_unasked(cache: Path, advise: Any) -> None:
    own = vgg_space("features", backbone="no_such_module:build")
    tapped_set(cache, in_splits(train=9, val=9), {own: 3.0})
    note = advise()["facts"]["notes"][0]
    assert "--allow-code no_such_module:build" in note
    note = advise(allow_code="no_such_module:build")["facts"]["notes"][0]
    assert "expected to import 'no_such_module'" in note


def test_what_cannot_be_advised_is_an_error(cache: Path, advise: Any) -> None:
    with pytest.raises(NotFoundError, match="expected a data set 'set'"):
        advise()
    stored_set(cache, [(f"{i}.png", None, None) for i in range(9)])
    with pytest.raises(DataError, match="expected labelled pictures"):
        advise()
    stored_set(cache, [(f"{i}.png", "cat", "train") for i in range(9)])
    with pytest.raises(DataError, match="expected at least two classes"):
        advise()
    dataset = stored_set(cache, in_splits(train=4, val=4))
    dataset.spaces = []
    save_dataset(cache, dataset)
    with pytest.raises(NotFoundError, match="expected features of data set 'set', found none"):
        advise()
    for options in ({"seed": -1}, {"val": 0}, {"max_pictures": 0}, {"allow_code": "nothing"}):
        with pytest.raises(UsageError):
            advise(**options)


def test_an_unknown_backbone_is_a_note(cache: Path, advise: Any) -> None:
    stored_set(cache, in_splits(train=9, val=9), spaces=[small_space()])
    assert "expected a backbone, found 'tiny'" in advise()["facts"]["notes"][0]


def test_copies_count_once_in_the_learning_curve(cache: Path, advise: Any) -> None:
    samples = in_splits(train=8, val=8)
    contents = {f"train/cat/{i}.png": "train/cat/0.png" for i in range(8)}
    tapped_set(cache, samples, {DEEP: 2.0}, contents=contents)
    curve = advise()["facts"]["learning_curve"]
    assert [p["pictures"] for p in curve] == [1 + 2, 1 + 4, 16]
    assert np.isfinite([p["val_log_loss"] for p in curve]).all()


def test_a_damaged_row_is_never_measured(cache: Path, advise: Any) -> None:
    tapped_set(cache, in_splits(train=9, val=9), {EARLY: 2.0, DEEP: 2.0})
    (segment,) = FeatureStore(cache, EARLY).segments_folder.iterdir()
    data = bytearray(segment.read_bytes())
    places = [
        data.find(np.asarray(row).tobytes())
        for row in FeatureStore(cache, EARLY).rows(load_dataset(cache, "set").image_sha256[:1])
    ]
    data[places[0]] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DamageError, match="expected checksum"):
        advise()
