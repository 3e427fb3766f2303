"""Extraction: what was computed once is never computed again, and nothing is lost or guessed."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from safetensors.numpy import save_file
from support.backbones import random_tensors
from support.library import extract, plan_extraction, plan_of
from support.samples import class_picture, jpeg_bytes

from featpipe.backbones import network
from featpipe.backbones.vgg import FAMILY
from featpipe.base.errors import (
    DataError,
    FeatureOverflowError,
    NotFoundError,
    Reason,
    UsageError,
)
from featpipe.datasets.dataset import SPLITS, Status
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.engine import extractor as runner
from featpipe.stages.extract_result import ExtractResult
from featpipe.store.feature_store import FeatureStore

PICTURES = 40  # in photo_folder


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pools and networks were made, and pictures decoded and computed."""
    counts = {"pools": 0, "networks": 0, "decoded": 0, "computed": 0}

    class CountedPool(runner.DecodePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            counts["pools"] += 1
            super().__init__(*args, **options)

        def decode(self, tasks: Any) -> Iterator[Any]:
            for result in super().decode(tasks):
                counts["decoded"] += result is not None and result.kind == "pixels"
                yield result

    class CountedNetwork(network.Network):
        def __init__(self, *args: Any, **options: Any) -> None:
            counts["networks"] += 1
            super().__init__(*args, **options)

        def __call__(self, pixels: np.ndarray) -> list[np.ndarray]:
            counts["computed"] += len(pixels)
            return super().__call__(pixels)

    monkeypatch.setattr(runner, "DecodePool", CountedPool)
    monkeypatch.setattr(network, "Network", CountedNetwork)
    return counts


@pytest.fixture(autouse=True)
def settled_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust what was seen of files made a moment ago: no test can set a change time back."""
    monkeypatch.setattr(runner, "_SETTLED_NS", 0)


def reset(work: dict[str, int]) -> None:
    work.update(dict.fromkeys(work, 0))


def settle(folder: Path) -> None:
    """Make the files look an hour old, so that what was seen of them can be trusted."""
    past = time.time() - 3600
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (past, past))


@pytest.fixture
def photos(photo_folder: Path) -> Path:
    settle(photo_folder)
    return photo_folder


def go(data: Any, cache: Path, tiny: dict[str, Any], **options: Any) -> ExtractResult:
    request = {**tiny, **options.pop("request", {})}
    engine = {"batch_size": 8, **options.pop("engine", {})}
    return extract(data, **{"name": "set", "cache": cache, **request, **engine, **options})


def counts(result: ExtractResult) -> tuple[int, int, int, int]:
    assert result.images == (
        result.computed + result.reused + result.duplicates + result.quarantined
    )
    return result.computed, result.reused, result.duplicates, result.quarantined


def rows_by_path(cache: Path, result: ExtractResult, space: int = 0) -> dict[str, bytes]:
    dataset = load_dataset(cache, result.dataset)
    usable = np.flatnonzero(dataset.usable)
    rows = FeatureStore(cache, result.spaces[space]).rows(dataset.image_sha256[usable])
    return {dataset.paths[i]: row.tobytes() for i, row in zip(usable, rows, strict=True)}


def test_first_run_computes_everything(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    result = go(photos, cache, tiny)
    assert counts(result) == (PICTURES, 0, 0, 0)
    assert (result.images, result.classes) == (PICTURES, ["blue", "red"])
    assert sum(result.splits.values()) == PICTURES and set(result.splits) == set(SPLITS)
    assert work["computed"] == PICTURES
    dataset = load_dataset(cache, "set")
    for path, image_id, label in zip(
        dataset.paths, dataset.image_sha256, dataset.label, strict=True
    ):
        digest = hashlib.sha256((photos / path).read_bytes()).digest()
        assert image_id.tobytes() == digest
        assert dataset.classes[label] == path.split("/")[0]
    assert dataset.spaces == [result.spaces[0].canonical_json]
    assert len(rows_by_path(cache, result)) == PICTURES


def test_second_run_computes_nothing_and_opens_no_picture(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    first = go(photos, cache, tiny)
    before = load_dataset(cache, "set")
    reset(work)
    second = go(photos, cache, tiny)
    assert counts(second) == (0, PICTURES, 0, 0)
    assert work == {"pools": 0, "networks": 0, "decoded": 0, "computed": 0}
    assert second.bottleneck == "none"
    assert second.splits == first.splits
    assert load_dataset(cache, "set").digest() == before.digest()


def test_all_hits_need_no_weights(
    photos: Path, cache: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    go(photos, cache, tiny)

    def unread(*_: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(runner.Extractor, "_inference_pool", unread)
    # Another name has seen none of the files: they are read, and all known.
    assert counts(go(photos, cache, tiny, name="other")) == (0, PICTURES, 0, 0)


def test_only_new_contents_are_computed(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    first = go(photos, cache, tiny)
    old_rows = rows_by_path(cache, first)
    for seed in range(100, 110):
        class_picture(0, seed).save(photos / "red" / f"{seed}.png")
    (photos / "blue").rename(photos / "azure")
    shutil.copy(photos / "red" / "00.png", photos / "azure" / "copy.png")
    reset(work)
    result = go(photos, cache, tiny)
    assert counts(result) == (10, PICTURES, 1, 0)
    assert (work["decoded"], work["computed"]) == (10, 10)
    assert result.classes == ["azure", "red"]
    rows = rows_by_path(cache, result)
    assert len(rows) == PICTURES + 11
    assert rows["azure/copy.png"] == old_rows["red/00.png"]
    assert all(rows[path.replace("blue", "azure")] == row for path, row in old_rows.items())


def test_removed_pictures_leave_the_data_set(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    go(photos, cache, tiny)
    for seed in range(5):
        (photos / "red" / f"{seed:02d}.png").unlink()
    assert counts(go(photos, cache, tiny)) == (0, PICTURES - 5, 0, 0)
    assert len(load_dataset(cache, "set")) == PICTURES - 5


def test_a_file_changed_in_place_is_computed_again(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    before = rows_by_path(cache, go(photos, cache, tiny))
    path = photos / "red" / "03.png"
    class_picture(0, 999).save(path)
    reset(work)
    result = go(photos, cache, tiny)
    assert counts(result) == (1, PICTURES - 1, 0, 0)
    assert work["decoded"] == 1
    after = rows_by_path(cache, result)
    assert {name for name in after if after[name] != before[name]} == {"red/03.png"}


def test_another_file_of_the_same_size_and_time_is_seen(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    path = photos / "red" / "same.bmp"
    class_picture(0, 500).save(path)
    os.utime(path, ns=(10**18, 10**18))
    go(photos, cache, tiny)
    data = path.read_bytes()
    # As `cp -p` does: the size, the time and the inode stay.
    path.write_bytes(data[:100] + bytes(len(data) - 100))
    os.utime(path, ns=(10**18, 10**18))
    assert counts(go(photos, cache, tiny)) == (1, PICTURES, 0, 0)


def test_what_was_seen_of_a_fresh_file_is_not_trusted(
    photos: Path, cache: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_SETTLED_NS", 2 * 10**9)
    # Written, extracted and written again within one tick of the file system's clock.
    path = photos / "red" / "fresh.bmp"
    class_picture(0, 500).save(path)
    status = path.stat()
    go(photos, cache, tiny)
    with open(path, "r+b") as file:
        file.seek(54)
        file.write(b"\x07" * 900)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load_dataset(cache, "set").stat.max() == -1
    assert counts(go(photos, cache, tiny)) == (1, PICTURES, 0, 0)


def spoil(photos: Path) -> dict[str, str]:
    """Put unreadable pictures in; returns the stage each must fail at."""
    whole = jpeg_bytes(1)
    (photos / "red" / "00_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "red" / "05_empty.jpg").write_bytes(b"")
    (photos / "blue" / "text.png").write_bytes(b"not a picture")
    os.symlink("nowhere", photos / "blue" / "dangling.png")
    os.mkfifo(photos / "blue" / "fifo.png")
    settle_at = time.time() - 3600
    for name in ("red/00_cut.jpg", "red/05_empty.jpg", "blue/text.png", "blue/fifo.png"):
        os.utime(photos / name, (settle_at, settle_at))
    return {
        "red/00_cut.jpg": "decode",
        "red/05_empty.jpg": "read",
        "blue/text.png": "open",
        "blue/dangling.png": "read",
        "blue/fifo.png": "read",
    }


def test_unreadable_pictures_are_set_aside_and_change_nothing_else(
    photos: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    clean = rows_by_path(cache, go(photos, cache, tiny))
    stages = spoil(photos)
    result = go(photos, tmp_path / "cache2", tiny)
    assert counts(result) == (PICTURES, 0, 0, len(stages))
    assert {path: stage for path, stage, _ in result.bad} == stages
    assert all(reason for _, _, reason in result.bad)
    assert rows_by_path(tmp_path / "cache2", result) == clean
    dataset = load_dataset(tmp_path / "cache2", "set")
    bad = {dataset.paths[row]: tuple(why) for row, why in dataset.reasons.items()}
    assert bad == {path: (stage, reason) for path, stage, reason in result.bad}
    assert (dataset.status == Status.QUARANTINED).sum() == len(stages)
    assert (dataset.split[dataset.status == Status.QUARANTINED] == -1).all()
    assert result.as_json()["quarantined"] == len(stages)


def test_unreadable_pictures_are_not_tried_again_unless_asked(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    (photos / "red" / "bad.jpg").write_bytes(b"not a picture")
    settle(photos)
    first = go(photos, cache, tiny)
    reset(work)
    second = go(photos, cache, tiny)
    assert counts(second) == (0, PICTURES, 0, 1)
    assert second.bad == first.bad
    assert work["pools"] == 0
    assert counts(go(photos, cache, tiny, retry_quarantined=True)) == (0, PICTURES, 0, 1)
    assert work["pools"] == 1
    # Other limits, other verdicts: they are tried again without being told to.
    go(photos, cache, tiny, engine={"max_pixels": 10**6})
    assert work["pools"] == 2
    # A mended file is another file.
    (photos / "red" / "bad.jpg").write_bytes(jpeg_bytes(77))
    assert counts(go(photos, cache, tiny)) == (1, PICTURES, 0, 0)


def test_pictures_that_kill_their_decoder_are_not_tried_again(
    photos: Path,
    cache: Path,
    tiny: dict[str, Any],
    work: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "at_start").mkdir()
    (tmp_path / "at_start" / "sitecustomize.py").write_text(
        "import os, featpipe.decoding.pixels as pixels\n"
        "real = pixels.load_pixels\n"
        "def load_pixels(data, *args, **options):\n"
        "    return os._exit(7) if data == b'DIE' else real(data, *args, **options)\n"
        "pixels.load_pixels = load_pixels\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "at_start"))
    (photos / "red" / "deadly.jpg").write_bytes(b"DIE")
    settle(photos)
    if go(photos, cache, tiny).quarantined != 1:
        pytest.fail("the decoder did not die")
    reset(work)
    go(photos, cache, tiny)
    assert work["pools"] == 0


def test_too_many_unreadable_pictures_fail_the_job(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    spoiled = len(spoil(photos))
    share = spoiled / (PICTURES + spoiled)
    with pytest.raises(
        DataError, match=r"at most 10 % of 45 .* found 5 so far, among them .*--max-bad"
    ):
        go(photos, cache, tiny, max_bad=0.1)
    with pytest.raises(NotFoundError):
        load_dataset(cache, "set")
    assert counts(go(photos, cache, tiny, max_bad=share))[3] == spoiled
    # Also where the verdict is remembered, and nothing is left to do.
    with pytest.raises(DataError):
        go(photos, cache, tiny, max_bad=0)


class Interrupting:
    """A progress bar during which the user presses Ctrl-C."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.steps = 0

    @contextmanager
    def __call__(self, what: str, total: int) -> Iterator[Interrupting]:
        assert (what, total) == ("extract", PICTURES)
        yield self

    def advance(self, steps: int = 1, **notes: object) -> None:
        self.steps += steps
        if self.steps == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_run_keeps_its_rows_and_the_next_does_the_rest(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        # Batches of two: many are still to be computed when the tenth picture is reported.
        go(photos, cache, tiny, engine={"batch_size": 2}, progress=Interrupting(10))
    (space,) = plan_of(tiny, cache).spaces
    kept = len(FeatureStore(cache, space).index.ids)
    assert 10 <= kept < PICTURES
    assert kept == work["computed"]
    with pytest.raises(NotFoundError):
        load_dataset(cache, "set")
    reset(work)
    result = go(photos, cache, tiny)
    assert counts(result) == (PICTURES - kept, kept, 0, 0)
    assert work["decoded"] == work["computed"] == PICTURES - kept
    whole = go(photos, tmp_path / "cache2", tiny)
    assert rows_by_path(cache, result) == rows_by_path(tmp_path / "cache2", whole)


def test_several_spaces_fill_in_one_pass_and_serve_alone(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int], tmp_path: Path
) -> None:
    several = {"tap": ("block1_pool", "block2_conv1"), "pool": ("none", "avg", "max")}
    result = go(photos, cache, tiny, request=several)
    assert counts(result) == (PICTURES, 0, 0, 0)
    assert (work["networks"], work["computed"]) == (1, PICTURES)
    assert len({space.id for space in result.spaces}) == 6
    assert len(list((cache / "spaces").iterdir())) == 6
    assert load_dataset(cache, "set").spaces == [space.canonical_json for space in result.spaces]
    reset(work)
    for number, space in enumerate(result.spaces):
        alone = go(photos, cache, tiny, request={"tap": (space.tap,), "pool": (space.pooling,)})
        assert counts(alone) == (0, PICTURES, 0, 0)
        assert alone.spaces == [space]
        assert len(rows_by_path(cache, result, number)) == PICTURES
    assert work["pools"] == 0
    # A request that adds one space computes for that one, and the earlier ones stay known.
    more = go(photos, cache, tiny, request={"tap": ("block1_conv1",), "pool": ("avg",)})
    assert counts(more) == (PICTURES, 0, 0, 0)
    assert len(load_dataset(cache, "set").spaces) == 7
    single = {"tap": ("block2_conv1",), "pool": ("avg",)}
    lone = go(photos, tmp_path / "cache2", tiny, request=single)
    assert rows_by_path(tmp_path / "cache2", lone) == rows_by_path(cache, result, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 18},
        {"resize": "crop"},
        {"weights": "random:1"},
        {"dtype": "float32"},
        {"precision": "bf16"},
        {"pool": ("avg",)},
        {"tap": ("block1_conv1",)},
        {"backbone": "vgg11"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_numbers_changes_the_space(
    change: dict[str, Any], cache: Path, tiny: dict[str, Any]
) -> None:
    (space,) = plan_of(tiny, cache).spaces
    (other,) = plan_of({**tiny, **change}, cache).spaces
    assert other.id != space.id


def test_how_a_run_is_cut_into_batches_changes_no_bit(
    photos: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    one = go(photos, cache, tiny, engine={"batch_size": 1})
    eight = go(photos, tmp_path / "cache2", tiny, engine={"batch_size": 8})
    assert rows_by_path(cache, one) == rows_by_path(tmp_path / "cache2", eight)


def write_scaled_weights(path: Path, factor: float) -> None:
    tensors = random_tensors(FAMILY["vgg16"], 0, 1)
    tensors["features.0.weight"] *= np.float32(factor)
    save_file(tensors, path)


def test_features_too_large_for_float16_stop_the_run(
    photos: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    write_scaled_weights(tmp_path / "large.safetensors", 1e6)
    large = {"weights": str(tmp_path / "large.safetensors"), "tap": ("block1_conv1",)}
    with pytest.raises(FeatureOverflowError, match=r"at block1_conv1, .*--dtype float32"):
        go(photos, cache, tiny, request=large)
    with pytest.raises(NotFoundError):
        load_dataset(cache, "set")
    result = go(photos, cache, tiny, request={**large, "dtype": "float32"})
    assert counts(result) == (PICTURES, 0, 0, 0)
    rows = FeatureStore(cache, result.spaces[0]).rows(load_dataset(cache, "set").image_sha256)
    assert np.isfinite(rows[:]).all() and rows[:].max() > 65504


def test_a_list_names_paths_labels_and_splits(
    photos: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    chosen = [("red", "train"), ("red", "test"), ("blue", "train"), ("blue", "val")]
    lines = [
        f"photos/{label}/{number:02d}.png,{label}ish,{split}\n"
        for number, (label, split) in enumerate(chosen)
    ]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "".join(lines))
    result = go(tmp_path / "list.csv", cache, tiny)
    assert counts(result) == (4, 0, 0, 0)
    assert result.classes == ["blueish", "redish"]
    assert result.splits == {"train": 2, "val": 1, "test": 1}
    dataset = load_dataset(cache, "set")
    assert [SPLITS[split] for split in dataset.split] == [split for _, split in chosen]
    assert [dataset.classes[label] for label in dataset.label] == [f"{c}ish" for c, _ in chosen]
    assert dataset.info.split == "given"
    # The folder shares the rows.
    assert counts(go(photos, cache, tiny, name="folder")) == (PICTURES - 4, 4, 0, 0)


def test_split_folders_are_kept(photos: Path, cache: Path, tiny: dict[str, Any]) -> None:
    for split in ("train", "test"):
        (photos / split).mkdir()
    for label in ("red", "blue"):
        (photos / "test" / label).mkdir()
        for seed in range(5):
            name = f"{label}/{seed:02d}.png"
            (photos / name).rename(photos / "test" / name)
        (photos / label).rename(photos / "train" / label)
    result = go(photos, cache, tiny)
    assert (result.classes, result.splits) == (["blue", "red"], {"train": 30, "test": 10})


def test_splits_follow_the_shares_and_the_content(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    first = go(photos, cache, tiny, split=(0.5, 0.0, 0.5))
    assert set(first.splits) == {"train", "test"}
    with pytest.raises(UsageError, match="three shares"):
        go(photos, cache, tiny, split=(0.5, 0.5))
    again = go(photos, cache, tiny)
    assert set(again.splits) == set(SPLITS)
    assert again.computed == 0


def test_pictures_without_folders_are_unlabelled(
    cache: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for seed in range(3):
        (tmp_path / "flat" / f"{seed}.jpg").write_bytes(jpeg_bytes(seed))
    result = go(tmp_path / "flat", cache, tiny)
    assert counts(result) == (3, 0, 0, 0)
    assert (result.classes, result.splits) == ([], {})
    assert (load_dataset(cache, "set").label == -1).all()


def test_one_picture_under_two_labels_is_warned_of(
    photos: Path, cache: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(photos / "red" / "00.png", photos / "blue" / "same.png")
    with caplog.at_level(logging.WARNING, "featpipe"):
        assert counts(go(photos, cache, tiny)) == (PICTURES, 0, 1, 0)
    assert "1 picture appears under more than one label: 'blue/same.png' as 'blue'" in caplog.text


def test_digits_are_pictures_too(cache: Path, tiny: dict[str, Any], work: dict[str, int]) -> None:
    pooled = {"pool": ("avg",)}
    result = go("sklearn:digits", cache, tiny, request=pooled, engine={"batch_size": 64})
    assert result.images == 1797 and result.quarantined == 0
    assert result.computed + result.duplicates == 1797
    assert result.classes == [str(digit) for digit in range(10)]
    assert sum(result.splits.values()) == 1797
    dataset = load_dataset(cache, "set")
    assert (dataset.status == Status.OK).all()
    reset(work)
    again = go("sklearn:digits", cache, tiny, request=pooled)
    assert (again.computed, again.reused) == (0, result.computed)
    assert work["pools"] == 0


def test_planning_tells_what_would_be_done_and_does_nothing(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    plan = plan_extraction(photos, name="set", cache=cache, **tiny)
    assert (plan.images, plan.unchanged, plan.to_read, plan.quarantined) == (
        PICTURES,
        0,
        PICTURES,
        0,
    )
    assert not cache.exists()
    (photos / "red" / "bad.jpg").write_bytes(b"no picture")
    settle(photos)
    splits = go(photos, cache, tiny).splits
    class_picture(0, 700).save(photos / "red" / "new.png")
    reset(work)
    plan = plan_extraction(photos, name="set", cache=cache, workers=1, **tiny)
    assert (plan.unchanged, plan.to_read, plan.quarantined) == (PICTURES, 1, 1)
    assert (plan.classes, plan.split_by, plan.splits) == ({"blue": 20, "red": 22}, "content", {})
    (photos / "red" / "new.png").unlink()
    # What was read has its split.
    assert plan_extraction(photos, name="set", cache=cache, **tiny).splits == splits
    other = {**tiny, "pool": ("avg",)}
    assert plan_extraction(photos, name="set", cache=cache, **other).to_read == PICTURES
    assert work["pools"] == 0


def test_a_bad_name_is_refused_before_any_work(
    photos: Path, cache: Path, tiny: dict[str, Any]
) -> None:
    for name in ("../x", "", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="data set name"):
            go(photos, cache, tiny, name=name)
    assert not cache.exists()


def test_a_lost_segment_is_computed_again(photos: Path, cache: Path, tiny: dict[str, Any]) -> None:
    result = go(photos, cache, tiny)
    before = rows_by_path(cache, result)
    for path in FeatureStore(cache, result.spaces[0]).segments_folder.glob("*.h5"):
        path.unlink()
    # The files have not changed, but the store no longer has their rows.
    again = go(photos, cache, tiny)
    assert counts(again) == (PICTURES, 0, 0, 0)
    assert rows_by_path(cache, again) == before


def test_rehash_reads_every_file_and_computes_none(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    go(photos, cache, tiny)
    # A file whose content changed behind the file system's back.
    before = load_dataset(cache, "set")
    before.image_sha256[0] = 0
    save_dataset(cache, before)
    reset(work)
    assert counts(go(photos, cache, tiny, rehash=True)) == (0, PICTURES, 0, 0)
    assert (work["pools"], work["networks"], work["computed"]) == (1, 0, 0)
    assert load_dataset(cache, "set").image_sha256[0].any()


def test_what_an_older_edition_quarantined_is_tried_once_more(
    photos: Path, cache: Path, tiny: dict[str, Any], work: dict[str, int]
) -> None:
    (photos / "red" / "grey.tif").write_bytes(b"refused once")
    settle(photos)
    go(photos, cache, tiny)
    dataset = load_dataset(cache, "set")
    (row,) = dataset.reasons
    dataset.reasons[row] = Reason("convert", "ValueError: conversion from La to RGBA not supported")
    dataset.info.decoder = f"pillow {PIL.__version__}, 50000000 pixels"
    save_dataset(cache, dataset)
    reset(work)
    assert plan_extraction(photos, name="set", cache=cache, **tiny).to_read == 1
    result = go(photos, cache, tiny)
    assert counts(result) == (0, PICTURES, 0, 1)
    assert [reason for _, _, reason in result.bad] == [
        "not a picture but text; remove it, or give it an ending such as .txt"
    ]
    assert plan_extraction(photos, name="set", cache=cache, **tiny).to_read == 0


def test_a_set_of_train_alone_is_said_to_have_nothing_to_evaluate_on(
    photos: Path, cache: Path, tiny: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", logger="featpipe"):
        go(photos, cache, tiny, split=(1.0, 0.0, 0.0))
    (warning,) = (record.message for record in caplog.records if "evaluate" in record.message)
    assert warning.endswith(
        "has no test and no val split: there is nothing to evaluate on; for fair scores evaluate "
        "--on another data set"
    )
