"""Heads are scored on pictures of several sizes, computed once and never left out unsaid."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import TINY_FLAGS, Run, json_of
from support.library import evaluate, extract, predict, train_head
from support.runs import load_head

from featpipe.base.errors import DataError, SpaceMismatchError, UsageError
from featpipe.datasets.files import load_dataset
from featpipe.engine.plan import at_size
from featpipe.heads.base import softmax
from featpipe.heads.dense import dense_head
from featpipe.integrations.arrays import open_features

OPTIONS: dict[str, Any] = {"workers": 1, "device": "cpu"}


def probabilities_in(path: Path) -> np.ndarray:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("p:")]
    return np.array([[float(row[name]) for name in names] for row in rows])


def averaged(*probabilities: np.ndarray) -> np.ndarray:
    """The mean over sizes: of logits, as far as probabilities are not almost 0."""
    logs = [np.log(np.maximum(p, 1e-9)) for p in probabilities]
    return softmax(np.mean(logs, axis=0))


@pytest.fixture
def trained(own_workspace: Path) -> Callable[..., Path]:
    """Train a head on the features of ``workspace``, or on others made first."""

    def go(kind: str = "linear", **options: Any) -> Path:
        cache = own_workspace / "cache"
        if options:
            pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
            tiny = {flag.removeprefix("--"): value for flag, value in pairs}
            made = {**tiny, **options}
            extract(own_workspace / "photos", name="colours", cache=cache, **made)
        chosen = {"pool": options.get("pool", "none"), "size": options.get("size", 16)}
        params = {"epochs": 20} if kind in ("linear", "mlp") else {}
        out = own_workspace / f"run-{kind}"
        trained = train_head(
            "colours", cache=cache, head=kind, device="cpu", out=out, params=params, **chosen
        )
        return Path(trained.head)

    return go


def test_each_size_is_the_head_as_convolutions_on_that_size(
    own_workspace: Path, tiny: dict[str, Any]
) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    plain = evaluate(run, cache=cache)
    expected = probabilities_in(plain.predictions)
    done = evaluate(run, cache=cache, scales="16,22", **OPTIONS)
    found = probabilities_in(done.predictions)
    trained = load_head(run)
    extract(own_workspace / "photos", name="large", cache=cache, **{**tiny, "size": 22})
    assert load_dataset(cache, "large").spaces == [
        at_size(trained.space, 22, "random:0").canonical_json
    ]
    X, _ = open_features("large", "test", cache=cache)
    scores = dense_head(trained.head, trained.spaces).scores(X)
    assert scores.shape[2:] == (4, 4)
    larger = softmax(scores.max(axis=(2, 3)))
    assert found == pytest.approx(averaged(expected, larger), abs=1e-6)
    y = [row.argmax() for row in expected]
    assert [row["size"] for row in done.scales] == [16, 22]
    assert done.scales[0]["accuracy"] == plain.metrics["accuracy"]
    assert done.metrics["accuracy"] == (found.argmax(axis=1) == y).mean()


def test_a_picture_is_computed_once_and_needed_no_more(
    own_workspace: Path, tiny: dict[str, Any]
) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    # The copy's pictures, not those that it was copied from.
    extract(own_workspace / "photos", name="colours", cache=cache, **tiny)
    first = evaluate(run, cache=cache, scales=[16, 22], **OPTIONS)
    shutil.rmtree(own_workspace / "photos")
    # Nor are weights.
    again = evaluate(run, cache=cache, scales=[16, 22], weights="nowhere.pth", **OPTIONS)
    assert again.metrics == first.metrics and again.scales == first.scales


def test_files_of_sizes_have_names_of_their_own(own_workspace: Path) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    evaluate(run, cache=cache)
    before = (run / "metrics.json").read_bytes()
    done = evaluate(run, cache=cache, scales=(22, 16, 22), split="train", **OPTIONS)
    assert (run / "metrics.json").read_bytes() == before
    assert done.report.name == "report-colours-train-scales-16-22.html"
    whole = evaluate(run, cache=cache, scales=16, frame="whole", **OPTIONS)
    assert whole.predictions.name == "predictions-scales-16-whole.csv"
    page = done.report.read_text()
    assert "Logits averaged over pictures of these sizes:" in page and "22 px" in page
    assert "Scored on whole pictures of this size:" in whole.report.read_text()


def test_whole_pictures_that_are_square_are_what_squashed_ones_are(own_workspace: Path) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    own = evaluate(run, cache=cache, scales=[16, 20], **OPTIONS)
    whole = evaluate(run, cache=cache, scales=[16, 20], frame="whole", **OPTIONS)
    expected = probabilities_in(own.predictions)
    assert probabilities_in(whole.predictions) == pytest.approx(expected, abs=1e-3)
    assert whole.as_json()["frame"] == "whole"


def test_whole_pictures_keep_their_aspect(
    own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featpipe.heads.dense import DenseHead

    cache, photos = own_workspace / "cache", own_workspace / "photos"
    shutil.rmtree(photos)
    for label in ("red", "blue"):
        (photos / label).mkdir(parents=True)
        for seed in range(3):
            rng = np.random.default_rng([seed, len(label)])
            pixels = rng.integers(0, 255, (40, 80, 3), np.uint8)
            Image.fromarray(pixels).save(photos / label / f"{seed}.png")
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    tiny = {flag.removeprefix("--"): value for flag, value in pairs}
    extract(photos, name="wide", cache=cache, **tiny)
    seen = []
    logits = DenseHead.logits
    monkeypatch.setattr(
        DenseHead, "logits", lambda self, maps: seen.append(maps.shape) or logits(self, maps)
    )
    more = {"split": "all", "scales": 20, "frame": "whole", **OPTIONS}
    evaluate(own_workspace / "run", cache=cache, on="wide", **more)
    assert seen == [(1, 64, 10, 20)] * 6


@pytest.mark.parametrize(("kind", "pool"), [("linear", "avg"), ("mlp", "avg"), ("knn", "max")])
def test_pooled_rows_of_any_size_go_into_the_head_as_they_are(
    trained: Callable[..., Path], own_workspace: Path, tiny: dict[str, Any], kind: str, pool: str
) -> None:
    cache, run = own_workspace / "cache", trained(kind, pool=pool)
    done = evaluate(run, cache=cache, scales=[8, 24], **OPTIONS)
    at_sizes = []
    for size in (8, 24):
        name = f"at-{size}"
        options = {**tiny, "size": size, "pool": pool}
        extract(own_workspace / "photos", name=name, cache=cache, **options)
        X, _ = open_features(name, "test", cache=cache, pool=pool, size=size)
        at_sizes.append(load_head(run).head.predict_proba(X))
    assert probabilities_in(done.predictions) == pytest.approx(averaged(*at_sizes), abs=1e-6)
    whole = evaluate(run, cache=cache, scales=[8, 24], frame="whole", **OPTIONS)
    expected = probabilities_in(done.predictions)
    assert probabilities_in(whole.predictions) == pytest.approx(expected, abs=1e-2)


def test_sizes_that_a_head_cannot_take_are_refused_before_anything_is_computed(
    trained: Callable[..., Path], own_workspace: Path
) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    with pytest.raises(
        UsageError,
        match=r"--scales of at least 16 for a head on maps of 64 x 8 x 8, found 12; smaller",
    ):
        evaluate(run, cache=cache, scales=[12, 400], **OPTIONS)
    knn = trained("knn")
    with pytest.raises(UsageError, match="such a head cannot score pictures of other sizes"):
        evaluate(knn, cache=cache, scales=22, **OPTIONS)


def test_pictures_that_are_missing_or_changed_are_an_error_that_counts_them(
    own_workspace: Path, tiny: dict[str, Any]
) -> None:
    cache, run = own_workspace / "cache", own_workspace / "run"
    extract(own_workspace / "photos", name="colours", cache=cache, **tiny)
    dataset = load_dataset(cache, "colours")
    test = [dataset.paths[i] for i in dataset.in_split("test")]
    photos = own_workspace / "photos"
    (photos / test[0]).unlink()
    shutil.copy(photos / test[2], photos / test[1])
    for frame in ("own", "whole"):
        with pytest.raises(DataError) as raised:
            evaluate(run, cache=cache, scales=22, frame=frame, **OPTIONS)
        assert str(raised.value) == (
            f"expected the pictures of 'colours' as they were extracted, to compute them at 22 px, "
            f"found 2 that are missing, unreadable or changed, the first {test[0]!r} (read: No "
            "such file or directory); restore them, or run the same 'featpipe extract' again"
        )
    assert not list(run.glob("*-scales-*"))


def test_other_weights_are_refused(own_workspace: Path) -> None:
    with pytest.raises(SpaceMismatchError, match="give the right ones with --weights"):
        evaluate(
            own_workspace / "run",
            cache=own_workspace / "cache",
            scales=22,
            weights="random:1",
            **OPTIONS,
        )


def test_the_command_names_sizes_and_their_scores(own_workspace: Path, inside: Run) -> None:
    flags = ("--cache", own_workspace / "cache", "--device", "cpu", "--workers", 1)
    done = inside("evaluate", own_workspace / "run", "--scales", "16,22", *flags)
    assert done.returncode == 0
    assert "  logits averaged over 16 px (100.00%), 22 px (" in done.stdout
    document = json_of(
        inside("evaluate", own_workspace / "run", "--scales", "16,22", "--json", *flags)
    )
    assert [row["size"] for row in document["scales"]] == [16, 22]
    assert document["frame"] == "own"
    assert "Logits averaged over pictures" in Path(document["report"]).read_text()
    one = inside("evaluate", own_workspace / "run", "--scales", "22", *flags)
    assert "  scored at 22 px (" in one.stdout and "averaged" not in one.stdout
    page = (own_workspace / "run" / "report-scales-22.html").read_text()
    assert "Scored on pictures of this size" in page and ">average<" not in page
    many = ",".join(map(str, range(16, 33)))
    refused = inside("evaluate", own_workspace / "run", "--scales", many, *flags)
    assert (refused.returncode, refused.stderr) == (
        2,
        "Error: expected at most 16 numbers for --scales, found 17; leave out some of them\n",
    )
    refused = inside("evaluate", own_workspace / "run", "--frame", "whole", *flags)
    assert refused.returncode == 2
    assert refused.stderr == (
        "Error: expected --frame whole only with --scales, found it without; add --scales, such "
        "as 224,288, or leave it out\n"
    )
    refused = inside("evaluate", own_workspace / "run", "--scales", "16,x", *flags)
    assert (refused.returncode, refused.stderr) == (
        2,
        "Error: expected a whole number for --scales, found 'x'\n",
    )


def test_a_network_for_one_size_is_refused(own_workspace: Path) -> None:
    cache = own_workspace / "cache"
    options = {
        "backbone": "timm/vit_tiny_patch16_224",
        "weights": "random:0",
        "tap": "blocks.0",
        "pool": "cls",
        "precision": "fp32",
    }
    pytest.importorskip("timm")
    extract(own_workspace / "photos", name="tokens", cache=cache, **options)
    run = train_head(
        "tokens", cache=cache, device="cpu", out=own_workspace / "vit", params={"epochs": 1}
    )
    with pytest.raises(UsageError, match=r"expected a --size that .* such as 224, found 448"):
        evaluate(run.head, cache=cache, scales=224, frame="whole", **OPTIONS)


@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_a_small_network_on_pixels_takes_larger_pictures(
    own_workspace: Path, channels: str
) -> None:
    cache, photos = own_workspace / "cache", own_workspace / "photos"
    options = {"backbone": "pixels", "size": 20, "resize": "squash", "channels": channels}
    extract(photos, name="pixels", cache=cache, **options)
    params = {"head": "lenet", "epochs": 2, "out": own_workspace / "lenet"}
    run = Path(train_head("pixels", cache=cache, device="cpu", **params).head)
    own = evaluate(run, cache=cache, scales=[20, 36], **OPTIONS)
    whole = evaluate(run, cache=cache, scales=[20, 36], frame="whole", **OPTIONS)
    expected = probabilities_in(own.predictions)
    assert probabilities_in(whole.predictions) == pytest.approx(expected, abs=1e-5)
    picture = photos / "red" / "00.png"
    more = {"cache": cache, "maps": own_workspace / "maps", **OPTIONS}
    (answer,) = predict(run, [picture], **more)
    assert answer.map is not None
    with Image.open(answer.map) as image:
        assert image.size == (240, 240)


def test_a_recipe_may_ask_for_sizes(own_workspace: Path, inside: Run) -> None:
    recipe = own_workspace / "recipe.toml"
    recipe.write_text(
        """
        [dataset]
        name = "colours"
        data = "photos"
        [extract]
        weights = "random:0"
        tap = "block1_pool"
        size = 16
        resize = "squash"
        precision = "fp32"
        [[head]]
        kind = "linear"
        epochs = 5
        [evaluate]
        scales = [16, 22]
        """
    )
    flags = ("--cache", own_workspace / "cache", "--out", own_workspace / "out", "--device", "cpu")
    document = json_of(inside("run", recipe, "--json", *flags))
    scales = document["heads"][0]["evaluation"]["scales"]
    assert [row["size"] for row in scales] == [16, 22]
