"""Data set files: everything comes back, and nothing half or foreign is believed."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.samples import image_ids, small_space

from featpipe.base.errors import DamageError, NotFoundError, Reason, StorageError, UsageError
from featpipe.base.space import Augmentation
from featpipe.datasets import files as module
from featpipe.datasets.dataset import Dataset, DatasetInfo, SourceInfo
from featpipe.datasets.files import dataset_path, list_datasets, load_dataset, save_dataset


def small_dataset(**changes: Any) -> Dataset:
    """Five pictures: two train, one val, one quarantined test, one without a split."""
    fields: dict[str, Any] = {
        "name": "pets",
        "source": SourceInfo("folder", "photos", "/photos"),
        "classes": ["cat", "dög\udcff"],
        "paths": ["a.jpg", "new\nline.jpg", "\udcff\udc80.jpg", "ünï/e.jpg", "e"],
        "label": np.array([0, 1, 1, -1, 0]),
        "split": np.array([0, 0, 1, 2, -1], np.int8),
        "image_sha256": image_ids(*range(5)),
        "status": np.array([0, 0, 0, 1, 0], np.int8),
        "stat": np.arange(15).reshape(5, 3) - 2**40,
        "reasons": {3: Reason("decode", "truncated")},
        "spaces": ['{"format":1}'],
        "info": DatasetInfo("pillow", [0.5, 0.25, 0.25], {"ab": "random:0"}, "cd"),
    }
    return Dataset(**{**fields, **changes})


def assert_same(found: Dataset, expected: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        mine, its = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(its, np.ndarray):
            assert mine.dtype == its.dtype, field.name
            assert np.array_equal(mine, its), field.name
        else:
            assert mine == its, field.name


def test_every_field_comes_back(cache: Path) -> None:
    path = save_dataset(cache, small_dataset())
    assert path == cache / "datasets" / "pets.h5"
    assert_same(load_dataset(cache, "pets"), small_dataset())


# Whatever a Linux file system can hold: any bytes but NUL, names up to 255 of them.
file_names = st.binary(max_size=255)
paths = file_names.map(lambda name: name.replace(b"\0", b"0")).map(os.fsdecode)


@given(st.lists(paths, min_size=1, max_size=8))
@example(["a\nb", "\udcff", "ü" * 127, "x" * 255, "\r", " ", "/".join(["y" * 255] * 15)])
@example(["", "a", ""])
@settings(deadline=None, max_examples=60)
def test_any_path_comes_back(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    n = len(paths)
    dataset = Dataset(
        name="x",
        source=SourceInfo("", "", ""),
        classes=[],
        paths=paths,
        label=np.full(n, -1),
        split=np.full(n, -1, np.int8),
        image_sha256=image_ids(*range(n)),
        status=np.zeros(n, np.int8),
        stat=np.zeros((n, 3), np.int64),
    )
    # One folder for all examples: every save replaces the one before.
    cache = tmp_path_factory.getbasetemp() / "paths"
    save_dataset(cache, dataset)
    assert_same(load_dataset(cache, "x"), dataset)


def test_features_that_cover_some_splits_come_back_in_a_format_of_their_own(cache: Path) -> None:
    view = small_space(view=1, augmentation=Augmentation(policy="flip", version=1))
    info = DatasetInfo(covers={view.id: ("train", "val")})
    dataset = small_dataset(spaces=[view.canonical_json], info=info)
    path = save_dataset(cache, dataset)
    found = load_dataset(cache, dataset.name)
    assert_same(found, dataset)
    usable = [i for i in found.in_split("all") if found.split[i] in (0, 1)]
    assert found.covered_by(view).tolist() == usable
    assert found.covered_by(small_space()).tolist() == found.in_split("all").tolist()
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 2
    save_dataset(cache, small_dataset())
    with h5py.File(path) as file:
        assert file.attrs["format_version"] == 1  # an earlier featpipe reads it


@pytest.mark.parametrize("covers", [["train"], {"a": "train"}, {"a": ["elsewhere"]}])
def test_splits_that_mean_nothing_are_refused(covers: Any) -> None:
    with pytest.raises(ValueError, match="splits that its features cover"):
        DatasetInfo.from_json({"covers": covers})


def test_a_data_set_of_nothing_comes_back(cache: Path) -> None:
    # A shard may well get no picture.
    none = {
        "paths": [],
        "label": np.zeros(0, np.int64),
        "split": np.zeros(0, np.int8),
        "image_sha256": image_ids(),
        "status": np.zeros(0, np.int8),
        "stat": np.zeros((0, 3), np.int64),
        "reasons": {},
    }
    save_dataset(cache, small_dataset(**none))
    assert_same(load_dataset(cache, "pets"), small_dataset(**none))


def test_columns_are_kept_in_their_own_dtype(cache: Path) -> None:
    save_dataset(
        cache, small_dataset(label=[0, 1, 1, -1, 0], status=[False, False, False, True, False])
    )
    found = load_dataset(cache, "pets")
    assert (found.label.dtype, found.status.dtype) == (np.int64, np.int8)


def test_saving_replaces_the_file_in_one_step(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dataset(cache, small_dataset())

    def full(path: Path, data: bytes) -> None:
        assert path == cache / "datasets" / "pets.h5"
        raise StorageError("expected to write, but: No space left on device")

    # There is no other way to the disk than the atomic one.
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        with pytest.raises(StorageError, match="No space left"):
            save_dataset(cache, small_dataset(classes=["x", "y"]))
    assert load_dataset(cache, "pets").classes == small_dataset().classes
    save_dataset(cache, small_dataset(classes=["x", "y"]))
    assert load_dataset(cache, "pets").classes == ["x", "y"]
    assert [path.name for path in (cache / "datasets").iterdir()] == ["pets.h5"]


@pytest.mark.parametrize("name", ["pets", "a", "0", "A.b_c-d", "x" * 100, "pets.shard-0-of-4"])
def test_plain_names_are_accepted(cache: Path, name: str) -> None:
    assert dataset_path(cache, name) == cache / "datasets" / f"{name}.h5"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc/x", ".hidden", "-x", "a b", "a\n", "ü", "x" * 101]
)
def test_names_that_could_lead_elsewhere_are_refused(cache: Path, name: str) -> None:
    for call in (dataset_path, load_dataset):
        with pytest.raises(UsageError, match="expected a data set name"):
            call(cache, name)
    with pytest.raises(UsageError, match="expected a data set name"):
        save_dataset(cache, small_dataset(name=name))
    assert not cache.exists()


def test_data_sets_are_listed_by_name(cache: Path) -> None:
    assert list_datasets(cache) == []
    for name in ("b", "a.1", "a"):
        save_dataset(cache, small_dataset(name=name))
    (cache / "datasets" / ".tmp-host-1-deadbeef").write_bytes(b"half a file")
    assert list_datasets(cache) == ["a", "a.1", "b"]


def test_a_missing_data_set_names_those_there_are(cache: Path) -> None:
    with pytest.raises(NotFoundError, match=r"a data set 'dogs' in .*, found: none; make it with"):
        load_dataset(cache, "dogs")
    for name in ("pets", "cars"):
        save_dataset(cache, small_dataset(name=name))
    with pytest.raises(NotFoundError, match=r"found: cars, pets; .*extract DATA --name dogs"):
        load_dataset(cache, "dogs")


def test_a_file_that_cannot_be_read_is_a_storage_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("featpipe.datasets.files.read_regular", refuse)
    with pytest.raises(StorageError, match=r"expected to read .*pets\.h5, but: Input/output error"):
        load_dataset(cache, "pets")


# Splits and digests


def test_splits_are_those_with_usable_rows() -> None:
    dataset = small_dataset()
    assert dataset.split_names == ["train", "val"], "the only test picture is quarantined"
    assert dataset.in_split("train").tolist() == [0, 1]
    assert dataset.in_split("val").tolist() == [2]
    assert dataset.in_split("all").tolist() == [0, 1, 2, 4]
    assert dataset.usable.tolist() == [True, True, True, False, True]
    assert len(dataset) == 5


@pytest.mark.parametrize("split", ["test", "dev", ""])
def test_a_split_that_is_not_there_names_those_that_are(split: str) -> None:
    with pytest.raises(NotFoundError, match=f"a split '{split}' in .*'pets', found: train, val;"):
        small_dataset().in_split(split)


def test_without_splits_only_all_is_left() -> None:
    dataset = small_dataset(split=np.full(5, -1, np.int8))
    assert dataset.split_names == []
    with pytest.raises(NotFoundError, match="found: none"):
        dataset.in_split("train")
    assert len(dataset.in_split("all")) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["cat", "fish"]},
        {"label": np.array([1, 1, 1, -1, 0])},
        {"split": np.array([0, 0, 2, 2, -1], np.int8)},
        {"image_sha256": image_ids(0, 1, 2, 3, 5)},
        {"status": np.array([0, 0, 1, 1, 0], np.int8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_changes_with_what_the_list_means(change: dict[str, Any]) -> None:
    assert small_dataset(**change).digest() != small_dataset().digest()


def test_the_digest_does_not_change_with_names_places_and_times(cache: Path) -> None:
    other = small_dataset(
        name="other",
        paths=list("vwxyz"),
        stat=np.zeros((5, 3), np.int64),
        info=DatasetInfo(),
        source=SourceInfo("", "", ""),
    )
    assert other.digest() == small_dataset().digest()
    save_dataset(cache, other)
    assert load_dataset(cache, "other").digest() == other.digest()


# Damage


def rewrite(cache: Path, change: Callable[[h5py.File], None]) -> None:
    path = save_dataset(cache, small_dataset())
    with h5py.File(path, "r+") as file:
        change(file)


def set_item(name: str, place: int, value: int) -> Callable[[h5py.File], None]:
    return lambda file: file[name].__setitem__(place, value)


def soft_link(file: h5py.File) -> None:
    file.move("label", "moved")
    file["label"] = h5py.SoftLink("/moved")


def external_link(file: h5py.File) -> None:
    del file["label"]
    file["label"] = h5py.ExternalLink("other.h5", "/label")


def external_storage(file: h5py.File) -> None:
    del file["label"]
    file.create_dataset("label", (5,), np.int64, external=[("/dev/zero", 0, 40)])


def compressed(file: h5py.File) -> None:
    data = file["label"][()]
    del file["label"]
    file.create_dataset("label", data=data, compression="gzip")


def declared_only(file: h5py.File) -> None:
    # A few bytes in the file, terabytes in memory.
    del file["label"]
    file.create_dataset("label", (10**12,), np.int64)


def remove(file: h5py.File) -> None:
    del file["stat"]


def newer(file: h5py.File) -> None:
    file.attrs["format_version"] = 3


def versionless(file: h5py.File) -> None:
    del file.attrs["format_version"]


def group(file: h5py.File) -> None:
    del file["label"]
    file.create_group("label")


def named_type(file: h5py.File) -> None:
    del file["label"]
    file["label"] = np.dtype("int64")


def variable_text(file: h5py.File) -> None:
    file.attrs["sha256"] = file.attrs["sha256"].decode()


def uncountable(file: h5py.File) -> None:
    # The number of elements is 0 to 64-bit arithmetic.
    del file["label"]
    file.create_dataset("label", (2**32, 2**32), np.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_item("label", 0, 1), "do not have the digest in it"),
        (set_item("split", 0, 2), "do not have the digest in it"),
        (set_item("status", 3, 0), "do not have the digest in it"),
        (set_item("image_sha256", 0, 0), "do not have the digest in it"),
        (set_item("stat", 0, 0), "do not have the digest in it"),
        (set_item("path_bytes", 0, 65), "do not have the digest in it"),
        (set_item("path_end", 0, 4), "do not have the digest in it"),
        (set_item("header", 5, 65), "do not have the digest in it"),
        (soft_link, "'label' is missing or a link"),
        (external_link, "'label' is missing or a link"),
        (external_storage, "'label' is not one plain block"),
        (compressed, "'label' is not one plain block"),
        (declared_only, "'label' declares more than the file holds"),
        (remove, "'stat' is missing or a link"),
        (newer, "format version 3; this featpipe reads 2"),
        (versionless, "expected a whole data set file"),
        (group, "'label' is not a data set"),
        (named_type, "'label' is not a data set"),
        (variable_text, "attribute 'sha256' is object"),
        (uncountable, "'label' declares more than the file holds"),
    ],
)
def test_a_changed_file_is_refused(
    cache: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    rewrite(cache, change)
    with pytest.raises(DamageError, match=message) as caught:
        load_dataset(cache, "pets")
    assert "pets.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rewriting_without_a_change_is_accepted(cache: Path) -> None:
    # Without this, every refusal above could have another reason.
    rewrite(cache, lambda file: None)
    assert_same(load_dataset(cache, "pets"), small_dataset())


def test_a_file_under_anothers_name_is_refused(cache: Path) -> None:
    path = save_dataset(cache, small_dataset())
    path.rename(path.with_name("cars.h5"))
    with pytest.raises(DamageError, match=r"the data set 'cars' in .*cars\.h5, found 'pets'"):
        load_dataset(cache, "cars")


def test_a_file_cut_anywhere_is_refused(cache: Path) -> None:
    path = save_dataset(cache, small_dataset())
    data = path.read_bytes()
    for size in [0, 1, 8, 100, *range(512, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(DamageError, match="expected a whole data set file"):
            load_dataset(cache, "pets")


def test_no_attribute_lies_in_the_global_heap(cache: Path) -> None:
    # See the test of the same name for segments.
    with h5py.File(save_dataset(cache, small_dataset())) as file:
        kind = file.attrs.get_id("sha256").get_type()
        assert isinstance(kind, h5py.h5t.TypeStringID)
        assert not kind.is_variable_str()
