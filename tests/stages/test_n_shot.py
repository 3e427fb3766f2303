"""Heads of a few pictures per class: nested, repeatable, told with mean and deviation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import Run, json_of
from support.heads import MAP_KINDS, STAGE_KINDS, space_for
from support.library import evaluate, train_head
from support.runs import load_head
from support.samples import in_splits, stored_set

from featpipe.base.errors import UsageError
from featpipe.datasets.dataset import Dataset
from featpipe.heads.logistic import LogisticHead
from featpipe.heads.spread import spread_of
from featpipe.specs.heads import HeadSpec
from featpipe.specs.recipe import load_recipe
from featpipe.store.feature_store import FeatureStore

QUICK: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 0.02, "epochs": 5},
    "mlp": {"learning_rate": 0.02, "epochs": 5, "hidden": 8},
    "logistic": {"C": 0.1},
    "knn": {},
    **{kind: {"epochs": 3} for kind in MAP_KINDS},
}


@pytest.fixture
def dataset(cache: Path) -> Dataset:
    spaces = [space_for("linear"), space_for("lenet"), space_for("suffix")]
    return stored_set(cache, in_splits(train=12, val=8, test=3), spaces=spaces)


@pytest.fixture
def train(cache: Path, tmp_path: Path, dataset: Dataset) -> Callable[..., Any]:
    """Train on the data set ``set`` into ``tmp_path/run``, quickly."""

    def go(head: str = "logistic", **options: Any) -> Any:
        options = {"out": tmp_path / "run", "overwrite": True, "device": "cpu", **options}
        options.setdefault("space", space_for(head).id)
        return train_head("set", cache=cache, head=head, params=QUICK[head], **options)

    return go


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_scores_are_told_for_each_number_of_pictures(
    kind: str, train: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    result = train(kind, n_shot="5,1", tries=3, seed=7)
    table = json.loads((tmp_path / "run" / "n-shot.json").read_text())
    assert (table["schema"], table["kind"], table["dataset"]) == (1, kind, "set")
    shots = table["shots"]
    assert [(shot["n"], shot["pictures"], shot["fewer"]) for shot in shots] == [
        (1, 2, {}),
        (5, 10, {}),
    ]
    for shot in shots:
        assert [one["seed"] for one in shot["tries"]] == [7, 8, 9]
        for name in ("val_accuracy", "val_loss"):
            assert shot[name] == spread_of([one[name] for one in shot["tries"]])
    document = json.loads(json.dumps(result.as_json()))
    assert document["n_shot"] == {"table": str(tmp_path / "run" / "n-shot.json"), "shots": shots}
    # The kept head is the best of the largest number, and is as any other.
    best = min(shots[-1]["tries"], key=lambda one: one["val_loss"])
    assert document["val"]["loss"] == best["val_loss"]
    assert document["train"]["n"] == 10
    loaded = load_head(result.head)
    assert loaded.info["n_shot"]["seed"] == best["seed"] == table["kept"]["seed"]
    assert len(loaded.train_ids) == 10 + 16
    assert evaluate(result.head, cache=cache).metrics["n"] == 6


def test_fewer_pictures_are_among_more_and_no_test_row_is_read(
    train: Callable[..., Any], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[int]] = []
    read: set[bytes] = set()
    real, first = FeatureStore.rows, LogisticHead.fit

    def watched(store: FeatureStore, ids: np.ndarray) -> Any:
        read.update(row.tobytes() for row in ids)
        return real(store, ids)

    def fit(self: Any, X: Any, y: np.ndarray, *args: Any, **options: Any) -> Any:
        seen.append({np.asarray(row).tobytes() for row in X})
        return first(self, X, y, *args, **options)

    monkeypatch.setattr(FeatureStore, "rows", watched)
    monkeypatch.setattr(LogisticHead, "fit", fit)
    train(n_shot=(1, 3, 6), tries=2)
    assert [len(few) for few in seen] == [2, 2, 6, 6, 12, 12]
    for k in (0, 1):
        assert seen[k] < seen[2 + k] < seen[4 + k]
    assert seen[0] != seen[1] and seen[4] != seen[5]
    test = {dataset.image_sha256[i].tobytes() for i in dataset.in_split("test")}
    assert not read & test


def test_a_class_with_fewer_pictures_gives_all_and_copies_count_once(
    cache: Path, tmp_path: Path
) -> None:
    samples = [s for s in in_splits(train=9, val=5) if s[0] not in RARE]
    contents = {f"train/cat/{i}.png": "same" for i in (0, 1, 2)}
    stored_set(cache, samples, contents=contents)
    options = {"head": "knn", "cache": cache, "out": tmp_path / "run", "n_shot": 8, "tries": 1}
    result = train_head("set", **options)
    (shot,) = result.n_shot.shots
    assert shot["fewer"] == {"cat": 7, "dog": 4}
    assert shot["pictures"] == 11 == result.train["n"]
    assert shot["val_loss"]["sd"] is None


RARE = {f"train/dog/{i}.png" for i in range(5)}


def test_a_try_repeats_itself(train: Callable[..., Any], tmp_path: Path) -> None:
    runs = [train("mlp", n_shot=3, tries=2, out=tmp_path / name).head for name in ("a", "b")]
    for name in ("n-shot.json", "head.safetensors"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()


def test_a_plain_head_takes_an_old_table_away(train: Callable[..., Any]) -> None:
    folder = train(n_shot=2, tries=1).head
    assert (folder / "n-shot.json").exists()
    assert "n_shot" not in train().as_json()
    assert not (folder / "n-shot.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_shot": 0}, "expected --n-shot of at least 1, found 0"),
        ({"n_shot": "1,,5"}, "expected a whole number for --n-shot, found ''"),
        ({"n_shot": []}, "expected at least one whole number for --n-shot, found none"),
        ({"n_shot": 2.5}, "expected a whole number for --n-shot, found 2.5"),
        ({"tries": 3}, "expected --tries only with --n-shot, found --tries 3 without it"),
        ({"n_shot": 1, "tries": 0}, "expected --tries of 1 to 1000, found 0"),
        ({"n_shot": 1, "sweep": True}, "expected --n-shot alone, found it with --sweep"),
        (
            {"n_shot": 1, "seeds": 2, "head": "linear"},
            "expected --n-shot alone, found it with --seeds 2",
        ),
        ({"n_shot": 1, "seed": 2**32 - 5}, "the last of --tries to be at most 4294967295"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        HeadSpec.from_options({"head": "knn", **options})


def test_numbers_of_pictures_are_sorted_and_each_is_once() -> None:
    assert HeadSpec.from_options({"n_shot": "10,1,5,1"}).n_shot == (1, 5, 10)
    assert HeadSpec(n_shot=5).all_tries == 10  # type: ignore[arg-type]


def test_a_recipe_may_ask_for_few_pictures(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = '[dataset]\nname = "set"\ndata = "photos"\n[[head]]\nkind = "knn"\n{}\n'
    path.write_text(text.format("n_shot = [1, 5]\ntries = 3\ncalibrate = true"))
    (head,) = load_recipe(path).heads
    assert head == HeadSpec(head="knn", n_shot=(1, 5), tries=3, calibrate=True)
    path.write_text(text.format('n_shot = "1,5"'))
    with pytest.raises(UsageError, match=r"expected a whole number for 'n_shot' in \[\[head\]\]"):
        load_recipe(path)


def test_the_table_is_printed(inside: Run, workspace: Path) -> None:
    common = ("train-head", "colours", "--cache", workspace / "cache", "--head", "knn")
    done = inside(*common, "--n-shot", "1,1000", "--tries", "2")
    assert done.returncode == 0, done.stderr
    head, one, many, told, fewer, blank, *_ = done.stdout.splitlines()
    assert head.split() == "pictures per class in all tries val val loss".split()
    assert one.split()[0] == "1" and one.count(" ± ") == 2 and len(one) == len(many) == len(head)
    assert told.endswith("all are in runs/colours-knn-1/n-shot.json")
    assert fewer.startswith("classes with fewer than 1000 pictures, all of which were used: ")
    assert not blank
    found = json_of(inside(*common, "--n-shot", "2", "--tries", "2", "--json"))
    assert [shot["n"] for shot in found["n_shot"]["shots"]] == [2]
