"""A head on disk comes back bit for bit, or not at all; nothing in it can run."""

from __future__ import annotations

import builtins
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load
from support.runs import (
    CLASSES,
    JSON_NAME,
    TENSORS_NAME,
    holds_head,
    load_head,
    rewrite,
    rewrite_tensors,
    save_head,
    trained_head,
)
from support.samples import small_space

from featpipe.base.errors import DamageError, NotFoundError, StorageError
from featpipe.runs import run as files
from featpipe.specs.head_params import HEAD_KINDS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(tmp_path / "run", trained_head())


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_head_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    before = trained_head(kind)
    folder = save_head(tmp_path / "run", before)
    after = load_head(folder)
    X = np.random.default_rng(5).normal(size=(100, *before.space.shape)).astype(np.float16)
    assert after.head.predict_proba(X).tobytes() == before.head.predict_proba(X).tobytes()
    assert after.head.predict(X).tolist() == before.head.predict(X).tolist()
    assert after.head.kind == kind
    assert after.head.params == before.head.params
    assert after.head.classes_.tolist() == CLASSES
    assert after.space == before.space
    assert after.history == before.history
    assert (after.weights_name, after.dataset) == (before.weights_name, before.dataset)
    assert (after.metrics, after.info) == (before.metrics, before.info)
    assert np.array_equal(after.train_ids, before.train_ids)


def test_the_folder_or_a_file_in_it_names_the_head(saved: Path) -> None:
    for path in (saved, saved / JSON_NAME, saved / TENSORS_NAME):
        assert load_head(path).dataset["name"] == "pets"


def test_saving_twice_replaces_the_head(saved: Path) -> None:
    other = trained_head(seed=1)
    save_head(saved, other)
    assert np.array_equal(load_head(saved).head.mean_, other.head.mean_)
    assert sorted(path.name for path in saved.iterdir()) == [JSON_NAME, TENSORS_NAME]


def test_the_same_head_is_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    again = save_head(tmp_path / "again", trained_head())
    for name in (JSON_NAME, TENSORS_NAME):
        assert (saved / name).read_bytes() == (again / name).read_bytes()


def test_the_description_is_plain_and_complete(saved: Path) -> None:
    document = json.loads((saved / JSON_NAME).read_text("ascii"))
    assert document["format"] == 1
    assert document["kind"] == "linear"
    assert document["classes"] == CLASSES
    assert document["params"]["weight_decay"] == 0.5
    assert document["feature_space"]["preprocessing"]["size"] == 8
    assert document["feature_space_id"] == small_space().id
    assert len(document["history"]["rows"]) == 3
    data = (saved / TENSORS_NAME).read_bytes()
    assert document["tensors_sha256"] == hashlib.sha256(data).hexdigest()
    assert set(load(data)) == {"mean", "scale", "weight", "bias", "train_image_sha256"}


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = [trained_head(kind) for kind in HEAD_KINDS]

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("something was pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(builtins, "eval", refuse)
    for head in heads:
        folder = save_head(tmp_path / head.head.kind, head)
        load_head(folder)
        for path in folder.iterdir():
            # Pickles of protocol 2 and later begin so; zips may hold some.
            assert path.read_bytes()[:1] != b"\x80" and path.read_bytes()[:2] != b"PK"


def test_no_head_is_not_found(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(NotFoundError, match=r"expected a head .* found none; train one"):
        load_head(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotFoundError):
        load_head(tmp_path / "file")
    (saved / TENSORS_NAME).unlink()
    with pytest.raises(NotFoundError):
        load_head(saved)


def test_a_folder_holds_a_head_when_it_is_complete(tmp_path: Path, saved: Path) -> None:
    assert holds_head(saved)
    assert not holds_head(tmp_path / "nowhere")
    # The description is written last.
    (saved / JSON_NAME).unlink()
    assert not holds_head(saved)


def test_a_head_that_cannot_be_read_is_a_storage_error(saved: Path) -> None:
    (saved / JSON_NAME).unlink()
    (saved / JSON_NAME).mkdir()
    with pytest.raises(StorageError, match="expected to read"):
        load_head(saved)


@pytest.mark.parametrize("place", [0, 9, 100, -200, -1])
def test_an_altered_byte_in_the_tensors_is_damage(place: int, saved: Path) -> None:
    data = bytearray((saved / TENSORS_NAME).read_bytes())
    data[place] ^= 1
    (saved / TENSORS_NAME).write_bytes(data)
    with pytest.raises(DamageError, match=r"expected a whole head in .*train it again"):
        load_head(saved)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", [JSON_NAME, TENSORS_NAME])
def test_a_truncated_file_is_damage(name: str, keep: float, saved: Path) -> None:
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DamageError):
        load_head(saved)


def test_files_of_two_heads_are_damage(saved: Path, tmp_path: Path) -> None:
    other = save_head(tmp_path / "other", trained_head(seed=1))
    shutil.copy(other / TENSORS_NAME, saved / TENSORS_NAME)
    with pytest.raises(DamageError, match=r"is not the one head\.json was written with"):
        load_head(saved)


def test_a_newer_format_is_refused(saved: Path) -> None:
    rewrite(saved, lambda d: d.update(format=4))
    with pytest.raises(DamageError, match="format 4; this featpipe reads 3"):
        load_head(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(kind="svm"),
        lambda d: d.update(kind=["linear"]),
        lambda d: d.update(params={"hidden": 3}),
        lambda d: d.update(params={"epochs": -3}),
        lambda d: d.update(params=None),
        lambda d: d.update(classes=["cat", "dog"]),
        lambda d: d.update(classes=3),
        lambda d: d["feature_space"].update(precision="bf16"),
        lambda d: d["feature_space"].update(shape=[5]),
        lambda d: d["feature_space"].update(format=9),
        lambda d: d["feature_space"].pop("tap"),
        lambda d: d.update(history=[]),
        lambda d: d.update(tensors_sha256=None),
        lambda d: [d],
        lambda d: "head",
    ],
)
def test_a_description_that_makes_no_sense_is_damage(
    change: Callable[[dict[str, Any]], Any], saved: Path
) -> None:
    rewrite(saved, change)
    with pytest.raises(DamageError, match=r"expected a whole head in .*train it again"):
        load_head(saved)


@pytest.mark.parametrize(
    "key",
    "format kind classes params feature_space feature_space_id weights dataset history metrics "
    "info tensors_sha256".split(),
)
def test_a_missing_key_is_damage(key: str, saved: Path) -> None:
    rewrite(saved, lambda d: d.pop(key) and None)
    with pytest.raises(DamageError, match=key):
        load_head(saved)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"NaN"])
def test_what_is_no_json_object_is_damage(text: bytes, saved: Path) -> None:
    (saved / JSON_NAME).write_bytes(text)
    with pytest.raises(DamageError):
        load_head(saved)


@pytest.mark.parametrize("name", ["mean", "scale", "weight", "bias", "train_image_sha256"])
def test_a_missing_tensor_is_damage(name: str, saved: Path) -> None:
    rewrite_tensors(saved, lambda tensors: tensors.pop(name))
    with pytest.raises(DamageError, match=name):
        load_head(saved)


def test_tensors_of_another_width_are_damage(saved: Path) -> None:
    def widen(tensors: dict[str, np.ndarray]) -> None:
        tensors.update(mean=np.zeros(5, np.float32), weight=np.zeros((3, 5), np.float32))

    rewrite_tensors(saved, widen)
    with pytest.raises(DamageError, match=r"takes 5 features, its space has \(4,\)"):
        load_head(saved)


def test_what_is_no_safetensors_is_damage(saved: Path) -> None:
    data = pickle.dumps({"mean": [0.0]})
    (saved / TENSORS_NAME).write_bytes(data)
    rewrite(saved, lambda d: d.update(tensors_sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(DamageError):
        load_head(saved)


def test_train_ids_of_another_shape_are_damage(saved: Path) -> None:
    rewrite_tensors(saved, lambda t: t.update(train_image_sha256=np.zeros((3, 7), np.uint8)))
    with pytest.raises(DamageError):
        load_head(saved)


def test_every_flipped_bit_of_the_description_is_found(saved: Path) -> None:
    text = (saved / JSON_NAME).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(text), 150, replace=False):
        bit = 1 << int(rng.integers(7))
        changed = bytearray(text)
        changed[place] ^= bit
        (saved / JSON_NAME).write_bytes(bytes(changed))
        try:
            same = json.loads(changed) == json.loads(text)
        except ValueError:
            same = False
        # A blank between two words may turn into another blank: that means the same.
        if not same:
            with pytest.raises(DamageError):
                load_head(saved)


def test_a_replacement_that_ends_between_its_files_leaves_the_old_head(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_head(saved)
    real = files.write_atomically

    def ends_before_json(path: Path, data: bytes) -> None:
        if path.name == JSON_NAME:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(files, "write_atomically", ends_before_json)
    other = trained_head("mlp")
    with pytest.raises(KeyboardInterrupt):
        save_head(saved, other)
    X = np.random.default_rng(5).normal(size=(10, 4)).astype(np.float16)
    assert np.array_equal(load_head(saved).head.predict_proba(X), before.head.predict_proba(X))
    monkeypatch.undo()
    save_head(saved, other)
    assert load_head(saved).head.kind == "mlp"
    assert sorted(path.name for path in saved.iterdir()) == [JSON_NAME, TENSORS_NAME]
