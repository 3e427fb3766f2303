"""Exported files answer as ``predict``, and the card alone is enough to use them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.command import TINY_FLAGS
from support.exports import answers, need_onnx, program_of, run_card
from support.library import extract, predict, train_head
from support.runs import load_head, trained_head
from support.samples import class_picture

import featpipe
from featpipe.base.errors import (
    CheckError,
    DataError,
    MissingPackageError,
    NotFoundError,
    UsageError,
)
from featpipe.base.packages import needing
from featpipe.decoding.pixels import load_pixels
from featpipe.exports import comparison, model_card, model_files
from featpipe.exports.card_file import card_path
from featpipe.exports.model_card import plain


def pictures_in(folder: Path) -> list[Path]:
    """Three pictures that are neither square nor in the data set; one is half transparent."""
    folder.mkdir()
    paths = []
    for i, size in enumerate([(90, 64), (64, 91), (70, 70)]):
        picture = class_picture(2 * (i % 2), 700 + i).resize(size)
        if i == 2:
            picture.putalpha(128)
        paths.append(folder / f"{i}.png")
        picture.save(paths[-1])
    return paths


def expected_of(head: Path, cache: Path, pictures: list[Path]) -> tuple[list[str], np.ndarray]:
    """Labels and probabilities that ``predict`` gives."""
    found = list(predict(head, pictures, cache=cache, device="cpu", workers=1))
    assert all(p.error is None and p.probabilities for p in found)
    labels = [p.label or "" for p in found]
    return labels, np.array([list((p.probabilities or {}).values()) for p in found])


def images_of(head: Path, pictures: list[Path]) -> np.ndarray:
    preprocessing = load_head(head).space.preprocessing
    batch = np.stack([load_pixels(path.read_bytes(), preprocessing) for path in pictures])
    return np.ascontiguousarray(batch.astype(np.float32).transpose(0, 3, 1, 2)) / np.float32(255)


KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "squashed map": (
        {"weights": "random:0", "tap": "block2_pool", "size": 24, "resize": "squash"},
        {"head": "logistic", "C": 1.0, "calibrate": True},
    ),
    "taps side by side": (
        {"backbone": "resnet18", "tap": ("layer2", "layer3"), "pool": "avg", "size": 40},
        {"head": "mlp", "tap": ("layer2", "layer3"), "hidden": 8, "epochs": 3},
    ),
    "pixels": (
        {"backbone": "pixels", "size": 20, "channels": "grey"},
        {"head": "lenet", "epochs": 2},
    ),
    "neighbours": (
        {"backbone": "squeezenet1_1", "tap": "features.4", "pool": "max", "size": 48},
        {"head": "knn", "k": 3},
    ),
    "suffix": (
        {"backbone": "squeezenet1_1", "tap": "features.9", "size": 64},
        {"head": "suffix", "top": "own", "epochs": 2, "patience": 2},
    ),
    "tokens": (
        {"backbone": "timm/test_vit", "tap": "norm", "weights": "random:0", "pool": "none"},
        {"head": "linear", "epochs": 3},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_file_answers_as_predict(
    kind: str, photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    need_onnx()
    if kind == "tokens":
        pytest.importorskip("timm", reason="NO TIMM: needs the extra 'timm'")
    features, options = KINDS[kind]
    features = {"weights": None if kind == "pixels" else "random:0", **features}
    extract(photo_folder, name="set", cache=cache, precision="fp32", device="cpu", **features)
    head = train_head("set", cache=cache, out=tmp_path / "run", device="cpu", **options).head
    out = tmp_path / "model" / "photos.onnx"
    done = featpipe.export(head, cache=cache, format="onnx", out=out)
    assert done["check"]["source"] == "test pictures of set"
    assert done["check"]["max_difference"] <= 1e-4
    pictures = pictures_in(tmp_path / "new")
    labels, expected = expected_of(head, cache, pictures)
    image = images_of(head, pictures)
    for n in (1, 3):
        found = answers(out, image[:n])
        assert np.abs(found["probabilities"] - expected[:n]).max() <= 1e-4
        logits = np.exp(found["logits"] - found["logits"].max(axis=1, keepdims=True))
        assert np.allclose(logits / logits.sum(axis=1, keepdims=True), expected[:n], atol=1e-4)
    if kind == "taps side by side":
        # Cropped pictures; those of the head below are squashed.
        printed = run_card(tmp_path / "model" / "README.md", pictures)
        assert [label for label, _ in printed] == labels
        assert np.allclose([p for _, p in printed], expected.max(axis=1), atol=1e-4)


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_head_over_larger_pictures(
    format: str, photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    need_onnx()
    torch = pytest.importorskip("torch")
    options = {"weights": "random:0", "tap": "block2_pool", "size": 24, "resize": "squash"}
    extract(photo_folder, name="set", cache=cache, precision="fp32", device="cpu", **options)
    head = train_head(
        "set", cache=cache, head="logistic", C=1.0, out=tmp_path / "run", device="cpu"
    ).head
    out = tmp_path / "dense"
    done = featpipe.export(head, cache=cache, format=format, out=out, dense=True)
    assert done["dense"] and done["check"]["max_difference"] <= 1e-4
    pictures = pictures_in(tmp_path / "new")
    _, expected = expected_of(head, cache, pictures)

    def ask(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if format == "onnx":
            found = answers(out, image)
            return found["score_map"], found["probabilities"]
        program = torch.export.load(io.BytesIO(out.read_bytes())).module()
        score_map, probabilities = program(torch.from_numpy(image))
        return score_map.numpy(), probabilities.numpy()

    scores, probabilities = ask(images_of(head, pictures))
    assert scores.shape == (3, 2, 1, 1)
    assert np.abs(probabilities - expected).max() <= 1e-4
    # The same picture three times side by side: 18 columns of maps, seen six at a time.
    twice = np.tile(images_of(head, pictures[:1]), (1, 1, 1, 3))
    scores, probabilities = ask(twice)
    assert scores.shape == (1, 2, 1, 13)
    best = np.exp(scores.max(axis=(2, 3)))
    assert np.allclose(probabilities, best / best.sum(axis=1, keepdims=True), atol=1e-5)
    assert "any N" in Path(done["card"]).read_text("utf-8")
    assert "N × 3 × height × width" in Path(done["card"]).read_text("utf-8")


def test_a_head_that_is_no_convolution_is_refused(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    train_head(
        "colours", cache=own_workspace / "cache", head="knn", out=own_workspace / "near", k=3
    )
    with pytest.raises(UsageError):
        export("near", dense=True)
    assert not (own_workspace / "model.pt2").exists()


@pytest.fixture
def export(own_workspace: Path) -> Callable[..., Any]:
    """Export the linear head of ``own_workspace``, or what is named."""

    def go(what: str = "run", **options: Any) -> Any:
        options.setdefault("format", "torch")
        options.setdefault("out", own_workspace / "model.pt2")
        what = str(own_workspace / what) if options["format"] in ("onnx", "torch") else what
        return featpipe.export(what, cache=own_workspace / "cache", **options)

    return go


def test_a_torch_program_and_its_card(export: Callable[..., Any], own_workspace: Path) -> None:
    done = export()
    pictures = pictures_in(own_workspace / "new")
    labels, expected = expected_of(own_workspace / "run", own_workspace / "cache", pictures)
    printed = run_card(own_workspace / "model.pt2.README.md", pictures)
    assert [label for label, _ in printed] == labels
    assert np.allclose([p for _, p in printed], expected.max(axis=1), atol=1e-4)
    assert done["bytes"] == (own_workspace / "model.pt2").stat().st_size
    assert len(program_of(Path(done["card"])).splitlines()) <= 25


def test_the_card_says_what_the_file_is(export: Callable[..., Any], own_workspace: Path) -> None:
    featpipe.evaluate(own_workspace / "run", cache=own_workspace / "cache")
    done = export()
    card = Path(done["card"]).read_text("utf-8")
    head = load_head(own_workspace / "run")
    for part in (
        done["sha256"],
        head.space.weights,
        head.space.id,
        head.dataset["sha256"],
        "0: blue, 1: red",
        "test, evaluated",
        "random:0",
        "block1\\_pool",
        "16 × 16",
        "test pictures of colours",
        "epochs",
    ):
        assert part in card


def test_the_card_says_what_the_head_was_trained_and_scored_on(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    cache = own_workspace / "cache"
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    tiny: dict[str, Any] = {name.removeprefix("--"): value for name, value in pairs}
    views = {"views": 1, "augment": "flip", "augment_seed": 3, "views_of": ("train", "test")}
    extract(own_workspace / "photos", name="colours", cache=cache, **tiny, **views)
    run = own_workspace / "run"
    assert "| views | none |" in Path(export()["card"]).read_text("utf-8")
    train_head("colours", cache=cache, out=run, overwrite=True, epochs=2, device="cpu")
    featpipe.evaluate(run, cache=cache, tta=True)
    featpipe.evaluate(run, cache=cache, scales="16,22", device="cpu", workers=1)
    card = Path(export(overwrite=True)["card"]).read_text("utf-8")
    averaged = (
        "| test, evaluated, averaged over the picture and 1 view (flip, seed 3) | 6 |",
        "| test, evaluated, at sizes 16, 22 | 6 |",
    )
    assert "| views | 1 view (flip, seed 3) |" in card
    assert all(part in card for part in averaged)
    assert "It was not evaluated plainly" in card and "not evaluated on test" not in card
    featpipe.evaluate(run, cache=cache)
    card = Path(export(overwrite=True)["card"]).read_text("utf-8")
    assert "| test, evaluated | 6 |" in card and all(part in card for part in averaged)
    assert "not evaluated" not in card


def test_a_folder_that_is_not_the_models_gets_no_readme(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    assert export()["card"] == str(own_workspace / "model.pt2.README.md")
    folder = own_workspace / "b"
    first = export(out=folder / "model.pt2")
    assert first["card"] == str(folder / "README.md")
    # Its own card is replaced; that of a second file in the folder gets another name.
    assert export(out=folder / "model.pt2", overwrite=True)["card"] == first["card"]
    other = export(out=folder / "other.pt2")
    assert other["card"] == str(folder / "other.pt2.README.md")


@pytest.mark.parametrize(
    ("files", "card"),
    [
        ({}, "README.md"),
        ({".tmp-host-" + "0" * 32: ""}, "README.md"),
        ({"a.onnx": "", "a.onnx.README.md": "a.onnx"}, "README.md"),
        ({"notes.txt": ""}, "m.onnx.README.md"),
        ({"m.onnx": ""}, "m.onnx.README.md"),
        ({"README.md": "m.onnx", "notes.txt": ""}, "README.md"),
        ({"README.md": "a.onnx", "a.onnx": ""}, "m.onnx.README.md"),
        ({"README.md": ""}, "m.onnx.README.md"),
    ],
)
def test_where_a_card_goes(files: dict[str, str], card: str, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    assert card_path(folder / "m.onnx") == folder / "README.md"
    folder.mkdir()
    for name, of in files.items():
        text = f"<!-- featpipe: model card of {of} -->\n" if of else "something else\n"
        (folder / name).write_text(text)
    assert card_path(folder / "m.onnx").name == card


def test_without_its_pictures_made_up_ones_are_compared(
    export: Callable[..., Any], own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "image_reader", lambda kind, root: lambda path: b"other")
    done = export()
    assert done["check"]["source"] == comparison.MADE_UP and done["check"]["pictures"] == 8
    assert "No real picture of its data set was there" in Path(done["card"]).read_text("utf-8")
    (own_workspace / "cache" / "datasets" / "colours.h5").unlink()
    assert export(overwrite=True)["check"]["source"] == comparison.MADE_UP


def test_a_file_that_answers_otherwise_is_not_kept(
    export: Callable[..., Any], own_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = model_files.TorchFile.open

    def wrong(self: Any, data: bytes) -> Any:
        answer = opened(self, data)
        return lambda image: [part[:, ::-1] for part in answer(image)]

    monkeypatch.setattr(model_files.TorchFile, "open", wrong)
    with pytest.raises(CheckError, match=r"to answer as 'featpipe predict' does, found probabil"):
        export()
    assert not (own_workspace / "model.pt2").exists()
    assert not list(own_workspace.glob("*README.md"))


def test_features_of_another_precision_are_told(
    photo_folder: Path, cache: Path, tmp_path: Path
) -> None:
    options = {"weights": "random:0", "tap": "block2_pool", "size": 16, "device": "cpu"}
    extract(photo_folder, name="set", cache=cache, precision="bf16", **options)
    run = tmp_path / "run"
    train_head("set", cache=cache, head="logistic", C=1.0, out=run, device="cpu")
    done = featpipe.export(run, cache=cache, format="torch", out=tmp_path / "x" / "x.pt2")
    check = done["check"]
    assert check["max_difference"] <= 1e-4 < 1e-2 and 0 < check["predict_max_difference"] < 0.1
    card = (tmp_path / "x" / "README.md").read_text("utf-8")
    assert "computes this head's features in bf16; this file computes them in fp32" in card


def test_a_missing_package_is_named(
    export: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingPackageError, match=r"the package onnx for --format onnx, found no"):
        export(format="onnx")
    with (
        pytest.raises(MissingPackageError, match=r"pip install 'featpipe\[onnx\]'"),
        needing("onnx", "--format onnx", "onnx"),
    ):
        import onnx  # noqa: F401


def test_more_than_two_gigabytes_are_no_onnx_file(monkeypatch: pytest.MonkeyPatch) -> None:
    need_onnx()
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        large = torch.nn.Linear(40_000, 15_000)
    with pytest.raises(UsageError, match=r"less than 2 GiB for one ONNX file, found 2\.2 GiB"):
        model_files.FILES["onnx"].encode(large, torch.zeros(2, 3, 8, 8), {}, dense=False)


def test_digests_of_a_head_from_elsewhere_end_no_line_of_a_card() -> None:
    trained = trained_head()
    trained.dataset["train_sha256"] = "`\n\n# Run this\n"
    assert "\n# Run this" not in model_card._training(trained)


def test_names_in_a_card_are_shown_as_they_are() -> None:
    assert plain("a_b|<c>`d`") == r"a\_b\|\<c\>\`d\`"
    assert plain("line\nend\x1b") == r"line\\nend\\x1b"


# Features of a data set


def table_of(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def test_an_archive_holds_the_features_and_what_is_known(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    done = export("colours", format="npz", out=own_workspace / "c.npz")
    found = table_of(own_workspace / "c.npz")
    table = featpipe.open_features("colours", "all", cache=own_workspace / "cache")
    assert np.array_equal(found["features"], table.X[:])
    assert found["features"].dtype == np.float16 and done["shape"] == [40, 64, 8, 8]
    assert np.array_equal(found["labels"], table.y)
    assert found["classes"].tolist() == ["blue", "red"]
    assert found["paths"].tolist() == table.paths and found["splits"].tolist() == table.splits
    assert found["ids"].tolist() == table.ids
    about = json.loads(found["about"].item())
    assert about["feature_space_id"] == table.space.id and about["dataset"] == "colours"


def test_the_same_rows_give_the_same_archive(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    files = [own_workspace / "a.npz", own_workspace / "b.npz"]
    for file in files:
        export("colours", format="npz", out=file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_parquet_file_holds_the_features_as_stored(
    export: Callable[..., Any], own_workspace: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    done = export("colours", format="parquet", out=own_workspace / "c.parquet")
    found = parquet.read_table(own_workspace / "c.parquet")
    table = featpipe.open_features("colours", "all", cache=own_workspace / "cache")
    rows = found["features"].combine_chunks()
    values = rows.flatten().to_numpy().reshape(done["shape"])
    assert values.dtype == np.float16 and np.array_equal(values, table.X[:])
    assert found["path"].to_pylist() == table.paths and found["label"].to_pylist() == table.labels
    assert found["split"].to_pylist() == table.splits and found["id"].to_pylist() == table.ids
    about = json.loads(found.schema.metadata[b"featpipe"])
    assert about["shape"] == [64, 8, 8] and about["classes"] == ["blue", "red"]


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_tables_are_written_block_by_block(
    format: str,
    export: Callable[..., Any],
    own_workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    whole = export("colours", format=format, out=own_workspace / "a")
    # Seven rows at a time.
    monkeypatch.setattr("featpipe.heads.base._BLOCK_BYTES", 7 * 4 * 64 * 8 * 8)
    pieces = export("colours", format=format, out=own_workspace / "b")
    assert whole["features_sha256"] == pieces["features_sha256"]


def test_quarantined_pictures_are_left_out(photo_folder: Path, cache: Path, tmp_path: Path) -> None:
    (photo_folder / "red" / "bad.png").write_bytes(b"no picture")
    extract(photo_folder, name="set", cache=cache, backbone="pixels", size=8)
    done = featpipe.export("set", cache=cache, format="npz", out=tmp_path / "x.npz")
    found = table_of(tmp_path / "x.npz")
    assert done["shape"] == [40, 3, 8, 8] and found["features"].dtype == np.uint8
    assert "red/bad.png" not in found["paths"].tolist()


def test_no_usable_picture_is_an_error(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "photos" / "red"
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "a.png")
    (folder / "a.png").write_bytes(b"no picture")
    extract(tmp_path / "photos", name="set", cache=cache, backbone="pixels", size=8)
    with pytest.raises(DataError, match="expected usable pictures in data set 'set', found none"):
        featpipe.export("set", cache=cache, format="npz", out=tmp_path / "x.npz")
    with pytest.raises(NotFoundError):
        featpipe.export("sets", cache=cache, format="npz", out=tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
