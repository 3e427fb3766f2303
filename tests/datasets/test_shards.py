"""Sharded extraction: the parts together are the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featpipe
from featpipe.base.errors import NotFoundError, UsageError
from featpipe.datasets.files import list_datasets, load_dataset
from featpipe.specs.shards import Shard, ShardText

OPTIONS: dict[str, Any] = {
    "weights": "random:0",
    "tap": "block1_pool",
    "size": 16,
    "resize": "squash",
    "precision": "fp32",
    "device": "cpu",
    "workers": 1,
}


def go(folder: Path, cache: Path, name: str = "set", **more: Any) -> Any:
    return featpipe.extract(folder, name=name, cache=cache, **OPTIONS, **more)


def test_the_last_shard_merges_into_what_one_job_would_have_made(
    photo_folder: Path, cache: Path
) -> None:
    (photo_folder / "red" / "broken.png").write_bytes(b"no picture")
    whole = go(photo_folder, cache, "whole")
    for number in (2, 3, 1):
        assert list_datasets(cache) == ["whole"]
        part = go(photo_folder, cache, shard=f"{number}/3")
        assert part.computed == 0
    assert list_datasets(cache) == ["set", "whole"]
    expected, merged = load_dataset(cache, "whole"), load_dataset(cache, "set")
    assert merged.digest() == expected.digest()
    assert (merged.paths, merged.reasons) == (expected.paths, expected.reasons)
    assert merged.spaces == expected.spaces
    assert (part.dataset, whole.quarantined) == ("set", 1)


def test_shards_compute_only_their_own(photo_folder: Path, cache: Path) -> None:
    parts = [go(photo_folder, cache, shard=f"{n}/4") for n in (1, 2, 3, 4)]
    assert [part.computed for part in parts] == [10] * 4
    assert go(photo_folder, cache).computed == 0


def test_a_missing_shard_leaves_no_data_set(photo_folder: Path, cache: Path) -> None:
    part = go(photo_folder, cache, shard="1/2")
    assert part.dataset == "set.shard-1-of-2"
    with pytest.raises(NotFoundError):
        load_dataset(cache, "set")


def test_shards_of_different_lists_are_not_merged(photo_folder: Path, cache: Path) -> None:
    go(photo_folder, cache, shard="1/2")
    for path in sorted((photo_folder / "blue").iterdir())[:5]:
        path.unlink()
    part = go(photo_folder, cache, shard="2/2")
    assert part.dataset == "set.shard-2-of-2"
    assert list_datasets(cache) == []
    # The other part, made anew, completes it.
    assert go(photo_folder, cache, shard="1/2").dataset == "set"
    assert len(load_dataset(cache, "set")) == 35


def test_classes_that_only_one_shard_has_keep_their_labels(tmp_path: Path, cache: Path) -> None:
    from support.samples import class_picture

    rows = ["path,label"]
    for seed, label in enumerate(["a", "b"] * 4):
        class_picture(seed % 2, seed).save(tmp_path / f"{seed}.png")
        rows.append(f"{seed}.png,{label}")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for number in (1, 2):
        go(tmp_path / "list.csv", cache, shard=f"{number}/2")
    merged = load_dataset(cache, "set")
    assert merged.classes == ["a", "b"]
    assert np.array_equal(merged.label, [0, 1] * 4)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "-1/2", "1/99999999", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard i/n"):
        ShardText().read("--shard", text)


def test_a_shard_reads_back_as_written() -> None:
    assert ShardText().read("--shard", "2/8") == Shard(2, 8)
    assert str(Shard(2, 8)) == "2/8"


def test_a_name_that_looks_like_a_shard_is_refused(photo_folder: Path, cache: Path) -> None:
    with pytest.raises(UsageError, match="shard"):
        go(photo_folder, cache, "x.shard-1-of-2")
