"""Heads trained on views of their training pictures, and scores averaged over views."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import TINY_FLAGS, Run, json_of
from support.heads import MAP_KINDS, space_for
from support.library import evaluate, train_head
from support.runs import load_head, rewrite
from support.samples import image_ids, in_splits, small_space, stored_set
from support.views import LIGHT, stored_views, view_of

from featpipe.base.errors import NotFoundError, UsageError
from featpipe.base.space import Augmentation
from featpipe.cli.formatting import of_evaluation, of_training
from featpipe.datasets.dataset import Dataset
from featpipe.datasets.files import load_dataset
from featpipe.datasets.training_split import training_rows
from featpipe.runs.words import head_words
from featpipe.specs.views import ViewChoice
from featpipe.stages.scoring import score_head
from featpipe.store.feature_store import FeatureStore

SAMPLES = in_splits(train=20, val=8, test=6)
FLIP = Augmentation(policy="flip", version=LIGHT.version)
QUICK: dict[str, Any] = {"epochs": 4, "learning_rate": 0.01}
NOTED = {"policy": "light", "version": LIGHT.version, "seed": 0, "number": 2}


@pytest.fixture
def train(cache: Path, tmp_path: Path) -> Callable[..., Any]:
    def go(name: str = "run", **options: Any) -> Any:
        given = {"head": "linear", "out": tmp_path / name, "overwrite": True, **QUICK}
        return train_head("set", cache=cache, device="cpu", **{**given, **options})

    return go


def tensors(result: Any) -> bytes:
    return (result.head / "head.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["linear", "mlp", MAP_KINDS[0]])
def test_views_are_used_where_there_are_some_and_noted(
    kind: str, cache: Path, train: Callable[..., Any]
) -> None:
    dataset = stored_set(cache, SAMPLES, spaces=[space_for(kind)])
    before = train("before", head=kind)
    assert before.views is None and before.as_json()["views"] is None
    stored_views(cache, dataset)
    done = train(head=kind)
    assert done.views == done.as_json()["views"] == NOTED
    document = json.loads((done.head / "head.json").read_text())
    assert document["info"]["views"] == NOTED and document["format"] == 1
    assert (
        f"s, with 2 views (light): validation accuracy {done.val['accuracy']:.2%}"
        in of_training(done)
    )
    assert tensors(done) != tensors(before) and tensors(done) == tensors(train("2", head=kind))
    # Mean and scale are those of the pictures themselves.
    old, new = load_head(before.head).head, load_head(done.head).head
    assert np.array_equal(old.mean_, new.mean_) and np.array_equal(old.scale_, new.scale_)
    # As are the validation scores.
    scored = evaluate(done.head, cache=cache, split="val")
    assert scored.metrics["accuracy"] == done.val["accuracy"]
    assert scored.metrics["log_loss"] == pytest.approx(done.val["loss"], abs=1e-5)
    without = train("without", head=kind, no_views=True)
    assert without.views is None and tensors(without) == tensors(before)
    assert "views" not in json.loads((without.head / "head.json").read_text())["info"]
    assert ", with" not in of_training(without)


def test_the_head_is_fed_view_0_and_each_view(
    cache: Path, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from featpipe.heads.training import fit

    dataset = stored_set(cache, SAMPLES)
    made = stored_views(cache, dataset)
    given: list[Any] = []
    real = fit.feature_rows

    def watched(X: Any, *more: Any, **options: Any) -> Any:
        given.append(X)
        return real(X, *more, **options)

    monkeypatch.setattr(fit, "feature_rows", watched)
    train()
    X, X_val = given
    rows, ids = dataset.in_split("train"), dataset.image_sha256
    for view, space in zip(X.views, made, strict=True):
        assert np.array_equal(view[:], FeatureStore(cache, space).rows(ids[rows])[:])
    assert not getattr(X_val, "views", ())
    val = FeatureStore(cache, small_space()).rows(ids[dataset.in_split("val")])
    assert np.array_equal(X_val[:], val[:])


def test_views_of_pictures_that_validate_are_never_read(
    cache: Path, train: Callable[..., Any]
) -> None:
    # There is no val: a part of train, by content, validates. Its views are in the stores of
    # train's views, where they would show the head what it is selected by.
    dataset = stored_set(cache, in_splits(train=30))
    _, val = training_rows(dataset, 0.2)
    assert len(val) > 5
    stored_views(cache, dataset, without=val)
    assert train().views == NOTED


def test_seeds_sweeps_and_few_shots_draw_views_too(cache: Path, train: Callable[..., Any]) -> None:
    stored_views(cache, stored_set(cache, SAMPLES))
    for options in ({"sweep": True, "epochs": 1}, {"seeds": 3}, {"n_shot": 3, "tries": 2}):
        done, again = train("a", **options), train("b", **options)
        without = train("c", no_views=True, **options)
        assert done.views == NOTED and without.views is None
        assert tensors(done) == tensors(again) != tensors(without)


def test_a_sweep_over_taps_uses_the_views_that_each_has(
    cache: Path, train: Callable[..., Any]
) -> None:
    spaces = [small_space(), small_space(tap="block2_pool")]
    dataset = stored_set(cache, SAMPLES, spaces=spaces)
    stored_views(cache, dataset, spaces=spaces[:1])
    done = train(sweep=True, tap="all", epochs=1)
    (kept,) = load_head(done.head).spaces
    assert done.views == (NOTED if kept == spaces[0] else None)
    joined = train("joined", tap=["block1_pool", "block2_pool"])
    assert joined.views is None, "one of the taps has no views"
    stored_views(cache, dataset, spaces=spaces[1:])
    assert train("joined", tap=["block1_pool", "block2_pool"]).views == NOTED


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_heads_without_epochs_are_trained_on_the_pictures_themselves(
    kind: str, cache: Path, train: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = stored_set(cache, SAMPLES)
    before = train("before", head=kind, epochs=None, learning_rate=None)
    stored_views(cache, dataset)
    stored_views(cache, dataset, drawn=FLIP)
    with caplog.at_level("INFO", "featpipe"):
        done = train(head=kind, epochs=None, learning_rate=None)
    assert done.views is None and tensors(done) == tensors(before)
    assert f"'{kind}' head: trained on the pictures themselves; views" in caplog.text
    with pytest.raises(UsageError, match=f"--augment only for heads .* found it for '{kind}'"):
        train(head=kind, epochs=None, learning_rate=None, augment="light")


def test_several_augmentations_must_be_chosen_from(cache: Path, train: Callable[..., Any]) -> None:
    dataset = stored_set(cache, SAMPLES)
    stored_views(cache, dataset)
    stored_views(cache, dataset, (1, 2, 3), drawn=FLIP, spaces=[small_space()])
    with pytest.raises(UsageError) as caught:
        train()
    assert str(caught.value) == (
        "expected --augment to choose one of the views of 'set', found 2: 3 views (flip), 2 views "
        "(light); for the first add --augment flip, or train without views: --no-views"
    )
    assert train(augment="light").views == NOTED
    assert train(augment="flip").views == {**NOTED, "policy": "flip", "number": 3}
    assert train(no_views=True).views is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"augment": "standard"},
            "expected views of policy standard of every training picture of 'set', found: 2 views "
            "(light); make them: featpipe extract pretended --name set --weights random:0 "
            "--backbone "
            "tiny --tap block1_pool --pool avg --size 8 --precision fp32 --views 4 --augment "
            "standard --augment-seed 0 --views-of train",
        ),
        (
            {"augment_seed": 3},
            "expected views of seed 3 of every training picture of 'set', found: 2 views (light); "
            "make them: featpipe extract pretended --name set --weights random:0 --backbone "
            "tiny --tap "
            "block1_pool --pool avg --size 8 --precision fp32 --views 4 --augment light "
            "--augment-seed 3 --views-of train",
        ),
    ],
)
def test_views_that_are_asked_for_and_missing_name_the_command(
    options: dict[str, Any], expected: str, cache: Path, train: Callable[..., Any]
) -> None:
    stored_views(cache, stored_set(cache, SAMPLES))
    with pytest.raises(NotFoundError) as caught:
        train(**options)
    assert str(caught.value) == expected


def test_a_training_picture_without_a_row_is_an_error(
    cache: Path, train: Callable[..., Any]
) -> None:
    stored_views(cache, stored_set(cache, SAMPLES), without=[0, 5])
    with pytest.raises(NotFoundError) as caught:
        train()
    assert str(caught.value) == (
        "expected all 40 pictures in each of 2 views (light), found 2 without a row: they were "
        "computed for other splits or pictures; compute them: featpipe extract pretended "
        "--name set "
        "--weights random:0 --backbone tiny --tap block1_pool --pool avg --size 8 --precision fp32 "
        "--views 2 --augment light --augment-seed 0 --views-of train, or train without views: "
        "--no-views"
    )
    assert train(no_views=True).views is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"augment": "flip", "no_views": True},
            "expected --augment without --no-views, found both; leave one out",
        ),
        (
            {"augment_seed": 1, "view": 2},
            "expected --augment-seed only where view 0 is trained on, found it with --view 2, "
            "which is one view alone; leave one out",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], expected: str, cache: Path, train: Callable[..., Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        train(**options)
    assert str(caught.value) == expected


def test_a_head_can_be_trained_on_one_view_alone(cache: Path, train: Callable[..., Any]) -> None:
    dataset = stored_set(cache, SAMPLES)
    stored_views(cache, dataset, (1, 2), of=["train", "val", "test"])
    done = train(view=2)
    assert done.views is None
    assert load_head(done.head).spaces == (view_of(small_space(), 2),)
    with pytest.raises(NotFoundError, match="for --tta, found: none"):
        evaluate(done.head, cache=cache, tta=True)


def test_views_tell_heads_apart(cache: Path, train: Callable[..., Any]) -> None:
    stored_views(cache, stored_set(cache, SAMPLES))
    info = load_head(train().head).info
    assert head_words("linear", {}, info) == "linear views=2 light"
    assert head_words("linear", {}, {"views": "many"}) == "linear"


# Averaging over views in evaluation.


@pytest.fixture
def tested(cache: Path, train: Callable[..., Any]) -> tuple[Dataset, Path]:
    """A data set with two light views of test, and a head of it."""
    dataset = stored_set(cache, SAMPLES)
    head = train().head
    stored_views(cache, dataset, of=["test"], scale=2.0)
    return dataset, head


def test_probabilities_are_averaged_over_each_picture_and_its_views(
    cache: Path, tested: tuple[Dataset, Path]
) -> None:
    dataset, folder = tested
    plain = evaluate(folder, cache=cache)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    done = evaluate(folder, cache=cache, tta=True)
    assert plain.tta is None and plain.as_json()["tta"] is None
    assert done.tta == {"policy": "light", "seed": 0, "views": 2}
    ids = dataset.image_sha256[dataset.in_split("test")]
    spaces = [small_space(), view_of(small_space(), 1), view_of(small_space(), 2)]
    head = load_head(folder)
    each = [head.predict_proba(FeatureStore(cache, space).rows(ids)) for space in spaces]
    expected = sum(each) / 3
    lines = done.predictions.read_text().splitlines()
    found = np.array([[float(x) for x in line.split(",")[-2:]] for line in lines[1:]])
    assert np.allclose(found, expected, atol=1e-6) and not np.allclose(found, each[0], atol=1e-3)
    # The plain evaluation stays as it was.
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert [path.name for path in (done.predictions, done.report)] == [
        "predictions-tta.csv",
        "report-tta.html",
    ]
    document = json.loads((folder / "metrics-tta.json").read_text())
    assert document["tta"] == done.tta
    assert "  probabilities averaged over each picture and its 2 views (light)" in of_evaluation(
        done
    )
    assert "averaged over each picture and its 2 views (light)." in done.report.read_text()
    assert "averaged over" not in plain.report.read_text()


def test_other_splits_have_names_of_their_own(cache: Path, train: Callable[..., Any]) -> None:
    stored_views(cache, stored_set(cache, SAMPLES), of=["train", "val", "test"])
    head = train().head
    for split, name in (("all", "-set-all-tta"), (None, "-tta")):
        done = evaluate(head, cache=cache, split=split, tta=True)
        assert done.report.name == f"report{name}.html"
        assert done.tta == {"policy": "light", "seed": 0, "views": 2}


def averaged(head: Path, cache: Path, **choice: Any) -> tuple[str, int]:
    """Which views are averaged over: their policy and number."""
    views = score_head(
        head, on=None, split=None, cache=cache, averaged_views=ViewChoice(**choice)
    ).views
    assert views is not None
    return views.augmentation.policy, views.number


def test_the_heads_own_augmentation_is_averaged_over(
    cache: Path, train: Callable[..., Any]
) -> None:
    dataset = stored_set(cache, SAMPLES)
    stored_views(cache, dataset, of=["train"])
    own, plain = train("own").head, train("plain", no_views=True).head
    stored_views(cache, dataset, (1,), of=["test"], drawn=FLIP)
    for head in (own, plain):
        # The only one there.
        assert averaged(head, cache) == ("flip", 1)
    stored_views(cache, dataset, (1, 2, 3), of=["test"])
    assert averaged(own, cache) == ("light", 3)
    with pytest.raises(UsageError) as caught:
        averaged(plain, cache)
    assert str(caught.value) == (
        "expected --augment to choose one of the views of 'set', found 2: 1 view (flip), 3 views "
        "(light); for the first add --augment flip"
    )
    assert averaged(own, cache, augment="flip") == ("flip", 1)
    # What a head notes may come from elsewhere.
    rewrite(own, lambda d: d["info"].update(views={"policy": "odd", "version": 1, "seed": 0}))
    with pytest.raises(UsageError, match="expected --augment to choose"):
        averaged(own, cache)


def test_missing_views_name_the_command_that_makes_them(
    cache: Path, train: Callable[..., Any]
) -> None:
    dataset = stored_set(cache, SAMPLES)
    own = Augmentation(policy="light", version=1, seed=9)
    stored_views(cache, dataset, (1, 2, 3), drawn=own)
    command = (
        "featpipe extract pretended --name set --weights random:0 --backbone tiny --tap "
        "block1_pool "
        "--pool avg --size 8 --precision fp32"
    )
    head = train().head
    for options, asked, views in (
        ({}, "", "--views 3 --augment light --augment-seed 9"),
        ({"augment": "flip"}, " of policy flip", "--views 4 --augment flip --augment-seed 0"),
    ):
        with pytest.raises(NotFoundError) as caught:
            evaluate(head, cache=cache, tta=True, **options)
        assert str(caught.value) == (
            f"expected views{asked} of every picture of split 'test' of 'set' for --tta, found: "
            f"none; make them: {command} {views} --views-of test"
        )
    stored_views(cache, dataset, of=["test"], without=dataset.in_split("test")[:1])
    with pytest.raises(NotFoundError, match=r"found 1 without a row: .*, or leave out --tta$"):
        evaluate(head, cache=cache, tta=True)


def test_a_choice_of_views_without_averaging_is_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(tmp_path / "run", cache=cache, augment="flip")
    assert str(caught.value) == (
        "expected --augment only with --tta, found it without; add --tta or leave it out"
    )


def test_the_command_line_trains_on_views_and_averages_over_them(
    inside: Run, cache: Path, tmp_path: Path
) -> None:
    stored_views(cache, stored_set(cache, SAMPLES), of=["train", "test"])
    flags = ["--cache", cache, "--epochs", 3, "--device", "cpu"]
    done = inside("train-head", "set", *flags, "--out", "run")
    assert done.returncode == 0 and ", with 2 views (light): validation" in done.stdout
    done = inside("train-head", "set", *flags, "--out", "plain", "--no-views", "--json")
    assert json_of(done)["views"] is None
    done = inside("train-head", "set", *flags, "--out", "x", "--augment", "flip")
    assert (
        done.returncode == 10
        and "--views 4 --augment flip --augment-seed 0 --views-of train" in done.stderr
    )
    done = inside("train-head", "set", *flags, "--augment", "cubist")
    assert done.returncode == 2 and "to be one of flip, light, standard" in done.stderr
    done = inside("evaluate", "run", "--cache", cache, "--tta", "--json")
    assert json_of(done)["tta"] == {"policy": "light", "seed": 0, "views": 2}
    assert json_of(done)["report"] == str(Path("run") / "report-tta.html")
    done = inside("evaluate", "run", "--cache", cache, "--tta", "--split", "val")
    assert done.returncode == 10 and done.stdout == "" and "--views-of val" in done.stderr
    done = inside("evaluate", "run", "--cache", cache, "--augment", "light")
    assert done.returncode == 2 and "only with --tta" in done.stderr


def test_relabelled_or_changed_lists_keep_what_covers_them(
    cache: Path, train: Callable[..., Any]
) -> None:
    # Pictures that join train later have no views: the command that computes them is named.
    dataset = stored_set(cache, SAMPLES)
    stored_views(cache, dataset)
    grown = load_dataset(cache, "set")
    assert grown.info.covers == dataset.info.covers
    more = image_ids("late")
    FeatureStore(cache, small_space()).append(more, np.ones((1, 4), np.float16), {})
    late = stored_set(cache, [*SAMPLES, ("train/cat/late.png", "cat", "train")])
    late.spaces, late.info = grown.spaces, grown.info
    from featpipe.datasets.files import save_dataset

    save_dataset(cache, late)
    with pytest.raises(NotFoundError, match="found 1 without a row"):
        train()


def test_views_of_the_light_policy_are_told_in_the_report(
    cache: Path, train: Callable[..., Any]
) -> None:
    stored_views(cache, stored_set(cache, SAMPLES))
    page = evaluate(train().head, cache=cache).report.read_text()
    assert f"2 views (light), version {LIGHT.version}: each epoch took one of them" in page


def test_views_of_real_pictures_from_the_commands_that_messages_name(
    photo_folder: Path, inside: Run, cache: Path
) -> None:
    flags = ["--cache", cache, "--device", "cpu", "-q"]
    here = [*TINY_FLAGS, "--workers", 1, "--cache", cache, "-q"]
    assert inside("extract", photo_folder, "--name", "set", *here).returncode == 0
    train = ["train-head", "set", "--epochs", 3, "--json", "--overwrite", *flags, "--out"]
    assert json_of(inside(*train, "a"))["views"] is None

    def follow(message: str) -> None:
        """Run the command that a message names, word for word."""
        (words,) = re.findall(r"make them: featpipe (extract .*)", message)
        done = inside(*words.split(), "--device", "cpu", "--workers", 1, "--cache", cache, "-q")
        assert done.returncode == 0, done.stderr

    follow(inside(*train, "a", "--augment", "light").stderr)
    trained = json_of(inside(*train, "a"))
    assert trained["views"]["policy"] == "light" and trained["views"]["number"] == 4
    scores = ["evaluate", "a", "--cache", cache, "--json", "-q", "--tta"]
    follow(inside(*scores).stderr)
    assert json_of(inside(*scores))["tta"] == {"policy": "light", "seed": 0, "views": 4}
    # val has no views of its own.
    assert inside(*scores, "--split", "val").returncode == 10


def test_a_recipe_trains_with_and_without_views_and_averages_over_them(
    photo_folder: Path, inside: Run, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(
        f"""
        [dataset]
        name = "set"
        data = "{photo_folder.name}"
        [extract]
        weights = "random:0"
        tap = "block1_pool"
        size = 16
        resize = "squash"
        precision = "fp32"
        device = "cpu"
        workers = 1
        views = 2
        augment = "flip"
        views_of = ["train", "test"]
        [[head]]
        kind = "linear"
        epochs = 2
        [[head]]
        kind = "linear"
        epochs = 2
        no_views = true
        [evaluate]
        tta = true
        """
    )
    done = json_of(inside("run", "recipe.toml", "--out", "out", "--json", "-q"))
    assert [head["train"]["views"] for head in done["heads"]] == [
        {**NOTED, "policy": "flip"},
        None,
    ]
    assert (
        "probabilities are averaged over each picture and its 2 views (flip)"
        in (done["comparison"]["notes"])
    )
    for head in done["heads"]:
        assert head["evaluation"]["tta"] == {"policy": "flip", "seed": 0, "views": 2}
        assert head["evaluation"]["report"].endswith("report-tta.html")
    assert "linear epochs=2 views=2 flip" in inside("runs", "out").stdout
