"""An audit names duplicates, wrong labels and outliers, and leaves a page and a CSV."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.samples import class_picture, image_ids, in_splits, small_space, stored_set

from featpipe import api
from featpipe.base.errors import DataError, NotFoundError, UsageError
from featpipe.datasets.dataset import Status
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.store.feature_store import FeatureStore

KEYS = {
    *"dataset space pictures label_errors label_check near_duplicates".split(),
    *"near_duplicates_found near_duplicates_across_splits exact_duplicates outliers".split(),
    *"tiny_classes report fixes seconds".split(),
}


@pytest.fixture
def audit(cache: Path, tmp_path: Path) -> Any:
    """Audit a data set into ``tmp_path/audit``."""

    def go(name: str = "set", **options: Any) -> Any:
        options = {"out": tmp_path / "audit", "folds": 3, "overwrite": True, **options}
        return api.audit(name, cache=cache, **options)

    return go


def fixes_of(found: Any) -> list[dict[str, str]]:
    text = Path(found["fixes"]).read_bytes().decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def relabelled(cache: Path, labels: dict[str, str]) -> None:
    """Give pictures of the data set ``set`` other labels; their rows stay."""
    dataset = load_dataset(cache, "set")
    for path, label in labels.items():
        dataset.label[dataset.paths.index(path)] = dataset.classes.index(label)
    save_dataset(cache, dataset)


def add_copies(cache: Path, copies: dict[str, tuple[str, str]], noise: float = 0.0) -> None:
    """Add pictures (path → of, split) whose rows are those of others, up to ``noise``."""
    dataset = load_dataset(cache, "set")
    store = FeatureStore(cache, small_space())
    sources = [dataset.paths.index(of) for of, _ in copies.values()]
    rows = np.asarray(store.rows(dataset.image_sha256[sources]))
    rng = np.random.default_rng(0)
    ids = image_ids(*copies)
    store.append(ids, (rows + noise * rng.normal(size=rows.shape)).astype(rows.dtype), {})
    dataset.paths += list(copies)
    dataset.label = np.concatenate([dataset.label, dataset.label[sources]])
    splits = [("train", "val", "test").index(split) for _, split in copies.values()]
    dataset.split = np.concatenate([dataset.split, np.array(splits, np.int8)])
    dataset.image_sha256 = np.concatenate([dataset.image_sha256, ids])
    dataset.status = np.concatenate([dataset.status, np.zeros(len(copies), np.int8)])
    dataset.stat = np.concatenate([dataset.stat, np.full((len(copies), 3), -1)])
    save_dataset(cache, dataset)


def test_the_document_has_its_keys_and_lies_beside_the_page(
    cache: Path, audit: Any, tmp_path: Path
) -> None:
    stored_set(cache, in_splits(train=20, test=10))
    found = audit()
    assert set(found) == KEYS
    assert sorted(p.name for p in (tmp_path / "audit").iterdir()) == [
        "audit.html",
        "audit.json",
        "fixes.csv",
    ]
    assert json.loads((tmp_path / "audit" / "audit.json").read_text()) == {"schema": 1, **found}
    assert found["pictures"] == 60
    assert found["label_check"]["checked"] == 60
    assert found["label_check"]["skipped"] is None


def test_a_flipped_label_is_found_with_the_right_one(cache: Path, audit: Any) -> None:
    stored_set(cache, in_splits(train=40, test=10))
    relabelled(cache, {"train/cat/3.png": "dog", "test/dog/4.png": "cat"})
    found = audit()["label_errors"]
    assert {(e["path"], e["label"], e["suggested"], e["split"]) for e in found} >= {
        ("train/cat/3.png", "dog", "cat", "train"),
        ("test/dog/4.png", "cat", "dog", "test"),
    }
    for error in found:
        assert error["probability"] > error["label_probability"]


def test_near_duplicates_across_splits_come_first_and_pairs_are_limited(
    cache: Path, audit: Any
) -> None:
    stored_set(cache, in_splits(train=40, test=20))
    copies = {"train/copy.png": ("train/cat/0.png", "train")}
    copies |= {f"test/copy{i}.png": (f"train/cat/{i}.png", "test") for i in range(1, 4)}
    add_copies(cache, copies, noise=0.002)
    found = audit(distance=0.0005)
    across = [sorted(pair["splits"]) == ["test", "train"] for pair in found["near_duplicates"]]
    assert across[:3] == [True] * 3 and not any(across[3:])
    named = {(pair["a"], pair["b"]) for pair in found["near_duplicates"]}
    assert named >= {(of, path) for path, (of, _) in copies.items()}
    assert found["near_duplicates_across_splits"] == 3
    # The copy in train is to go, the one in test stays.
    problems = {row["path"]: row["problem"] for row in fixes_of(found)}
    assert problems["train/cat/1.png"] == "near duplicate of test/copy1.png (test, cat)"
    assert "test/copy1.png" not in problems
    one = audit(distance=0.0005, max_pairs=1)
    assert one["near_duplicates"] == found["near_duplicates"][:1]
    assert one["near_duplicates_found"] == found["near_duplicates_found"]


def test_equal_bytes_are_exact_duplicates_those_of_two_labels_first(
    cache: Path, audit: Any
) -> None:
    samples = [*in_splits(train=10, test=5), ("a.png", "cat", "train"), ("b.png", "dog", "train")]
    contents = {"a.png": "train/cat/0.png", "b.png": "train/cat/1.png"}
    stored_set(cache, samples, contents=contents)
    found = audit()
    assert found["exact_duplicates"] == [
        {
            "paths": ["train/cat/1.png", "b.png"],
            "splits": ["train", "train"],
            "labels": ["cat", "dog"],
        },
        {
            "paths": ["train/cat/0.png", "a.png"],
            "splits": ["train", "train"],
            "labels": ["cat", "cat"],
        },
    ]
    problems = [row["problem"] for row in fixes_of(found)]
    assert sum("same bytes as" in problem for problem in problems) == 1


def test_classes_that_are_tiny_or_missing_in_a_split_are_named(cache: Path, audit: Any) -> None:
    samples = [*in_splits(train=10, test=5), ("x.png", "emu", "train")]
    stored_set(cache, [*samples, *((f"o{i}.png", "owl", "train") for i in range(6))])
    assert audit()["tiny_classes"] == [
        {"class": "emu", "pictures": 1, "splits": {"train": 1, "test": 0}},
        {"class": "owl", "pictures": 6, "splits": {"train": 6, "test": 0}},
    ]


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ([(f"{i}.png", None, None) for i in range(9)], "two classes"),
        ([(f"{i}.png", "cat", "train") for i in range(9)], "two classes"),
        ([("a.png", "cat", "train"), ("b.png", "dog", "train")], "3 folds"),
        ([("a.png", "cat", "train")], "two classes"),
    ],
)
def test_what_cannot_be_judged_is_still_audited(
    cache: Path, audit: Any, samples: Any, words: str
) -> None:
    stored_set(cache, samples)
    found = audit()
    assert words in found["label_check"]["skipped"]
    assert found["label_errors"] == []
    assert words in Path(found["report"]).read_text()


def test_maps_are_pooled(cache: Path, audit: Any) -> None:
    space = small_space(pooling="none", shape=(6, 3, 3))
    stored_set(cache, in_splits(train=20, test=5), spaces=[space])
    assert audit()["label_check"]["checked"] == 50


def test_a_data_set_of_several_spaces_needs_a_choice(cache: Path, audit: Any) -> None:
    stored_set(cache, in_splits(train=9), spaces=[small_space(), small_space(tap="block2_pool")])
    with pytest.raises(UsageError, match="--tap block1_pool"):
        audit()
    assert audit(tap="block2_pool")["pictures"] == 18


def test_a_set_without_usable_pictures_is_refused(cache: Path, audit: Any) -> None:
    dataset = stored_set(cache, [("a.png", "cat", "train")])
    dataset.status[:] = Status.QUARANTINED
    dataset.reasons = {0: ["read", "gone"]}  # type: ignore[dict-item]
    save_dataset(cache, dataset)
    with pytest.raises(DataError, match="found none"):
        audit()
    with pytest.raises(NotFoundError):
        audit("nobody")


def test_an_audit_is_never_replaced_unasked(
    cache: Path, audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_set(cache, in_splits(train=9))
    fixes = Path(audit()["fixes"])
    fixes.write_text("edited")
    with pytest.raises(UsageError, match="expected a folder without an audit"):
        audit(overwrite=False)
    assert fixes.read_text() == "edited"
    monkeypatch.chdir(tmp_path)
    folders = [Path(audit(out=None)["report"]).parent for _ in range(2)]
    assert folders == [Path("audits/set-1"), Path("audits/set-2")]


def test_the_same_seed_gives_the_same_findings(cache: Path, audit: Any) -> None:
    stored_set(cache, in_splits(train=20))
    relabelled(cache, {"train/cat/3.png": "dog"})
    first, again = audit(), audit()
    assert {**first, "seconds": 0} == {**again, "seconds": 0}


def test_the_page_shows_only_pictures_of_the_very_bytes(
    own_workspace: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    dataset = load_dataset(cache, "colours")
    wrong = [dataset.paths.index(f"red/0{i}.png") for i in range(2)]
    dataset.label[wrong] = dataset.classes.index("blue")
    dataset.source = dataclasses.replace(dataset.source, root=str(tmp_path / "photos"))
    save_dataset(cache, dataset)
    class_picture(0, 999).save(tmp_path / "photos" / "red" / "01.png")
    found = api.audit("colours", cache=cache, out=tmp_path / "audit")
    assert {e["path"] for e in found["label_errors"]} >= {"red/00.png", "red/01.png"}
    text = Path(found["report"]).read_text()
    assert "gone or changed" in text
    assert "data:image/png;base64," in text
    shutil.rmtree(tmp_path / "photos")
    again = api.audit("colours", cache=cache, out=tmp_path / "audit", overwrite=True)
    assert "data:image" not in Path(again["report"]).read_text()


HOSTILE = [
    "<script>alert(1)</script>",
    "a\r,b",
    'c"d\ne',
    "=1+1",
    b"caf\xe9".decode("utf-8", "surrogateescape"),
]


def test_names_of_anyone_stay_text_in_page_and_csv(cache: Path, audit: Any) -> None:
    samples = [
        (f"{name}-{i}", label, "train")
        for i in range(40)
        for label, name in zip(["<b>cat</b>", "dog"], ["c", "d"], strict=True)
    ]
    samples += [(f"hostile{i}", "<b>cat</b>", "test") for i in range(len(HOSTILE))]
    stored_set(cache, samples)
    dataset = load_dataset(cache, "set")
    dataset.paths[-len(HOSTILE) :] = [f"{name}.png" for name in HOSTILE]
    dataset.label[-len(HOSTILE) :] = dataset.classes.index("dog")
    save_dataset(cache, dataset)
    found = audit()
    paths = {f"{name}.png" for name in HOSTILE}
    assert {error["path"] for error in found["label_errors"]} >= paths
    assert {row["path"] for row in fixes_of(found)} >= paths
    text = Path(found["report"]).read_text("utf-8")
    assert "<script>alert" not in text and "<b>cat</b>" not in text.replace("<b>&lt;", "")
    assert html.escape("<script>alert(1)</script>") in text
    assert r"caf\udce9.png" in text


@pytest.mark.slow
def test_pictures_saved_again_or_cropped_are_found_in_another_split(
    shared: Path, cache: Path, tmp_path: Path
) -> None:
    """Real pictures, real weights: at least 9 of 10, and no others."""
    files = sorted((shared / "data" / "dogscats" / "train").rglob("*.jpg"))[::20][:80]
    rows = ["path,label,split"]
    for number, path in enumerate(files):
        label = path.parent.name
        shutil.copy(path, tmp_path / path.name)
        rows.append(f"{path.name},{label},train")
        if number < 30:
            image = Image.open(path).convert("RGB")
            if number % 3 == 2:
                image = image.crop((2, 1, image.width - 3, image.height - 4))
            image.save(tmp_path / f"again-{path.name}", quality=(50, 75, 90)[number % 3])
            rows.append(f"again-{path.name},{label},test")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    weights = shared / "weights" / "vgg16_imagenet1k_v1_features.safetensors"
    api.extract(
        *(tmp_path / "list.csv",),
        name="pets",
        cache=cache,
        weights=str(weights),
        size=96,
        pool="avg",
        precision="fp32",
        device="cpu",
    )
    found = api.audit("pets", cache=cache, out=tmp_path / "audit")
    pairs = {(pair["a"], pair["b"]) for pair in found["near_duplicates"]}
    right = {(path.name, f"again-{path.name}") for path in files[:30]}
    right = {tuple(sorted(pair)) for pair in right}
    assert len({tuple(sorted(pair)) for pair in pairs} & right) >= 27
    assert len(pairs) - len(right) <= 2
