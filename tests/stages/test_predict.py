"""Pictures never seen go through exactly the training preprocessing, and through the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.backbones import random_tensors
from support.library import extract, predict, train_head
from support.runs import load_head
from support.samples import class_picture

import featpipe
from featpipe.backbones import network
from featpipe.backbones.vgg import FAMILY
from featpipe.base.errors import NotFoundError, SpaceMismatchError, WeightsError
from featpipe.datasets.files import load_dataset
from featpipe.engine import extractor as runner
from featpipe.integrations.arrays import open_features
from featpipe.stages import predict as prediction
from featpipe.stages.predict import Prediction
from featpipe.store.feature_store import FeatureStore

OPTIONS = {"workers": 1, "batch_size": 8}


def head_for(
    photos: Path, cache: Path, out: Path, request: dict[str, Any], name: str = "set"
) -> Path:
    extract(photos, name=name, cache=cache, **request, **OPTIONS)
    params = {"C": 0.1}
    return train_head(name, cache=cache, head="logistic", params=params, out=out, device="cpu").head


@pytest.fixture
def head(photo_folder: Path, cache: Path, tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A head that tells red from blue."""
    return head_for(photo_folder, cache, tmp_path / "run", tiny)


@pytest.fixture
def ask(head: Path, cache: Path) -> Callable[..., list[Prediction]]:
    def go(*paths: Any, **options: Any) -> list[Prediction]:
        return list(predict(head, paths, cache=cache, device="cpu", **OPTIONS, **options))

    return go


@pytest.fixture
def work(head: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Pictures decoded and computed from here on."""
    counts = {"decoded": 0, "computed": 0}

    class CountedPool(runner.DecodePool):
        def decode(self, tasks: Any) -> Iterator[Any]:
            for result in super().decode(tasks):
                counts["decoded"] += result is not None and result.kind == "pixels"
                yield result

    class CountedNetwork(network.Network):
        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            counts["computed"] += len(pixels)
            return super().__call__(pixels)

    monkeypatch.setattr(runner, "DecodePool", CountedPool)
    monkeypatch.setattr(network, "Network", CountedNetwork)
    return counts


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """``fresh/{0..5}.png``: red and blue in turn, none of them seen before."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    for i in range(6):
        class_picture(2 * (i % 2), 500 + i).save(folder / f"{i}.png")
    return folder


def test_new_pictures_are_classified(ask: Callable[..., list[Prediction]], fresh: Path) -> None:
    found = ask(*sorted(fresh.iterdir()))
    assert [p.label for p in found] == ["red", "blue"] * 3
    for p in found:
        assert p.error is None and p.classes == ["blue", "red"]
        assert p.probabilities is not None and p.probability is not None
        assert p.probability == max(p.probabilities.values()) == p.probabilities[p.label or ""]
        assert sum(p.probabilities.values()) == pytest.approx(1)


def test_predictions_are_what_evaluation_saw(
    ask: Callable[..., list[Prediction]], head: Path, photo_folder: Path, cache: Path
) -> None:
    dataset = load_dataset(cache, "set")
    rows = dataset.in_split("test")
    found = ask(*(photo_folder / dataset.paths[i] for i in rows))
    X, _ = open_features("set", "test", cache=cache)
    expected = load_head(head).head.predict_proba(X)
    got = [list((p.probabilities or {}).values()) for p in found]
    assert np.array_equal(np.array(got), expected)


def test_probabilities_are_the_same_in_an_empty_cache(
    ask: Callable[..., list[Prediction]], photo_folder: Path, tmp_path: Path
) -> None:
    # What a head says of a picture may not hang on what else was computed beside it.
    here = ask(photo_folder)
    moved = tmp_path / "elsewhere"
    elsewhere = list(
        predict(tmp_path / "run", [photo_folder], cache=moved, device="cpu", **OPTIONS)
    )
    assert [p.probabilities for p in elsewhere] == [p.probabilities for p in here]


def test_pictures_in_the_cache_are_neither_decoded_nor_computed(
    ask: Callable[..., list[Prediction]], photo_folder: Path, fresh: Path, work: dict[str, int]
) -> None:
    assert len(ask(photo_folder)) == 40
    assert work == {"decoded": 0, "computed": 0}
    ask(photo_folder, fresh)
    assert work == {"decoded": 6, "computed": 6}
    # They are kept, whatever they are called.
    ask(*(shutil.copy(path, path.with_suffix(".copy")) for path in sorted(fresh.glob("*.png"))))
    assert work == {"decoded": 6, "computed": 6}


def test_order_is_kept_and_folders_are_expanded(
    ask: Callable[..., list[Prediction]], photo_folder: Path, fresh: Path
) -> None:
    (photo_folder / "red" / "notes.txt").write_text("no picture by its name")
    last, first = fresh / "5.png", fresh / "0.png"
    found = ask(last, photo_folder, str(first), last)
    paths = [p.path for p in found]
    assert (paths[0], paths[-2], paths[-1]) == (str(last), str(first), str(last))
    inside = [
        str(photo_folder / label / f"{i:02d}.png") for label in ("blue", "red") for i in range(20)
    ]
    assert paths[1:-2] == inside
    assert [p.label for p in found[1:-2]] == ["blue"] * 20 + ["red"] * 20
    assert (found[0].label, found[-2].label) == ("blue", "red")
    # A product's last digits depend on where in the matrix a row stands.
    assert found[0].probabilities == pytest.approx(found[-1].probabilities, rel=1e-5)


def test_relative_paths_come_back_as_given(
    ask: Callable[..., list[Prediction]], fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.parent)
    assert [p.path for p in ask("fresh/1.png", "fresh")][:2] == ["fresh/1.png", "fresh/0.png"]


def test_unreadable_files_are_lines_with_an_error(
    ask: Callable[..., list[Prediction]], fresh: Path
) -> None:
    (fresh / "broken.png").write_bytes(b"no picture")
    (fresh / "empty.png").write_bytes(b"")
    (fresh / "gone.png").symlink_to("nowhere.png")
    found = ask(
        fresh / "0.png",
        fresh / "gone.png",
        fresh / "broken.png",
        fresh / "1.png",
        fresh / "empty.png",
    )
    assert [p.label for p in found] == ["red", None, None, "blue", None]
    for p in found:
        line = p.as_json()
        assert set(line) == {"path", "label", "probability", "error"}
        assert (
            (line["label"] is None) == (line["probability"] is None) == (line["error"] is not None)
        )
    assert (found[1].error or "").startswith("read: ")
    assert (found[2].error or "").startswith("open: ")
    assert found[2].as_json(all_classes=True)["probabilities"] is None


def test_all_unreadable_or_none_at_all(
    ask: Callable[..., list[Prediction]], fresh: Path, tmp_path: Path
) -> None:
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert [p.label for p in ask(tmp_path / "gone.png")] == [None]
    (tmp_path / "nothing").mkdir()
    assert ask(tmp_path / "nothing") == []
    assert ask() == []


def test_long_lists_are_answered_in_parts(
    ask: Callable[..., list[Prediction]],
    photo_folder: Path,
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (fresh / "2.png").write_bytes(b"no picture")
    whole = ask(fresh, photo_folder)
    monkeypatch.setattr(prediction, "_CHUNK", 4)
    parts = ask(fresh, photo_folder)
    for mine, its in zip(parts, whole, strict=True):
        assert (mine.path, mine.label, mine.error) == (its.path, its.label, its.error)
        if its.probabilities is not None:
            assert mine.probabilities == pytest.approx(its.probabilities, rel=1e-5)


def test_answers_come_while_later_pictures_wait(
    head: Path, cache: Path, fresh: Path, work: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "_CHUNK", 2)
    answers = predict(head, [fresh], cache=cache, device="cpu", **OPTIONS)
    assert next(answers).label == "red"
    assert work["computed"] == 2
    # What is answered is committed.
    assert load_rows(head, cache) == 42
    assert len(list(answers)) == 5


def load_rows(head: Path, cache: Path) -> int:
    return len(FeatureStore(cache, load_head(head).space).index.ids)


def test_errors_come_before_the_first_answer(cache: Path, tmp_path: Path, head: Path) -> None:
    with pytest.raises(NotFoundError, match="expected a head"):
        predict(tmp_path / "nowhere", [], cache=cache)
    with pytest.raises(SpaceMismatchError, match=r"random:1; give the right ones with --weights"):
        predict(head, [], cache=cache, weights="random:1")


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(random_tensors(FAMILY["vgg16"], 5, 4), path)
    return path


def test_weights_in_a_file_may_be_moved(
    photo_folder: Path,
    cache: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    weights_file: Path,
    fresh: Path,
) -> None:
    request = {**tiny, "weights": str(weights_file)}
    head = head_for(photo_folder, cache, tmp_path / "run", request)
    labels = ["red", "blue"] * 3
    before = featpipe.predict(head, fresh, cache=cache)
    assert [p.label for p in before] == labels
    moved = weights_file.rename(tmp_path / "moved.safetensors")
    with pytest.raises((NotFoundError, WeightsError), match=r"weights\.safetensors"):
        featpipe.predict(head, fresh, cache=cache)
    assert featpipe.predict(head, fresh, cache=cache, weights=str(moved)) == before


def test_altered_weights_are_refused(
    photo_folder: Path,
    cache: Path,
    tmp_path: Path,
    tiny: dict[str, Any],
    weights_file: Path,
    fresh: Path,
) -> None:
    request = {**tiny, "weights": str(weights_file)}
    head = head_for(photo_folder, cache, tmp_path / "run", request)
    tensors = dict(load_file(weights_file))
    # Behind the tap: these weights take no part in the features.
    later = "features.7.bias"
    tensors[later] = tensors[later] + 1
    save_file(tensors, weights_file)
    assert featpipe.predict(head, fresh / "0.png", cache=cache)[0].label == "red"
    tensors["features.2.bias"] = tensors["features.2.bias"].copy()
    tensors["features.2.bias"][3] += 1e-6
    save_file(tensors, weights_file)
    with pytest.raises(
        SpaceMismatchError, match=r"expected weights of digest .* up to block1_pool"
    ):
        featpipe.predict(head, fresh, cache=cache)


def test_progress_counts_every_file(
    head: Path, cache: Path, fresh: Path, photo_folder: Path
) -> None:
    (fresh / "2.png").write_bytes(b"no picture")
    heard: list[Any] = []

    class Bar:
        def __init__(self, what: str, total: int) -> None:
            heard.append((what, total))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def advance(self, steps: int = 1, **notes: object) -> None:
            heard.append(steps)

    list(predict(head, [fresh, photo_folder], cache=cache, device="cpu", progress=Bar))
    assert heard == [("predict", 46), *[1] * 46]


def test_all_chunks_share_one_pool_and_one_network(
    head: Path, fresh: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"pools": 0, "networks": 0}

    class CountedPool(runner.DecodePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            made["pools"] += 1
            super().__init__(*args, **options)

    class CountedNetwork(network.Network):
        def __init__(self, *args: Any, **options: Any) -> None:
            made["networks"] += 1
            super().__init__(*args, **options)

    monkeypatch.setattr(runner, "DecodePool", CountedPool)
    monkeypatch.setattr(network, "Network", CountedNetwork)
    monkeypatch.setattr(prediction, "_CHUNK", 2)
    (fresh / "bad.png").write_bytes(b"no picture")
    files = sorted(fresh.iterdir())
    assert len(files) > 4
    # The last chunk repeats the first pictures: those are known by then.
    answers = list(predict(head, [*files, *files[:3]], cache=cache, device="cpu", **OPTIONS))
    assert [answer.path for answer in answers] == [str(file) for file in [*files, *files[:3]]]
    assert {a.path for a in answers if a.error} == {str(fresh / "bad.png")}
    assert made == {"pools": 1, "networks": 1}
    monkeypatch.undo()
    whole = list(predict(head, files, cache=cache, device="cpu", **OPTIONS))
    assert [answer.label for answer in answers[: len(files)]] == [each.label for each in whole]
    # On some processors a product of two rows differs in its last bits from one of many.
    for answer, each in zip(answers, whole, strict=False):
        assert answer.probability == pytest.approx(each.probability, abs=1e-8)
