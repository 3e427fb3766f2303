"""What would mislabel a data set in silence is said before a picture is read."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from support.command import TINY_FLAGS, Run, json_of
from support.samples import class_picture

from featpipe.base.errors import DataError
from featpipe.sources import label_warnings, open_source


def touch(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "text", "unused"),
    [
        ("l.csv", "path,class\na.jpg,cat\nb.jpg,dog\n", "column 'class', which is not used"),
        ("l.csv", "path,class,split\na,cat,train\n", "column 'class', which is not used"),
        ("l.csv", "id,path,y\n1,a,cat\n", "columns 'id', 'y', which are not used"),
        ("l.tsv", "path\tlabel\tname\na\t\tcat\n", "column 'name', which is not used"),
        ("l.jsonl", '{"path": "a"}\n{"path": "b", "Species": 3}\n', "column 'species', which is"),
    ],
)
def test_a_list_without_labels_names_the_columns_it_does_not_use(
    name: str, text: str, unused: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    (said,) = label_warnings(open_source(tmp_path / name))
    assert said.startswith(
        f"no picture of {tmp_path / name} has a label: expected them in a column 'label', found "
        f"the {unused}"
    )
    assert said.endswith("; rename the one with the classes to 'label'")


@pytest.mark.parametrize("text", ["path\na\n", "path,label,size\na,cat,9\nb,dog,9\n"])
def test_a_list_that_can_be_meant_is_not_warned_of(text: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text(text)
    assert label_warnings(open_source(tmp_path / "l.csv")) == []


@pytest.mark.parametrize(
    ("names", "below"),
    [
        (["dataset/cat/1.jpg", "dataset/dog/1.jpg"], ("'cat', 'dog'", "dataset")),
        (["dataset/1.jpg", "dataset/cat/1.jpg", "dataset/dog/1.jpg"], ("'cat', 'dog'", "dataset")),
        (["a/b/cat/1.jpg", "a/b/dog/1.jpg"], ("'cat', 'dog'", "a/b")),
        (["a/train/cat/1.jpg", "a/test/cat/1.jpg"], ("'test', 'train'", "a")),
        ([f"d/{i}/1.jpg" for i in range(7)], ("'0', '1', '2', '3', '4', … (7 in all)", "d")),
    ],
)
def test_a_folder_one_level_too_high_is_named_with_the_one_to_give(
    names: list[str], below: tuple[str, str], tmp_path: Path
) -> None:
    folder = touch(tmp_path / "photos", names)
    top = names[0].split("/")[0]
    assert label_warnings(open_source(folder)) == [
        f"all pictures of {folder} are of one class, {top!r}, whose folder holds the folders "
        f"{below[0]}; if these are the classes, give {folder}/{below[1]} as DATA"
    ]


def test_one_class_below_split_folders_is_named_with_what_lies_below(tmp_path: Path) -> None:
    names = [f"{split}/d/{label}/1.jpg" for split in ("train", "test") for label in ("cat", "dog")]
    folder = touch(tmp_path / "photos", names)
    assert label_warnings(open_source(folder)) == [
        f"all pictures of {folder} are of one class, 'd', whose folder holds the folders 'cat', "
        "'dog'; if these are the classes, move them up, directly into the split folders"
    ]


@pytest.mark.parametrize("names", [["cat/1.jpg", "cat/2.jpg"], ["a/cat/1.jpg", "2.jpg"]])
def test_one_class_alone_is_said(names: list[str], tmp_path: Path) -> None:
    folder = touch(tmp_path / "photos", names)
    (said,) = label_warnings(open_source(folder))
    top = names[0].split("/")[0]
    assert said == f"all pictures of {folder} are of one class, {top!r}; a head needs at least two"


def test_the_warning_comes_before_the_work(inside: Run, tmp_path: Path) -> None:
    touch(tmp_path, ["up/photos/cat/1.jpg", "up/photos/dog/1.jpg"])
    done = inside("extract", "up", "--name", "x", "--strict", *TINY_FLAGS)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert said[0].startswith("warning: all pictures of up are of one class, 'photos', whose")
    assert said[0].endswith("'cat', 'dog'; if these are the classes, give up/photos as DATA")
    assert said[1] == "up: 2 pictures"


LATIN = "path,label\na.jpg,cat\nb.jpg,caf\u00e9\n"


@pytest.mark.parametrize(
    ("name", "data", "found"),
    [
        ("l.csv", LATIN.encode("latin-1"), "0xe9 in l.csv, line 3"),
        ("l.csv", b"path,label\ncaf\xe9.jpg,cat\n", "0xe9 in l.csv, line 2"),
        ("l.csv", b"path,label,\xfcber\na.jpg,cat,1\n", "0xfc in l.csv, line 1"),
        ("l.csv", b"path,label,note\na.jpg,cat,\x80\n", "0x80 in l.csv, line 2"),
        ("l.tsv", b"path\tlabel\na\tb\nc\t\xff\n", "0xff in l.tsv, line 3"),
        ("l.jsonl", b'{"path": "a", "label": "\xe4"}\n', "0xe4 in l.jsonl, line 1"),
    ],
)
def test_a_list_in_another_encoding_is_refused_with_byte_and_line(
    name: str, data: bytes, found: str, inside: Run, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    done = inside("extract", name, "--name", "x", "--dry-run", *TINY_FLAGS)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"Error: expected UTF-8, found a byte {found}; save the list as UTF-8\n")


@pytest.mark.parametrize(
    ("bom", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_a_byte_order_mark_says_the_encoding(bom: bytes, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(bom + LATIN.encode(encoding))
    records = open_source(tmp_path / "l.csv").records
    assert [(r.path, r.label) for r in records] == [("a.jpg", "cat"), ("b.jpg", "caf\u00e9")]


def test_damaged_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(codecs.BOM_UTF16_LE + b"p\0a")
    with pytest.raises(DataError, match=r"^expected UTF-16 in .*, as its first bytes say, found: "):
        open_source(tmp_path / "l.csv")


def pictures(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        class_picture(seed % 3, seed).save(folder / name)


def test_a_file_is_judged_the_same_at_any_depth(inside: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "p", "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
    places = ("", "train/", "test/a/")
    for place in places:
        (tmp_path / "p" / f"{place}README").write_text("hello")
        (tmp_path / "p" / f"{place}notes.txt").write_text("hello")
    done = inside("extract", "p", "--name", "x", "--json", *TINY_FLAGS)
    assert done.returncode == 3
    document = json_of(done)
    assert {bad["path"] for bad in document["bad"]} == {f"{place}README" for place in places}
    assert document["splits"] == {"train": 2, "test": 2}
    assert "3 files passed over: their names say they are no pictures" in done.stderr


def test_a_dry_run_tells_classes_and_given_splits(inside: Run, tmp_path: Path) -> None:
    pictures(tmp_path / "p", "train/a/1.png", "train/a/2.png", "train/b/3.png", "val/b/4.png")
    command = ("extract", "p", "--name", "x", "--dry-run", *TINY_FLAGS)
    done = inside(*command, "--json")
    document = json.loads(done.stdout)
    assert document["classes"] == {"a": 2, "b": 2}
    assert document["splits"] == {"train": 3, "val": 1}
    assert document["split_by"] == "given"
    assert inside(*command).stdout.splitlines()[1:] == [
        "  classes: a 2, b 2",
        "  splits: as DATA gives them: train 3, val 1",
    ]


def test_a_dry_run_knows_splits_by_content_once_the_pictures_were_read(
    inside: Run, own_workspace: Path
) -> None:
    command = ("extract", "photos", "--name", "new", *TINY_FLAGS)
    done = inside(*command, "--dry-run", "--json")
    assert json.loads(done.stdout)["splits"] == {}
    assert json.loads(done.stdout)["split_by"] == "content"
    assert inside(*command, "--dry-run").stdout.splitlines()[1:] == [
        "  classes: blue 20, red 20",
        "  splits: by content, so not known before the 40 pictures are read",
    ]


def test_a_dry_run_of_pictures_alone_says_that_there_are_no_labels(
    inside: Run, tmp_path: Path
) -> None:
    pictures(tmp_path / "p", "1.png")
    command = ("extract", "p", "--name", "x", *TINY_FLAGS)
    assert inside(*command, "--dry-run").stdout.splitlines()[1:] == [
        "  classes: none",
        "  splits: none, as no picture has a label",
    ]
    assert inside(*command).stderr == "p: 1 pictures, no labels\n"
