"""Every stage works with the pictures of idx files as it does with those of a folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.idx import digit_like, idx_bytes, write_idx
from support.library import evaluate, extract, plan_extraction, predict, train_head

from featpipe import api
from featpipe.datasets.files import load_dataset
from featpipe.sources import image_reader
from featpipe.store.feature_store import FeatureStore

TRAIN, TEST = 30, 9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three classes; the label of ``test/00000.png`` is wrong."""
    arrays = write_idx(tmp_path / "idx", train=TRAIN, t10k=TEST)
    labels = arrays["t10k-labels-idx1-ubyte"].copy()
    labels[0] = 2
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return tmp_path / "idx"


def go(folder: Path, cache: Path, tiny: dict[str, Any], **options: Any) -> Any:
    return extract(folder, name="set", cache=cache, **{**tiny, **options})


@pytest.fixture
def head(folder: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path) -> Path:
    go(folder, cache, tiny)
    params = {"C": 0.1}
    options = {"cache": cache, "head": "logistic", "out": tmp_path / "run", "device": "cpu"}
    return train_head("set", params=params, **options).head


def test_a_second_extraction_computes_nothing(
    folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    first = go(folder, cache, tiny)
    assert (first.images, first.computed, first.splits) == (39, 39, {"train": TRAIN, "test": TEST})
    assert first.classes == ["0", "1", "2"]
    again = go(folder, cache, tiny)
    assert (again.computed, again.reused) == (0, 39)


def test_only_changed_pictures_are_computed_and_labels_follow_the_file(
    folder: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    go(folder, cache, tiny)
    images, labels = digit_like(TRAIN)
    images[4] ^= 1
    labels[4] = 7
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(images)))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    dry = plan_extraction(folder, cache=cache, name="set", **tiny)
    assert (dry.unchanged, dry.to_read, dry.splits) == (38, 1, {"train": TRAIN, "test": TEST})
    assert go(folder, cache, tiny).computed == 1
    dataset = load_dataset(cache, "set")
    assert [dataset.classes[i] for i in dataset.label[:TRAIN]] == [str(x) for x in labels]


def test_rows_are_those_of_the_same_pixels_as_png_files(
    folder: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    done = go(folder, cache, tiny)
    read = image_reader("idx", str(folder))
    (tmp_path / "files").mkdir()
    dataset = load_dataset(cache, "set")
    for number, path in enumerate(dataset.paths):
        (tmp_path / "files" / f"{number:02d}.png").write_bytes(read(path))
    as_files = extract(tmp_path / "files", name="files", cache=cache, **tiny)
    # The bytes are the ids, so the rows are there.
    assert (as_files.computed, as_files.reused) == (0, 39)
    ids = load_dataset(cache, "files").image_sha256
    assert np.array_equal(ids, dataset.image_sha256)
    assert len(FeatureStore(cache, done.spaces[0]).rows(ids)) == 39


def test_shards_merge_into_the_same_data_set(
    folder: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    for shard in ("1/2", "2/2"):
        go(folder, cache, tiny, shard=shard)
    merged = load_dataset(cache, "set")
    go(folder, tmp_path / "whole", tiny)
    assert merged.digest() == load_dataset(tmp_path / "whole", "set").digest()


def test_mistakes_are_shown_with_their_pictures(head: Path, cache: Path) -> None:
    done = evaluate(head, cache=cache)
    assert (done.split, done.metrics["n"]) == ("test", TEST)
    page = done.report.read_text()
    assert done.metrics["accuracy"] == (TEST - 1) / TEST
    assert page.count("data:image/png;base64,") == 1
    assert "test/00000.png" in page


def test_an_idx_folder_is_predicted_like_its_test_split(
    head: Path, folder: Path, cache: Path
) -> None:
    found = list(predict(head, [folder], cache=cache, device="cpu", workers=1))
    dataset = load_dataset(cache, "set")
    assert [p.path for p in found] == [f"{folder}/{path}" for path in dataset.paths]
    scored = api.evaluate(head, cache=cache)
    rows = scored.predictions.read_text().splitlines()[1:]
    assert [row.split(",")[3] for row in rows] == [str(p.label) for p in found[TRAIN:]]


def test_an_audit_shows_pictures_and_its_fixes_relabel(
    folder: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    go(folder, cache, tiny)
    done = api.audit("set", cache=cache, out=tmp_path / "audit", folds=3)
    assert done["label_errors"][0]["path"] == "test/00000.png"
    assert "data:image/png;base64," in Path(done["report"]).read_text()
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("path,label\ntrain/00001.png,2\ntest/00000.png,0\n")
    new = api.relabel("set", fixes, cache=cache)
    # No list can name these pictures: the data set alone has the new labels.
    assert (new.relabelled, new.data, new.root) == (2, None, "")
    dataset = load_dataset(cache, "set-relabelled")
    assert [dataset.classes[dataset.label[i]] for i in (1, TRAIN)] == ["2", "0"]


def test_few_pictures_per_class_can_be_tried(head: Path, cache: Path, tmp_path: Path) -> None:
    train_head(
        "set", cache=cache, head="logistic", out=tmp_path / "few", device="cpu",
        n_shot="2", tries=2, params={"C": 0.1},
    )  # fmt: skip
    (shot,) = json.loads((tmp_path / "few" / "n-shot.json").read_text())["shots"]
    assert (shot["n"], shot["pictures"]) == (2, 6)


def test_a_file_that_is_gone_costs_thumbnails_only(head: Path, folder: Path, cache: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    assert evaluate(head, cache=cache).report.exists()
