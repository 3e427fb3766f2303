"""Relabelling makes a new list from a CSV; no picture is read and nothing is computed."""

from __future__ import annotations

import builtins
import contextlib
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.command import TINY_FLAGS, Run, json_of
from support.samples import in_splits, stored_set

from featpipe import api
from featpipe.base.errors import DataError, NotFoundError, Reason, UsageError
from featpipe.datasets.dataset import NO_LABEL, NO_SPLIT, SPLITS, Dataset, SourceInfo, Status
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.datasets.fixes import Fix, apply_fixes, as_list, read_fixes
from featpipe.sources.listing import open_list


@pytest.fixture
def relabel(cache: Path, tmp_path: Path) -> Any:
    """Write a CSV of fixes and relabel the data set ``set`` by it."""

    def go(text: str | bytes, **options: Any) -> Any:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "fixes.csv").write_bytes(data)
        return api.relabel("set", tmp_path / "fixes.csv", cache=cache, **options)

    return go


def labels_of(dataset: Dataset) -> dict[str, str | None]:
    return {
        path: None if label == NO_LABEL else dataset.classes[label]
        for path, label in zip(dataset.paths, dataset.label.tolist(), strict=True)
    }


def test_labels_change_and_pictures_go_and_all_else_stays(cache: Path, relabel: Any) -> None:
    before = stored_set(cache, in_splits(train=3, test=2))
    done = relabel(
        "path,label,suggested,probability,action,problem\n"
        "train/cat/0.png,dog,,,,\n"
        "train/cat/1.png,cat,owl,0.9,relabel,label error\n"
        "train/cat/2.png,cat,dog,0.9,,label error\n"
        "train/dog/0.png,dog,cat,0.9,keep,\n"
        "test/dog/0.png,dog,,,remove,outlier\n"
    )
    new = load_dataset(cache, "set-relabelled")
    expected = labels_of(before) | {"train/cat/0.png": "dog", "train/cat/1.png": "owl"}
    del expected["test/dog/0.png"]
    assert labels_of(new) == expected
    assert list(labels_of(new)) == list(expected), "the order stays"
    assert new.classes == ["cat", "dog", "owl"]
    kept = [before.paths.index(path) for path in new.paths]
    assert np.array_equal(new.split, before.split[kept])
    assert np.array_equal(new.image_sha256, before.image_sha256[kept])
    assert new.spaces == before.spaces
    assert new.info.weights == before.info.weights
    assert (done.pictures, done.relabelled, done.removed) == (9, 2, 1)
    assert (done.new_classes, done.lost_classes) == (["owl"], [])
    assert load_dataset(cache, "set").digest() == before.digest(), "the old one stays"


def test_a_head_trains_on_the_new_list_without_an_extraction(
    cache: Path, relabel: Any, tmp_path: Path
) -> None:
    stored_set(cache, in_splits(train=10, val=4))
    relabel("path,label\ntrain/cat/0.png,dog\n", name="mended")
    run = api.train_head("mended", cache=cache, head="logistic", C=0.1, out=tmp_path / "run")
    assert run.classes == ["cat", "dog"]


def test_no_picture_is_opened(
    own_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fixes.csv").write_text("path,label\nred/00.png,blue\nred/01.png,blue\n")
    opened: list[str] = []
    for module, name in ((os, "open"), (builtins, "open")):
        real = getattr(module, name)

        def spy(path: Any, *args: Any, real: Any = real, **options: Any) -> Any:
            opened.append(str(path))
            return real(path, *args, **options)

        monkeypatch.setattr(module, name, spy)
    api.relabel("colours", tmp_path / "fixes.csv", cache=tmp_path / "cache")
    assert any(path.endswith("fixes.csv") for path in opened), "the spy saw nothing"
    assert not [path for path in opened if path.endswith((".png", ".h5")) and "segments" in path]
    assert not [path for path in opened if path.endswith(".png")]


def test_the_list_is_what_extract_takes_and_gives_the_same_set(
    featpipe: Run, own_workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "fixes.csv").write_text(
        "path,label,action\nred/00.png,blue,\nblue/03.png,,remove\nred/07.png,green,\n"
    )
    done = json_of(featpipe("relabel", "colours", "fixes.csv", "--name", "mended", "--json"))
    assert (done["relabelled"], done["removed"], done["pictures"]) == (2, 1, 39)
    assert done["data"] == "mended.csv"
    cache = tmp_path / "cache"
    first = load_dataset(cache, "mended")
    args = ["extract", done["data"], "--root", done["root"], "--name", "mended", *TINY_FLAGS]
    again = json_of(featpipe(*args, "--json"))
    assert again["computed"] == 0
    second = load_dataset(cache, "mended")
    assert second.digest() == first.digest()
    assert second.paths == first.paths
    assert second.source == first.source
    # A file that was written just before it was read is read again the next time.
    trusted = first.stat[:, 0] >= 0
    assert np.array_equal(second.stat[trusted], first.stat[trusted])
    plan = json_of(featpipe(*args, "--dry-run", "--json"))
    assert plan["to_read"] == 0


def test_digits_have_no_list(cache: Path, relabel: Any) -> None:
    dataset = stored_set(cache, in_splits(train=3))
    dataset.source = SourceInfo("digits", "sklearn:digits", "")
    save_dataset(cache, dataset)
    done = relabel("path,label\ntrain/cat/0.png,dog\n")
    assert done.data is None
    assert load_dataset(cache, "set-relabelled").source == dataset.source


def test_nothing_is_replaced_unasked(cache: Path, relabel: Any, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=3))
    fixes = "path,label\ntrain/cat/0.png,dog\n"
    relabel(fixes)
    with pytest.raises(UsageError, match=r"expected a new name, found .*set-relabelled"):
        relabel(fixes)
    relabel("path,label\ntrain/cat/1.png,dog\n", overwrite=True)
    assert labels_of(load_dataset(cache, "set-relabelled"))["train/cat/0.png"] == "cat"
    (tmp_path / "other.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"other\.csv"):
        relabel(fixes, name="other")
    assert (tmp_path / "other.csv").read_text() == "mine"
    with pytest.raises(UsageError, match="another file than the fixes"):
        relabel(fixes, name="fixes", overwrite=True)
    with pytest.raises(UsageError, match="expected another name"):
        relabel(fixes, name="set")
    relabel(fixes, name="elsewhere", out=tmp_path / "lists")
    assert (tmp_path / "lists" / "elsewhere.csv").exists()


def test_equal_bytes_under_two_labels_are_counted(cache: Path, relabel: Any) -> None:
    samples = [*in_splits(train=3), ("copy.png", "cat", "train")]
    stored_set(cache, samples, contents={"copy.png": "train/cat/0.png"})
    assert relabel("path,label\ncopy.png,dog\n").conflicting == 1
    both = "path,label\ncopy.png,dog\ntrain/cat/0.png,dog\n"
    assert relabel(both, overwrite=True).conflicting == 0


def test_quarantined_pictures_stay_in_the_list(cache: Path, relabel: Any) -> None:
    dataset = stored_set(cache, in_splits(train=4))
    dataset.status[[2, 5]], dataset.split[[2, 5]] = Status.QUARANTINED, NO_SPLIT
    dataset.reasons = {2: Reason("open", "no picture"), 5: Reason("read", "gone")}
    save_dataset(cache, dataset)
    relabel("path,action\ntrain/cat/0.png,remove\n")
    new = load_dataset(cache, "set-relabelled")
    assert new.reasons == {1: dataset.reasons[2], 4: dataset.reasons[5]}
    assert np.flatnonzero(~new.usable).tolist() == [1, 4]


def test_labels_for_pictures_without_any_split_them(cache: Path, relabel: Any) -> None:
    dataset = stored_set(cache, [(f"{i}.png", None, None) for i in range(40)])
    dataset.info.split = [0.5, 0.25, 0.25]
    save_dataset(cache, dataset)
    relabel("path,label\n" + "".join(f"{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in range(40)))
    new = load_dataset(cache, "set-relabelled")
    assert new.split_names == ["train", "val", "test"]
    assert new.info.split == "given"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\nnowhere.png,dog\n", "'nowhere.png' (FIXES, line 2)"),
        (
            "path,label\ntrain/cat/0.png,dog\ntrain/cat/0.png,owl\n",
            "expected one fix per picture, found two for 'train/cat/0.png' (FIXES, line 3)",
        ),
        ("path,action\ntrain/cat/0.png,delete\n", "found 'delete' (FIXES, line 2)"),
        ("path,action\ntrain/cat/0.png,relabel\n", "column 'suggested'"),
        ("path,label,suggested,action\ntrain/cat/0.png,owl,dog,relabel\n", "found 'owl' and"),
        ("path,label,action\ntrain/cat/0.png,dog,remove\n", "found 'dog' and the action"),
        ("path,label,action\ntrain/cat/0.png,dog,keep\n", "found 'dog' and the action"),
        (b"path,label\ntrain/cat/0.png,caf\xe9\n", "expected a label in UTF-8"),
        ("label\ndog\n", "expected a header line with 'path'"),
        ("path,label\ntrain/cat/0.png\n", "expected 2 fields in FIXES, line 2, found fewer"),
        ("", "expected a header line with 'path'"),
        ('path,label\n"train/cat/0.png,dog\n', "expected CSV in FIXES"),
        ("path,label\ntrain/cat/0.png,dog\n".encode("utf-16")[:-1], "expected UTF-16"),
    ],
)
def test_a_wrong_row_is_named(
    cache: Path, relabel: Any, tmp_path: Path, text: Any, words: str
) -> None:
    stored_set(cache, in_splits(train=3))
    with pytest.raises(DataError) as caught:
        relabel(text)
    assert words in str(caught.value).replace(str(tmp_path / "fixes.csv"), "FIXES")
    assert not (cache / "datasets" / "set-relabelled.h5").exists()


def test_removing_every_picture_is_refused(cache: Path, relabel: Any) -> None:
    stored_set(cache, [("a.png", "cat", "train")])
    with pytest.raises(DataError, match="found all removed"):
        relabel("path,action\na.png,remove\n")


def test_missing_fixes_are_named(cache: Path, tmp_path: Path) -> None:
    stored_set(cache, in_splits(train=1))
    with pytest.raises(NotFoundError, match="featpipe audit set"):
        api.relabel("set", tmp_path / "none.csv", cache=cache)


def test_fixes_saved_by_a_spreadsheet_are_read(cache: Path, relabel: Any) -> None:
    stored_set(cache, in_splits(train=3))
    text = "path,label\r\ntrain/cat/0.png,dög\r\n"
    for number, encoding in enumerate(("utf-8-sig", "utf-16")):
        relabel(text.encode(encoding), name=f"new{number}")
        assert labels_of(load_dataset(cache, f"new{number}"))["train/cat/0.png"] == "dög"


def test_a_file_name_that_is_not_utf8_comes_back_from_the_list(
    cache: Path, relabel: Any, tmp_path: Path
) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    dataset = stored_set(cache, [("a.png", "cat", "train"), ("b.png", "dog", "train")])
    dataset.paths[1], dataset.source = name, SourceInfo("folder", "x", str(tmp_path))
    save_dataset(cache, dataset)
    (tmp_path / name).write_bytes(b"")
    done = relabel(b"path,label\ncaf\xe9.png,cat\n")
    assert [r.path for r in open_list(done.data, root=tmp_path).records] == ["a.png", name]


def test_two_rows_that_say_the_same_are_one(cache: Path, relabel: Any) -> None:
    stored_set(cache, in_splits(train=3))
    done = relabel("path,label\ntrain/cat/0.png,dog\ntrain/cat/0.png,dog\n")
    assert done.relabelled == 1


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=8
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=60, deadline=None)
@given(
    paths=st.lists(NAMES, min_size=1, max_size=8, unique=True),
    labels=st.lists(NAMES, min_size=8, max_size=8),
    split=st.booleans(),
)
def test_a_list_of_any_names_comes_back(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], labels: list[str], split: bool
) -> None:
    folder = tmp_path_factory.mktemp("list")
    n = len(paths)
    classes = sorted(set(labels[:n]))
    dataset = Dataset(
        name="set",
        source=SourceInfo("folder", "x", str(folder)),
        classes=classes,
        paths=paths,
        label=np.array([classes.index(label) for label in labels[:n]], np.int64),
        split=np.full(n, 1 if split else NO_SPLIT, np.int8),
        image_sha256=np.zeros((n, 32), np.uint8),
        status=np.full(n, Status.QUARANTINED, np.int8),
        stat=np.full((n, 3), -1),
    )
    (folder / "list.csv").write_bytes(as_list(apply_fixes(dataset, {0: Fix("new")}, "new")))
    records = open_list(folder / "list.csv", follow_links=True).records
    assert [r.path for r in records] == dataset.paths
    assert [r.label for r in records] == ["new", *labels[1:n]]
    assert {r.split for r in records} == {SPLITS[1] if split else None}


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(
        st.binary(max_size=80),
        st.lists(
            st.lists(
                st.sampled_from(
                    ["a.png", "b.png", "cat", "dog", "", "remove", "relabel", '"', "é"]
                ),
                max_size=5,
            ).map(",".join),
            max_size=4,
        ).map(lambda rows: "\n".join(["path,label,suggested,action", *rows]).encode()),
    )
)
def test_any_file_is_read_or_refused_by_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = tmp_path_factory.mktemp("fixes") / "fixes.csv"
    path.write_bytes(text)
    dataset = Dataset(
        name="set",
        source=SourceInfo("folder", "x", "x"),
        classes=["cat", "dog"],
        paths=["a.png", "b.png"],
        label=np.array([0, NO_LABEL]),
        split=np.zeros(2, np.int8),
        image_sha256=np.zeros((2, 32), np.uint8),
        status=np.zeros(2, np.int8),
        stat=np.full((2, 3), -1),
    )
    with contextlib.suppress(DataError):
        apply_fixes(dataset, read_fixes(path, dataset), "new")


def test_a_cache_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "fixes.csv").write_text("path,label\n")
    with pytest.raises(NotFoundError):
        api.relabel("pets", tmp_path / "fixes.csv", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_fixes_without_a_fix_are_refused(featpipe: Run, own_workspace: Path) -> None:
    (own_workspace / "fixes.csv").write_text("path,label,action\nred/00.png,red,\n")
    done = featpipe("relabel", "colours", "fixes.csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: expected a fix in fixes.csv (another label, or 'relabel' or 'remove' as the "
        "action), found none; edit it first\n"
    )
    assert not (own_workspace / "cache/datasets/colours-relabelled.h5").exists()


def test_the_command_that_it_prints_computes_nothing(featpipe: Run, own_workspace: Path) -> None:
    (own_workspace / "fixes.csv").write_text("path,label\nred/00.png,blue\n")
    printed = featpipe("relabel", "colours", "fixes.csv").stdout.splitlines()[-1]
    command = shlex.split(printed)
    assert command[:2] == ["featpipe", "extract"] and "--size" in command
    done = json_of(featpipe(*command[1:], "--json"))
    assert (done["computed"], done["images"]) == (0, 40)


def test_a_relabelling_that_was_cut_short_goes_on(
    cache: Path, relabel: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_set(cache, in_splits(train=3))
    fixes = "path,label\ntrain/cat/0.png,dog\n"
    with monkeypatch.context() as patch:
        patch.setattr("featpipe.stages.relabel.save_dataset", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            relabel(fixes)
    relabel(fixes)
    assert labels_of(load_dataset(cache, "set-relabelled"))["train/cat/0.png"] == "dog"


def test_the_list_replaces_neither_the_fixes_nor_the_source(
    cache: Path, relabel: Any, tmp_path: Path
) -> None:
    dataset = stored_set(cache, in_splits(train=3))
    (tmp_path / "linked").symlink_to(tmp_path, target_is_directory=True)
    fixes = "path,label\ntrain/cat/0.png,dog\n"
    with pytest.raises(UsageError, match="another file than the fixes"):
        relabel(fixes, name="fixes", out=tmp_path / "linked", overwrite=True)
    source = tmp_path / "mine.csv"
    source.write_text("path,label\n")
    dataset.source = SourceInfo("list", str(source), str(tmp_path))
    save_dataset(cache, dataset)
    with pytest.raises(UsageError, match="another file than that of 'set'"):
        relabel(fixes, name="mine", out=tmp_path, overwrite=True)
    assert source.read_text() == "path,label\n"


def test_a_new_label_is_utf8_even_where_a_class_is_not(cache: Path, relabel: Any) -> None:
    stored_set(cache, [("a.png", "a", "train"), ("b.png", "\udcff", "train")])
    with pytest.raises(DataError, match="expected a label in UTF-8"):
        relabel(b"path,label\na.png,\xff\n")
