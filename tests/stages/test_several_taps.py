"""``train-head --tap a --tap b``: one head on the features of several taps, side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.heads import ROW_KINDS
from support.library import evaluate, extract, predict, train_head
from support.runs import load_head
from support.samples import class_picture, in_splits, small_space, stored_set

import featpipe
from featpipe.backbones import network
from featpipe.base.errors import NotFoundError, SpaceMismatchError, UsageError
from featpipe.base.space import FeatureSpace
from featpipe.cli.comparing import of_comparison, of_runs
from featpipe.datasets.files import save_dataset
from featpipe.integrations.arrays import open_features
from featpipe.specs.head_params import HEAD_PARAMS
from featpipe.specs.heads import HeadSpec
from featpipe.store.feature_store import FeatureStore
from featpipe.store.joined_rows import open_rows

SAMPLES = in_splits(train=20, val=8, test=5)
PREP = small_space().preprocessing
FIRST = small_space(shape=(3, 2, 2), pooling="none")
SECOND = small_space(tap="block2_pool", shape=(5,), weights="cd" * 32)
TAPS = ["block1_pool", "block2_pool"]
QUICK: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 4},
    "mlp": {"epochs": 4, "hidden": 8},
    "logistic": {"C": 0.1},
    "knn": {},
}


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train a head on the set's two taps, or as told."""

    def go(**options: Any) -> Any:
        given = {"head": "logistic", "tap": TAPS, "out": tmp_path / "run", "overwrite": True}
        return train_head("set", cache=cache, device="cpu", **{**given, **options})

    return go


def rows_of(cache: Path, split: str, *taps: str) -> np.ndarray:
    """The rows of taps as NumPy joins them."""
    tables = [open_features("set", split, tap=tap, cache=cache) for tap in taps]
    return np.concatenate([np.asarray(t.X).reshape(len(t.y), -1) for t in tables], axis=1)


@pytest.mark.parametrize("kind", ROW_KINDS)
def test_a_head_learns_from_rows_side_by_side_in_the_order_given(
    kind: str, cache: Path, train: Callable[..., Any]
) -> None:
    dataset = stored_set(cache, SAMPLES, spaces=[FIRST, SECOND])
    done = train(head=kind, tap=TAPS[::-1], params=QUICK[kind])
    kept = load_head(done.head)
    assert kept.spaces == (SECOND, FIRST) and kept.space == SECOND
    assert (done.space, done.spaces) == (SECOND.id, [SECOND.id, FIRST.id])
    X = rows_of(cache, "val", *TAPS[::-1])
    y = open_features("set", "val", tap=TAPS[0], cache=cache).y
    probabilities = kept.predict_proba(X)
    assert (probabilities.argmax(axis=1) == y).mean() == done.val["accuracy"]
    # Rows that are memory-mapped give the same.
    ids = dataset.image_sha256[dataset.in_split("val")]
    assert np.array_equal(kept.predict_proba(open_rows(cache, kept.spaces, ids)), probabilities)
    done_test = evaluate(done.head, cache=cache)
    assert done_test.metrics["n"] == 10 and done_test.split == "test"
    with pytest.raises(UsageError) as caught:
        kept.predict_proba(X[:, 1:])
    assert str(caught.value) == (
        "expected rows of shape (n, 17), of block2_pool + block1_pool with pooling avg + none, "
        "found (16, 16); open the features that the head was trained on"
    )


def test_it_is_better_than_either_tap_where_each_knows_half(
    cache: Path, train: Callable[..., Any]
) -> None:
    samples = [
        (f"{split}/{label}/{i}", label, split)
        for split in ("train", "val")
        for label in "abcd"
        for i in range(15)
    ]
    spaces = [small_space(tap=tap, shape=(2,), dtype="float32") for tap in TAPS]
    dataset = stored_set(cache, samples, spaces=[FIRST])
    for bit, space in enumerate(spaces):
        rows = np.random.default_rng(bit).normal(size=(len(samples), 2)).astype(np.float32)
        rows[:, 0] += 8.0 * ((dataset.label >> bit) & 1)
        store = FeatureStore(cache, space)
        store.prepare()
        store.append(dataset.image_sha256, rows, {})
    dataset.spaces = [space.canonical_json for space in spaces]
    dataset.info.weights = {space.id: "random:0" for space in spaces}
    save_dataset(cache, dataset)
    assert max(train(tap=tap).val["accuracy"] for tap in TAPS) < 0.7
    assert train().val["accuracy"] == 1.0


def test_one_tap_makes_the_head_that_it_made_before(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, SAMPLES, spaces=[FIRST, SECOND])
    for number, tap in enumerate(("block2_pool", ["block2_pool"], ("block2_pool",))):
        out = tmp_path / str(number)
        done = train_head("set", cache=cache, head="logistic", tap=tap, C=0.1, out=out)
        assert done.spaces == [done.space] == [SECOND.id]
        document = json.loads((out / "head.json").read_text())
        assert document["format"] == 1 and document["feature_space_id"] == SECOND.id
        assert not {"feature_spaces", "feature_space_ids"} & set(document)
        tensors = [(tmp_path / n / "head.safetensors").read_bytes() for n in ("0", str(number))]
        assert tensors[0] == tensors[1] and load_head(out).head.scale_.shape == (1,)


def test_float16_beside_float32_is_read_as_float32(cache: Path, train: Callable[..., Any]) -> None:
    wide = dataclasses.replace(SECOND, dtype="float32")
    stored_set(cache, SAMPLES, spaces=[FIRST, wide])
    kept = load_head(train(head="knn").head)
    assert kept.head.layers()["rows"].dtype == np.float32
    assert [space.dtype for space in kept.spaces] == ["float16", "float32"]


def test_sweeps_seeds_shots_and_calibration_work_on_it(
    cache: Path, train: Callable[..., Any]
) -> None:
    stored_set(cache, SAMPLES, spaces=[FIRST, SECOND])
    swept = train(head="linear", sweep=True, seeds=2, params={"epochs": 2, "weight_decay": 0.01})
    assert swept.sweep.varied == ["learning_rate", "seed"]
    assert load_head(swept.head).spaces == (FIRST, SECOND)
    few = train(head="knn", n_shot=[1, 5], tries=2)
    assert [row["n"] for row in few.n_shot.shots] == [1, 5]
    calibrated = train(head="linear", calibrate=True, params={"epochs": 3})
    assert calibrated.calibration is not None
    assert load_head(calibrated.head).spaces == (FIRST, SECOND)


def four_spaces() -> list[FeatureSpace]:
    return [
        small_space(tap=tap, pooling=pool, weights=digest * 32)
        for tap, digest in zip(TAPS, ("ab", "cd"), strict=True)
        for pool in ("avg", "max")
    ]


def test_a_sweep_ranges_over_the_poolings_of_all_taps(
    cache: Path, train: Callable[..., Any]
) -> None:
    stored_set(cache, SAMPLES, spaces=four_spaces())
    done = train(sweep=True, pool="all")
    table = json.loads((done.head / "sweep.json").read_text())["combinations"]
    assert {row["params"]["pool"] for row in table} == {"avg", "max"}
    assert {space.pooling for space in load_head(done.head).spaces} == {table[0]["params"]["pool"]}
    assert done.sweep.varied[0] == "pool"
    alone = [train(pool=pool).val["loss"] for pool in ("avg", "max")]
    assert done.val["loss"] == min(alone)


def test_a_pooling_that_one_tap_lacks_is_not_tried(cache: Path, train: Callable[..., Any]) -> None:
    stored_set(cache, SAMPLES, spaces=four_spaces()[:3])
    assert "pool" not in train(sweep=True, pool="all").sweep.varied
    stored_set(cache, SAMPLES, spaces=four_spaces()[1:3])
    with pytest.raises(NotFoundError) as caught:
        train(sweep=True, pool="all")
    assert str(caught.value) == (
        "expected --pool that features of every --tap have in data set 'set', found none; "
        "extract those taps together"
    )


def test_several_spaces_of_a_tap_are_still_ambiguous(
    cache: Path, train: Callable[..., Any]
) -> None:
    stored_set(cache, SAMPLES, spaces=four_spaces())
    with pytest.raises(UsageError, match=r"found 2 spaces that differ in --pool .* add --pool avg"):
        train()
    with pytest.raises(NotFoundError, match="with tap block3_pool, pool avg, found: block1_pool"):
        train(tap=["block1_pool", "block3_pool"], pool="avg")


SMALLER = dataclasses.replace(SECOND, preprocessing=dataclasses.replace(PREP, size=7))


@pytest.mark.parametrize(
    ("second", "difference"),
    [
        (SMALLER, "preprocessing.size: 7, not 8"),
        (dataclasses.replace(SECOND, precision="bf16"), "precision: bf16, not fp32"),
        (dataclasses.replace(SECOND, backbone="huge"), "backbone: huge, not tiny"),
    ],
)
def test_features_of_two_passes_do_not_lie_side_by_side(
    second: FeatureSpace, difference: str, cache: Path, train: Callable[..., Any]
) -> None:
    stored_set(cache, SAMPLES, spaces=[FIRST, second])
    with pytest.raises(UsageError) as caught:
        train()
    assert str(caught.value) == (
        "expected features of one extraction side by side, found in data set 'set' that "
        f"block2_pool differs from block1_pool in {difference}; extract them together: featpipe "
        "extract pretended --name set --weights random:0 --backbone tiny --tap block1_pool --tap "
        "block2_pool --pool none --pool avg --size 8 --precision fp32"
    )


def test_weights_of_two_names_do_not_lie_side_by_side(
    cache: Path, train: Callable[..., Any]
) -> None:
    dataset = stored_set(cache, SAMPLES, spaces=[FIRST, SECOND])
    dataset.info.weights[SECOND.id] = "random:1"
    save_dataset(cache, dataset)
    with pytest.raises(UsageError, match=r"differs from .* in weights: random:1, not random:0;"):
        train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tap": ["block5_pool", "block5_pool"]},
            "expected each --tap once, found 'block5_pool' twice; leave one out",
        ),
        (
            {"tap": ["all", "block5_pool"], "sweep": True},
            "expected --tap all alone, found it with 1 more; name the taps that are to lie side "
            "by side",
        ),
        (
            {"tap": ["block4_pool", "block5_pool"], "space": "abcdef"},
            "expected one --tap with --space, which is one feature space, found 2; leave out "
            "--space",
        ),
        ({"tap": []}, "expected at least one --tap, found none"),
        ({"tap": 5}, "expected one name or a list of names for --tap, found 5"),
    ],
)
def test_taps_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        HeadSpec.from_options(options)
    assert str(caught.value) == message


def test_a_head_on_maps_takes_one_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HEAD_PARAMS["mlp"], "joins_taps", False)
    assert HeadSpec(head="mlp", tap=("block4_pool",)).tap == ("block4_pool",)
    with pytest.raises(UsageError) as caught:
        HeadSpec(head="mlp", tap=("block4_pool", "block5_pool"))
    assert str(caught.value) == (
        "expected one --tap for 'mlp', which is trained on maps, found 2; name one of them"
    )


def test_a_text_and_a_list_of_taps_are_read_alike() -> None:
    for tap in ("block5_pool", ["block5_pool"], ("block5_pool",)):
        assert HeadSpec(tap=tap).tap == ("block5_pool",)  # type: ignore[arg-type]
    assert HeadSpec().tap is None
    queries = HeadSpec.from_options({"tap": ["a", "b"], "pool": "avg", "size": 32}).queries
    assert [(query.tap, query.pool, query.size) for query in queries] == [
        ("a", "avg", 32),
        ("b", "avg", 32),
    ]


def test_two_names_of_one_tap_are_one_tap(cache: Path, train: Callable[..., Any]) -> None:
    stored_set(cache, SAMPLES, spaces=[small_space(backbone="vgg16")])
    with pytest.raises(UsageError) as caught:
        train(tap=["block1_pool", "features.4"])
    assert str(caught.value) == "expected different taps, found block1_pool twice; leave one out"


def test_a_data_set_that_lacks_a_tap_is_refused_with_the_command_that_makes_it(
    cache: Path, train: Callable[..., Any]
) -> None:
    spaces = [small_space(backbone="vgg16", tap=t) for t in (*TAPS, "block3_pool")]
    stored_set(cache, SAMPLES, spaces=spaces)
    head = train(tap=[*TAPS, "block3_pool"]).head
    stored_set(cache, SAMPLES, name="other", spaces=spaces[:1])
    with pytest.raises(SpaceMismatchError) as caught:
        evaluate(head, on="other", cache=cache)
    assert str(caught.value) == (
        f"expected features of space {spaces[1].name} and {spaces[2].name} in data set 'other', "
        "found others (tap: block2_pool, not block1_pool); extract them: featpipe extract "
        "pretended --name other --weights random:0 --tap block2_pool --tap block3_pool --pool "
        "avg --size 8 --precision fp32"
    )


# With a backbone of random weights.


@pytest.fixture
def photos_head(photo_folder: Path, cache: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A head that tells red from blue by two taps of the small backbone."""
    options = {**tiny, "tap": TAPS, "pool": ["avg"]}
    extract(photo_folder, name="set", cache=cache, **options)
    out = tmp_path / "run"
    return train_head("set", cache=cache, tap=TAPS, head="logistic", C=0.1, out=out).head


def test_predict_computes_all_taps_in_one_pass(
    photos_head: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []

    class Counted(network.Network):
        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            outputs = super().__call__(pixels)
            passes.append((len(pixels), len(outputs)))
            return outputs

    monkeypatch.setattr(network, "Network", Counted)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    for i in range(4):
        class_picture(2 * (i % 2), 100 + i).save(fresh / f"{i}.png")
    (fresh / "broken.png").write_bytes(b"no picture")
    found = list(predict(photos_head, [fresh], cache=cache, device="cpu", batch_size=4, workers=1))
    labels = {Path(one.path).name: one.label for one in found}
    assert labels == {
        "0.png": "red",
        "1.png": "blue",
        "2.png": "red",
        "3.png": "blue",
        "broken.png": None,
    }
    assert passes == [(4, 2)], "every picture once, for both taps"
    extract(fresh, name="fresh", cache=cache, **_space_of(photos_head))
    assert len(passes) == 1, "all of their rows are in the cache"
    again = list(predict(photos_head, [fresh], cache=cache, device="cpu", workers=1))
    assert len(passes) == 1 and [a.probabilities for a in again] == [b.probabilities for b in found]


def _space_of(head: Path) -> dict[str, Any]:
    """The options that extract the features of a head."""
    space = load_head(head).space
    return {
        "weights": "random:0",
        "tap": TAPS,
        "pool": "avg",
        "size": space.preprocessing.size,
        "resize": space.preprocessing.resize,
        "precision": "fp32",
        "device": "cpu",
        "max_bad": 1.0,
    }


def test_predict_gives_what_the_cached_rows_give(
    photos_head: Path, photo_folder: Path, cache: Path
) -> None:
    found = list(predict(photos_head, [photo_folder], cache=cache, device="cpu", workers=1))
    table = open_features("set", "all", tap="block1_pool", cache=cache)
    expected = load_head(photos_head).predict_proba(rows_of(cache, "all", *TAPS))
    by_path = dict(zip(table.paths, expected[:, 0].tolist(), strict=True))
    for one in found:
        assert one.probabilities is not None
        name = str(Path(one.path).relative_to(photo_folder))
        assert one.probabilities["blue"] == pytest.approx(by_path[name], abs=1e-12)


def test_other_weights_are_refused(photos_head: Path, photo_folder: Path, cache: Path) -> None:
    with pytest.raises(SpaceMismatchError, match=r"up to block1_pool, found .* in random:1"):
        list(predict(photos_head, [photo_folder], cache=cache, weights="random:1", device="cpu"))


def test_lists_comparisons_and_pages_name_every_tap(
    photos_head: Path, cache: Path, tmp_path: Path
) -> None:
    spaces = load_head(photos_head).spaces
    words = "vgg16 block1_pool + block2_pool avg 16px"
    other = train_head("set", cache=cache, tap=TAPS[0], head="knn", out=tmp_path / "one").head
    listed = featpipe.list_runs(tmp_path)
    assert words in of_runs(listed)
    first = next(row for row in listed.as_json()["runs"] if row["run"] == str(photos_head))
    assert (first["tap"], first["pool"]) == ("block1_pool + block2_pool", "avg")
    assert (first["space"], first["spaces"]) == (spaces[0].id, [space.id for space in spaces])
    compared = featpipe.compare([photos_head, other], cache=cache, out=tmp_path / "c").as_json()
    rows = {row["head"]: row for row in compared["heads"]}
    assert rows[str(photos_head)]["features"] == words
    assert rows[str(photos_head)]["spaces"] == [space.id for space in spaces]
    assert rows[str(other)]["spaces"] == [spaces[0].id] and words in of_comparison(compared)
    page = evaluate(photos_head, cache=cache).report.read_text()
    for space in spaces:
        assert space.name in page and space.id in page and space.weights[:12] in page


def test_the_command_line_takes_several_taps(photos_head: Path, cache: Path, featpipe: Run) -> None:
    flags = ["--tap", TAPS[0], "--tap", TAPS[1], "--head", "knn", "--cache", cache]
    done = json_of(featpipe("train-head", "set", *flags, "--out", "two", "--json"))
    spaces = [space.id for space in load_head(photos_head).spaces]
    assert (done["space"], done["spaces"]) == (spaces[0], spaces)
    refused = featpipe("train-head", "set", *flags[:2], *flags[:2], "--cache", cache)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "Error: expected each --tap once, found 'block1_pool' twice; leave one out\n"
    )


def test_recipes_take_a_list_of_taps(
    photo_folder: Path, cache: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    recipe = tmp_path / "taps.toml"
    recipe.write_text(
        '[dataset]\nname = "set"\ndata = "photos"\n[extract]\nweights = "random:0"\n'
        'tap = ["block1_pool", "block2_pool"]\nsize = 16\nresize = "squash"\n'
        'precision = "fp32"\ndevice = "cpu"\n'
        '[[head]]\nkind = "logistic"\nC = 0.1\ntap = "block1_pool"\n'
        '[[head]]\nkind = "logistic"\nC = 0.1\ntap = ["block1_pool", "block2_pool"]\n'
        '[[head]]\nkind = "logistic"\nsweep = true\ntap = "all"\n'
    )
    # Features of another size, which the recipe does not mean.
    extract(photo_folder, name="set", cache=cache, **{**tiny, "tap": TAPS, "size": 24})
    done = featpipe.run_recipe(recipe, cache=cache, out=tmp_path / "out")
    taps = [[s.tap for s in load_head(head.head).spaces] for head, _ in done.heads[:2]]
    assert taps == [["block1_pool"], TAPS]
    swept = done.heads[2][0].sweep
    assert {row["params"]["tap"] for row in swept.rows} == set(TAPS), "each tap of the recipe"
