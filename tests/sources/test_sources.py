"""What is listed, in which order, and which lists are refused."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from featpipe.base.errors import DataError, NotFoundError, StorageError, UsageError
from featpipe.base.locations import read
from featpipe.datasets.draft import source_info
from featpipe.sources import Record, Source, image_reader, open_source
from featpipe.sources.canonical_png import canonical_png

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write("list.csv", text)``: a file, with its folders; text may hold surrogate escapes."""

    def write(name: str, text: str = "x") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write


def listed(source: Source) -> list[tuple[str, str | None, str | None]]:
    return [(record.path, record.label, record.split) for record in source.records]


# Folders


def test_class_folders_give_labels_in_a_fixed_order(write: Write, tmp_path: Path) -> None:
    for name in ("dogs/2.jpg", "cats/b.png", "dogs/10.jpg", "cats/a.png", "dogs/old/1.jpg"):
        write(name)
    source = open_source(tmp_path)
    assert listed(source) == [
        ("cats/a.png", "cats", None),
        ("cats/b.png", "cats", None),
        ("dogs/10.jpg", "dogs", None),
        ("dogs/2.jpg", "dogs", None),
        ("dogs/old/1.jpg", "dogs", None),
    ]
    assert source.kind == "folder"
    assert source.root == tmp_path.resolve()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Training", "valid", "TESTING"), ("TRAIN", "validation", "Test")],
)
def test_split_folders_are_known_however_they_are_spelt(
    write: Write, tmp_path: Path, train: str, val: str, test: str
) -> None:
    for split in (train, val, test):
        write(f"{split}/cats/1.jpg")
    assert set(listed(open_source(tmp_path))) == {
        (f"{train}/cats/1.jpg", "cats", "train"),
        (f"{val}/cats/1.jpg", "cats", "val"),
        (f"{test}/cats/1.jpg", "cats", "test"),
    }


def test_pictures_without_class_are_unlabelled_at_any_depth(write: Write, tmp_path: Path) -> None:
    for name in ("train/cats/1.jpg", "test/2.jpg", "stray.jpg", "notes.txt", "test/notes.txt"):
        write(name)
    source = open_source(tmp_path)
    assert set(listed(source)) == {
        ("train/cats/1.jpg", "cats", "train"),
        ("test/2.jpg", None, "test"),
        ("stray.jpg", None, None),
    }
    assert source.ignored == 2


def test_without_train_a_folder_called_test_is_a_class(write: Write, tmp_path: Path) -> None:
    write("test/1.jpg")
    write("driving/1.jpg")
    assert listed(open_source(tmp_path)) == [
        ("driving/1.jpg", "driving", None),
        ("test/1.jpg", "test", None),
    ]


def test_split_folders_beside_others_are_refused(write: Write, tmp_path: Path) -> None:
    for name in ("train/cats/1.jpg", "test/cats/1.jpg", "extra/1.jpg"):
        write(name)
    with pytest.raises(DataError, match=r"only split folders beside 'test' .* found 'extra'"):
        open_source(tmp_path)


def test_pictures_alone_are_unlabelled(write: Write, tmp_path: Path) -> None:
    write("b.jpg")
    write("a.jpg")
    assert listed(open_source(tmp_path)) == [("a.jpg", None, None), ("b.jpg", None, None)]


def test_only_names_that_cannot_be_pictures_are_passed_over(write: Write, tmp_path: Path) -> None:
    # What cannot be read must be reported, not missed: no ending, odd endings stay.
    for name in ("a/1.JPG", "a/noending", "a/x.webp", "a/y.dat"):
        write(name)
    for name in ("a/README.md", "a/LABELS.CSV", "a/Thumbs.db", "notes.txt"):
        write(name)
    for name in (".DS_Store", "a/.hidden.jpg", ".git/1.jpg"):
        write(name)
    source = open_source(tmp_path)
    assert [r.path for r in source.records] == ["a/1.JPG", "a/noending", "a/x.webp", "a/y.dat"]
    assert source.ignored == 4


def test_a_folder_without_pictures_is_refused(write: Write, tmp_path: Path) -> None:
    write("a/notes.txt")
    with pytest.raises(DataError, match=r"found none \(1 other files\)"):
        open_source(tmp_path)


def test_links_are_followed_and_loops_are_not(write: Write, tmp_path: Path) -> None:
    write("photos/cats/1.jpg")
    write("elsewhere/2.jpg")
    (tmp_path / "photos/cats/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/cats/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/cats/self").symlink_to(".")
    (tmp_path / "photos/cats/dangling.jpg").symlink_to("nowhere")
    assert {r.path for r in open_source(tmp_path / "photos").records} == {
        "cats/1.jpg",
        "cats/more/2.jpg",
        "cats/dangling.jpg",
    }


def test_any_file_name_is_listed_and_can_be_read_again(tmp_path: Path) -> None:
    names = [b"new\nline.jpg", b"\xff\xfe.jpg", b"x" * 251 + b".jpg", "ünï.jpg".encode(), b"a,b"]
    for number, name in enumerate(names):
        (tmp_path / os.fsdecode(name)).write_bytes(b"%d" % number)
    source = open_source(tmp_path)
    assert {os.fsencode(r.path) for r in source.records} == set(names)
    read = image_reader(source.kind, str(source.root or ""))
    for number, name in enumerate(names):
        assert read(os.fsdecode(name)) == b"%d" % number


def test_the_order_does_not_depend_on_the_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "a/3.jpg"):
        write(name)
    expected = listed(open_source(tmp_path))
    real = os.scandir

    class Backwards:
        def __init__(self, folder: Path) -> None:
            with real(folder) as entries:
                self._entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return sorted(self._entries, key=lambda entry: entry.name, reverse=True)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr("featpipe.sources.folder.os.scandir", Backwards)
    assert listed(open_source(tmp_path)) == expected


def test_a_folder_that_cannot_be_listed_is_a_storage_error(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a/1.jpg")
    real = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder)

    # Leaving the folder out would train on less than the user gave.
    monkeypatch.setattr("featpipe.sources.folder.os.scandir", refuse)
    with pytest.raises(StorageError, match=r"expected to list .*a, but: Permission denied"):
        open_source(tmp_path)


# What DATA may be


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="found nothing at"):
        open_source(tmp_path / "nowhere")


def test_a_file_that_is_no_list_is_a_usage_error(write: Write) -> None:
    with pytest.raises(UsageError, match=r"ending in \.csv, \.tsv, \.jsonl, found"):
        open_source(write("list.txt"))


def test_another_bundled_set_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="expected 'sklearn:digits'"):
        open_source("sklearn:iris")


def test_root_is_for_lists_only(write: Write, tmp_path: Path) -> None:
    write("a/1.jpg")
    with pytest.raises(UsageError, match="--root only with a list"):
        open_source(tmp_path, root=tmp_path)


def test_a_split_for_some_pictures_only_is_refused(write: Write) -> None:
    path = write("list.csv", "path,label,split\na.jpg,x,train\nb.jpg,x,\n")
    with pytest.raises(DataError, match="found 1 of 2 without one"):
        open_source(path)


# Lists


def test_csv_tsv_and_json_lines_say_the_same(write: Write) -> None:
    rows = [("a.jpg", "cat", "train"), ("sub/b.jpg", "dog", "test"), ("c d,e.jpg", "7", "val")]
    quoted = "".join(f'"{p}",{label},{s}\n' for p, label, s in rows)
    tabs = "".join(f"{p}\t{label}\t{s}\n" for p, label, s in rows)
    lines = "".join(json.dumps({"path": p, "label": x, "split": s}) + "\n" for p, x, s in rows)
    for name, text in [
        ("list.csv", "path,label,split\n" + quoted),
        ("list.CSV", "\ufeffpath,label,split\r\n" + quoted.replace("\n", "\r\n")),
        ("list.tsv", "path\tlabel\tsplit\n" + tabs),
        ("list.jsonl", lines + "\n"),
        ("bom.jsonl", "\ufeff" + lines),
        (
            "columns.csv",
            "split,size,label,path\n" + "".join(f'{s},9,{x},"{p}"\n' for p, x, s in rows),
        ),
    ]:
        path = write(name, text)
        source = open_source(path)
        assert listed(source) == rows, name
        assert source.kind == "list"
        assert source.root == path.parent.resolve()


def test_label_and_split_may_be_absent_or_empty(write: Write) -> None:
    assert listed(open_source(write("1.csv", "path\na.jpg\n"))) == [("a.jpg", None, None)]
    assert listed(open_source(write("2.csv", "path,label,split\na.jpg,,\n"))) == [
        ("a.jpg", None, None)
    ]
    text = '{"path": "a.jpg", "label": null, "split": null}\n'
    assert listed(open_source(write("3.jsonl", text))) == [("a.jpg", None, None)]
    # Zero is a class, not an absent label.
    assert listed(open_source(write("4.jsonl", '{"path": "a.jpg", "label": 0}'))) == [
        ("a.jpg", "0", None)
    ]


def test_blanks_around_column_names_do_not_count(write: Write) -> None:
    path = write("list.csv", "path, label ,split\na.jpg,cat,train\n")
    assert listed(open_source(path)) == [("a.jpg", "cat", "train")]


def test_split_names_in_a_list_are_spelt_freely(write: Write) -> None:
    path = write("list.csv", "path,split\na, Training \nb,VALID\nc,testing\n")
    assert [r.split for r in open_source(path).records] == ["train", "val", "test"]


def test_strange_bytes_in_a_list_reach_the_file(write: Write) -> None:
    name = "\udcff\udc80.jpg"
    write(name, "bytes")
    for path in (write("list.csv", f"path\n{name}\n"), write("n.csv", 'path\n"new\nline.jpg"\n')):
        (record,) = open_source(path).records
    assert record.path == "new\nline.jpg"
    source = open_source(write("list.jsonl", f'{{"path": "{name}"}}'))
    assert image_reader(source.kind, str(source.root or ""))(source.records[0].path) == b"bytes"


def test_paths_are_made_plain_and_repeated_rows_are_one(write: Write, tmp_path: Path) -> None:
    text = f"path,label\nx/../a.jpg,cat\n./a.jpg,cat\n{tmp_path.resolve()}/a.jpg,cat\na.jpg,cat\n"
    assert listed(open_source(write("list.csv", text))) == [("a.jpg", "cat", None)]


@pytest.mark.parametrize("second", ["a.jpg,dog,train", "./a.jpg,cat,test", "a.jpg,,train"])
def test_two_truths_about_one_picture_are_refused(write: Write, second: str) -> None:
    path = write("list.csv", f"path,label,split\na.jpg,cat,train\n{second}\n")
    with pytest.raises(DataError, match=r"found two for 'a.jpg' .*line 3"):
        open_source(path)


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", "/etc/passwd", "..", "/"])
def test_a_list_may_not_leave_its_root(write: Write, path: str) -> None:
    file = write("lists/list.csv", f"path\n{path}\n")
    with pytest.raises(DataError, match=r"expected paths inside .*lists, .*--root"):
        open_source(file)


def test_a_name_that_only_begins_like_the_parent_is_inside(write: Write) -> None:
    assert listed(open_source(write("list.csv", "path\n..a.jpg\n"))) == [("..a.jpg", None, None)]


def test_root_widens_and_narrows_what_a_list_may_name(write: Write, tmp_path: Path) -> None:
    file = write("lists/list.csv", "path\nphotos/a.jpg\n")
    source = open_source(file, root=tmp_path)
    assert source.root == tmp_path.resolve()
    assert dataclasses.asdict(source_info(source)) == {
        "kind": "list",
        "spec": str(file),
        "root": str(tmp_path.resolve()),
    }
    outside = write("list.csv", f"path\n{tmp_path.resolve()}/a.jpg\n")
    assert listed(open_source(outside)) == [("a.jpg", None, None)]
    with pytest.raises(DataError, match="expected paths inside"):
        open_source(outside, root=tmp_path / "lists")


@pytest.mark.parametrize("link", ["lists/out", "lists/in/out", "lists/in/picture.png"])
def test_a_list_may_not_leave_its_root_through_a_link(
    write: Write, tmp_path: Path, link: str
) -> None:
    target = write("elsewhere/picture.png", "secret")
    (tmp_path / "lists/in").mkdir(parents=True)
    is_folder = link.endswith("out")
    (tmp_path / link).symlink_to(target.parent if is_folder else target)
    path = link.removeprefix("lists/") + ("/picture.png" if is_folder else "")
    file = write("lists/list.csv", f"path\n{path}\n")
    with pytest.raises(DataError, match=r"expected paths inside .*lists, .*a link to .*elsewhere"):
        open_source(file)
    for said in ({"follow_links": True}, {"root": tmp_path}):
        if "root" in said:
            file.write_text(f"path\nlists/{path}\n")
        assert len(open_source(file, **said).records) == 1


def test_links_inside_the_root_are_fine(write: Write, tmp_path: Path) -> None:
    write("lists/real/picture.png", "")
    (tmp_path / "lists/linked").symlink_to("real")
    (tmp_path / "lists/one.png").symlink_to("linked/picture.png")
    (tmp_path / "lists/loop").symlink_to("loop")
    file = write("lists/list.csv", "path\nlinked/picture.png\none.png\nloop\nmissing/x.png\n")
    assert len(open_source(file).records) == 4


def test_full_paths_through_a_linked_folder_are_inside_it(write: Write, tmp_path: Path) -> None:
    write("disk/a.jpg")
    (tmp_path / "data").symlink_to("disk")
    file = write("disk/list.csv", f"path\n{tmp_path}/data/a.jpg\n")
    for root in (None, tmp_path / "data"):
        source = open_source(tmp_path / "data" / file.name, root=root)
        assert listed(source) == [("a.jpg", None, None)]
        assert source.root == tmp_path.resolve() / "disk"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "", "found an empty file"),
        ("l.csv", "file,label\na,b\n", "found 'file', 'label'"),
        ("l.csv", "path\n", "found an empty list"),
        ("l.csv", "path,label\na.jpg\n", "expected 2 fields in .*line 2"),
        ("l.csv", "path,label\na.jpg,b,c\n", "expected 2 fields in .*line 2"),
        ("l.csv", 'path,label\n"a.jpg,b\n', "expected CSV in"),
        ("l.csv", "path,label\n,b\n", "expected a path in"),
        ("l.csv", "path,split\na.jpg,dev\n", "expected split train, val or test, found 'dev'"),
        ("l.csv", "path\na\0b\n", "expected (a path|CSV) in"),
        ("l.jsonl", "", "found an empty list"),
        ("l.jsonl", '{"path": "a"}\n{"path": ', "expected a JSON object in .*line 2"),
        ("l.jsonl", '"a.jpg"\n', "with a text 'path' in .*line 1"),
        ("l.jsonl", '{"label": "x"}\n', "with a text 'path'"),
        ("l.jsonl", '{"path": 3}\n', "with a text 'path'"),
        ("l.jsonl", '{"path": ""}\n', "expected a path"),
        ("l.jsonl", '{"path": "a\\u0000b"}\n', "expected a path"),
        ("l.jsonl", '{"path": "a", "label": 1.5}\n', "expected a text or a whole number"),
        ("l.jsonl", '{"path": "a", "label": ["x"]}\n', "expected a text or a whole number"),
        ("l.jsonl", '{"path": "a", "split": 1}\n', "expected split train, val or test, found 1"),
        ("l.jsonl", "[" * 100_000 + "\n", "expected a JSON object"),
        # It could be neither opened nor saved: the job would die after all its work.
        ("l.jsonl", '{"path": "\\ud800.jpg"}\n', "expected a path"),
        ("l.jsonl", '{"path": "a", "label": true}\n', "expected a text or a whole number"),
    ],
)
def test_a_row_that_cannot_be_meant_is_refused_with_its_place(
    write: Write, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_source(write(name, text))


def test_a_list_that_cannot_be_read_is_a_storage_error(tmp_path: Path) -> None:
    from featpipe.sources.listing import open_list

    with pytest.raises(StorageError, match="expected to read"):
        open_list(tmp_path / "gone.csv")


# Digits and canonical PNG


@given(
    st.one_of(
        arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12))),
        arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))),
    )
)
@settings(deadline=None)
def test_canonical_png_decodes_to_the_same_pixels(pixels: np.ndarray) -> None:
    with Image.open(io.BytesIO(canonical_png(pixels))) as image:
        image.load()
        assert image.format == "PNG"
        assert image.mode == ("L" if pixels.ndim == 2 else "RGB")
        assert np.array_equal(np.asarray(image), pixels)


# A stored block holds 65,535 bytes; a row here is one filter byte and its pixels.
@pytest.mark.parametrize("shape", [(1, 65534), (1, 65535), (3, 65534), (300, 200, 3)])
def test_canonical_png_of_a_large_picture_spans_blocks(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with Image.open(io.BytesIO(canonical_png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_canonical_png_is_one_spelling() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert canonical_png(pixels) == canonical_png(np.asfortranarray(pixels))
    # Image ids of digits hang on these bytes.
    assert hashlib.sha256(canonical_png(pixels)).hexdigest() == (
        "e0db6f38e7ab5f305db78ee4b16735206d5e6b833c1afc076aedec8aa12402a7"
    )


def test_digits_are_listed_and_read_without_files() -> None:
    source = open_source("sklearn:digits")
    assert (source.kind, source.root, len(source.records)) == ("digits", None, 1797)
    assert source.records[0] == Record("digits/0000.png", "0", None)
    assert {r.label for r in source.records} == set("0123456789")
    data = read(source.locate("digits/1796.png"))
    assert image_reader(source.kind, str(source.root or ""))("digits/1796.png") == data

    from sklearn.datasets import load_digits

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image)
    # 0..16 over the whole range of a byte.
    assert np.array_equal(pixels, np.rint(load_digits().images[1796] / 16 * 255))
    assert pixels.max() == 255


def test_columns_are_known_whatever_their_case(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("Path,Label,Split\na.png,cat,test\n")
    (tmp_path / "list.jsonl").write_text('{"Path": "a.png", "LABEL": "cat", "Split": "test"}\n')
    for name in ("list.csv", "list.jsonl"):
        (record,) = open_source(tmp_path / name).records
        assert (record.path, record.label, record.split) == ("a.png", "cat", "test")


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label,Label\na.png,cat,dog\n")
    with pytest.raises(DataError, match="each column once"):
        open_source(tmp_path / "list.csv")


def test_a_link_to_itself_is_one_bad_picture_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a" / "self")
    (tmp_path / "a" / "x.png").write_bytes(b"")
    assert [r.path for r in open_source(tmp_path).records] == ["a/self", "a/x.png"]


def test_pipes_are_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(StorageError, match="not a regular file"):
        open_source(tmp_path / "list.csv")
