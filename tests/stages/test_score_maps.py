"""Score maps: files beside predictions, pictures in the report."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import Run
from support.library import evaluate, predict, train_head

from featpipe.base.errors import StorageError, UsageError
from featpipe.reports.heat_map import heat_map, log_odds
from featpipe.runs.map_files import map_file_name

OPTIONS: dict[str, Any] = {"workers": 1, "device": "cpu"}


def test_every_readable_picture_gets_a_map_of_its_aspect(own_workspace: Path) -> None:
    photos, folder = own_workspace / "photos", own_workspace / "deep" / "maps"
    wide = own_workspace / "wide.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (300, 1200, 3), np.uint8)).save(wide)
    (own_workspace / "bad.jpg").write_bytes(b"no picture")
    paths = [own_workspace / "bad.jpg", photos / "red" / "00.png", wide, photos / "blue"]
    options = {"cache": own_workspace / "cache", **OPTIONS}
    plain = list(predict(own_workspace / "run", paths, **options))
    found = list(predict(own_workspace / "run", paths, maps=folder, **options))
    assert [(p.path, p.probabilities) for p in found] == [(p.path, p.probabilities) for p in plain]
    assert len(found) == 23
    assert found[0].map is None and found[0].error
    assert {p.map for p in found[1:]} == set(folder.iterdir())
    for p in found[1:]:
        assert p.map is not None
        with Image.open(p.map) as image, Image.open(p.path) as picture:
            image.load()
            assert image.format == "PNG" and image.mode == "RGB" and max(image.size) <= 800
            aspect = image.width / image.height, picture.width / picture.height
            assert aspect[0] == pytest.approx(aspect[1], rel=0.02)
    # The same command writes the same files.
    before = {path: path.read_bytes() for path in folder.iterdir()}
    list(predict(own_workspace / "run", paths, maps=folder, **options))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_map_names_are_safe_and_different() -> None:
    paths = ["a/b.jpg", "a_b.jpg", "../a/b.jpg", "é\udcff\n.png", "x" * 500 + ".png", "/", "A/b"]
    names = [map_file_name(path) for path in paths]
    assert len({name.lower() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.png", name) and len(name) < 128
    assert names[0] == f"a_b.jpg-{hashlib.sha256(b'a/b.jpg').hexdigest()[:8]}.png"


def test_the_map_is_red_where_the_class_is(own_workspace: Path) -> None:
    # The head tells red from blue; a picture has red on its left and blue on its right.
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (40, 160, 3), np.uint8)
    pixels[:, :80, 0] += 100
    pixels[:, 80:, 2] += 100
    path = own_workspace / "both.png"
    Image.fromarray(pixels).save(path)
    options = {"cache": own_workspace / "cache", **OPTIONS}
    (answer,) = predict(own_workspace / "run", [path], maps=own_workspace / "maps", **options)
    assert answer.map is not None
    colours = np.asarray(Image.open(answer.map)).astype(int)
    redness = (colours[..., 0] - colours[..., 2]).mean(axis=0)
    half = len(redness) // 2
    left, right = redness[:half].mean(), redness[half:].mean()
    assert (left > right + 60) if answer.label == "red" else (right > left + 60)


@pytest.mark.parametrize(
    ("places", "window"), [((4, 4), (1, 1)), ((3, 6), (5, 2)), ((1, 1), (8, 8))]
)
def test_pixels_have_the_mean_of_the_windows_that_they_lie_in(
    places: tuple[int, int], window: tuple[int, int]
) -> None:
    from matplotlib import colormaps

    steps = [n + w - 1 for n, w in zip(places, window, strict=True)]
    # 33 pixels a step, so that some lie in the very middle of one.
    scores = np.random.default_rng(0).normal(0, 3, places)
    pixels = np.zeros((steps[0] * 33, steps[1] * 33, 3), np.uint8)
    found = np.asarray(heat_map(pixels, scores, window))[16::33, 16::33].astype(int)
    expected = np.empty(steps)
    for i, j in np.ndindex(*steps):
        rows = [r for r in range(places[0]) if r <= i < r + window[0]]
        columns = [c for c in range(places[1]) if c <= j < c + window[1]]
        expected[i, j] = scores[np.ix_(rows, columns)].mean()
    shown = (expected - expected.min()) / max(np.ptp(expected), 1.0)
    colours = colormaps["turbo"](shown, bytes=True)[..., :3].astype(int)
    assert np.abs(found - colours // 2).max() <= 3


def test_log_odds_compare_a_class_with_all_others() -> None:
    scores = np.random.default_rng(0).normal(0, 5, (4, 2, 3)).astype(np.float32)
    e = np.exp(scores.astype(np.float64))
    assert log_odds(scores, 1) == pytest.approx(np.log(e[1] / (e.sum(axis=0) - e[1])))
    assert np.isfinite(log_odds(100 * scores, 1)).all()
    assert log_odds(scores[:1], 0) == pytest.approx(scores[0])


def test_small_pictures_are_enlarged_in_whole_pixels_and_large_ones_shrunk() -> None:
    scores = np.zeros((2, 2))
    assert heat_map(np.zeros((30, 20, 3), np.uint8), scores, (1, 1)).size == (160, 240)
    assert heat_map(np.zeros((30, 20, 3), np.uint8), scores, (1, 1), largest=160).size == (100, 150)
    assert heat_map(np.zeros((900, 1600, 3), np.uint8), scores, (1, 1)).size == (800, 450)


def test_heads_without_maps_and_other_files_are_refused_at_once(own_workspace: Path) -> None:
    cache = own_workspace / "cache"
    knn = train_head("colours", cache=cache, head="knn", device="cpu", out=own_workspace / "knn")
    options = {"cache": cache, **OPTIONS}
    with pytest.raises(UsageError, match="a head that is a network, found 'knn'"):
        predict(knn.head, [own_workspace / "photos"], maps=own_workspace / "maps", **options)
    (own_workspace / "file").touch()
    with pytest.raises(UsageError, match="expected a folder as --maps, found a file at"):
        predict(own_workspace / "run", [cache], maps=own_workspace / "file", **options)
    assert not (own_workspace / "maps").exists()


def test_the_command_says_where_the_maps_are(own_workspace: Path, inside: Run) -> None:
    (own_workspace / "photos" / "bad.jpg").write_bytes(b"")
    flags = ("--cache", "cache", "--device", "cpu", "--workers", 1, "--maps", "maps")
    done = inside("predict", "run", "photos/bad.jpg", "photos/red/01.png", *flags)
    assert done.returncode == 3
    name = f"maps/{map_file_name('photos/red/01.png')}"
    header, bad, good = done.stdout.splitlines()
    assert header == "path,label,probability,error,map" and (own_workspace / name).is_file()
    assert bad == "photos/bad.jpg,,,read: the file is empty,"
    assert good.startswith("photos/red/01.png,red,") and good.endswith(f",,{name}")
    done = inside("predict", "run", "photos/bad.jpg", "photos/red/01.png", "--json", *flags)
    assert [json.loads(line)["map"] for line in done.stdout.splitlines()] == [None, name]
    done = inside("predict", "run", "photos/red/01.png", "--json", *flags[:-2])
    assert "map" not in json.loads(done.stdout)
    done = inside("predict", "run", "photos/red", *flags[:-1], "run/head.json")
    assert (done.returncode, done.stderr) == (
        2,
        "Error: expected a folder as --maps, found a file at run/head.json; name another\n",
    )


def test_a_folder_that_cannot_be_written_is_a_storage_error(own_workspace: Path) -> None:
    folder = own_workspace / "maps"
    path = own_workspace / "photos" / "red" / "01.png"
    (folder / map_file_name(str(path))).mkdir(parents=True)
    answers = predict(
        own_workspace / "run", [path], cache=own_workspace / "cache", maps=folder, **OPTIONS
    )
    with pytest.raises(StorageError):
        list(answers)
    assert [p.name for p in folder.iterdir()] == [map_file_name(str(path))]


def wrong_run(workspace: Path) -> tuple[Path, Path]:
    """A head that has learnt red and blue, and a data set whose labels are the other way round."""
    photos = workspace / "swapped"
    for label, other in (("red", "blue"), ("blue", "red")):
        shutil.copytree(workspace / "photos" / label, photos / other)
    return workspace / "run", photos


def test_the_report_shows_maps_of_the_worst_mistakes(
    own_workspace: Path, tiny: dict[str, Any]
) -> None:
    from support.library import extract

    run, photos = wrong_run(own_workspace)
    cache = own_workspace / "cache"
    extract(photos, name="swapped", cache=cache, **tiny)
    plain = evaluate(run, cache=cache, on="swapped", split="all")
    assert 'alt="score map' not in plain.report.read_text()
    done = evaluate(run, cache=cache, on="swapped", split="all", maps=True, **OPTIONS)
    assert done.metrics == plain.metrics and len(done.notes) == len(plain.notes)
    page = done.report.read_text()
    assert len(re.findall(r'alt="score map of (?:red|blue)"', page)) == 12
    assert "the redder a place" in page
    os.rename(photos, own_workspace / "moved")
    gone = evaluate(run, cache=cache, on="swapped", split="all", maps=True, **OPTIONS)
    assert 'alt="score map' not in gone.report.read_text()
    note = "no score maps for 12 of the worst mistakes: their pictures are missing or changed"
    assert note in gone.notes and note in gone.report.read_text()
    lacking = evaluate(
        run, cache=cache, on="swapped", split="all", maps=True, weights="random:9", **OPTIONS
    )
    assert any(note.startswith("no score maps: expected weights of") for note in lacking.notes)
