"""Idx files: what they hold comes out, or one clear error; never a label beside another picture."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.idx import digit_like, idx_bytes, write_idx

from featpipe.base.errors import DataError, StorageError, UsageError
from featpipe.base.locations import Encoded, read
from featpipe.sources import Source, image_reader, open_source
from featpipe.sources import idx_file as idx_file_module
from featpipe.sources.canonical_png import canonical_png

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def pixels_of(source: Source, path: str) -> np.ndarray:
    with Image.open(io.BytesIO(read(source.locate(path)))) as image:
        return np.asarray(image)


def content(source: Source) -> list[tuple[str, str | None, str | None, bytes]]:
    return [(r.path, r.label, r.split, read(source.locate(r.path))) for r in source.records]


def expected_content(arrays: dict[str, Any]) -> list[tuple[str, str, str, bytes]]:
    return [
        (f"{split}/{i:05d}.png", str(label), split, canonical_png(image))
        for split, stem in (("train", "train"), ("test", "t10k"))
        if f"{stem}-images-idx3-ubyte" in arrays
        for i, (image, label) in enumerate(
            zip(
                arrays[f"{stem}-images-idx3-ubyte"],
                arrays[f"{stem}-labels-idx1-ubyte"],
                strict=True,
            )
        )
    ]


def refused(folder: Path) -> str:
    """The one line that says why a folder is refused."""
    with pytest.raises(DataError) as caught:
        open_source(folder)
    (line,) = str(caught.value).splitlines()
    return line.replace(f"{folder}", "FOLDER")


def packed_bytes(data: bytes) -> bytes:
    """The same bytes each time: names of tests hold them, and every process must find the same."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize("packed", [True, False])
def test_pictures_labels_and_splits_are_those_of_the_files(packed: bool, tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, packed=packed, train=7, t10k=4)
    source = open_source(tmp_path)
    assert (source.kind, source.root, source.ignored) == ("idx", tmp_path.resolve(), 0)
    assert content(source) == expected_content(arrays)
    assert np.array_equal(pixels_of(source, "test/00003.png"), arrays[TEST_IMAGES][3])


def test_the_sample_has_its_known_pictures(shared: Path) -> None:
    source = open_source(shared / "data" / "mnist")
    splits = [record.split for record in source.records]
    assert (splits.count("train"), splits.count("test")) == (60000, 10000)
    assert {record.label for record in source.records} == set("0123456789")
    assert [source.records[i].label for i in (0, 59999, 60000, 69999)] == ["5", "8", "7", "6"]
    # Ids are for ever.
    (first,) = {hashlib.sha256(read(source.locate("train/00000.png"))).hexdigest()}
    assert first == "5c933892bb6a9ac38f55bb12b6e8de4e25a453a2f5a68458cef57fc74120315e"


def test_a_picture_is_read_again_without_its_source(tmp_path: Path) -> None:
    write_idx(tmp_path, train=5, t10k=2)
    source = open_source(tmp_path)
    again = image_reader("idx", str(tmp_path))
    for record in source.records:
        location = source.locate(record.path)
        assert isinstance(location, Encoded) and location.data == again(record.path)


@pytest.mark.parametrize(
    "path",
    ["train/00005.png", "train/5.png", "val/00000.png", "00000.png", "train/-0001.png", "",
     "test/00000.png", "train/99999999999999999999.png", "../train/00000.png", "train/٠٠٠٠٠.png"],
)  # fmt: skip
def test_a_path_of_no_picture_is_an_error(path: str, tmp_path: Path) -> None:
    write_idx(tmp_path, train=5)
    for find in (open_source(tmp_path).locate, image_reader("idx", str(tmp_path))):
        with pytest.raises(DataError, match="expected a picture of the idx files"):
            find(path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("train-images-idx3-ubyte", "train-labels.idx1-ubyte.gz"),
        ("TRAIN-IMAGES-IDX3-UBYTE.GZ", "train_labels_idx1_ubyte"),
    ],
)
def test_other_spellings_are_read(images: str, labels: str, tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, packed=False, train=3)
    for old, new in ((TRAIN_IMAGES, images), (TRAIN_LABELS, labels)):
        data = (tmp_path / old).read_bytes()
        (tmp_path / old).unlink()
        (tmp_path / new).write_bytes(packed_bytes(data) if new.endswith(".gz") else data)
    assert content(open_source(tmp_path)) == expected_content(arrays)


def test_test_is_another_word_for_t10k(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, t10k=3)
    for name in (TEST_IMAGES, TEST_LABELS):
        (tmp_path / f"{name}.gz").rename(tmp_path / f"{name.replace('t10k', 'test')}.gz")
    assert content(open_source(tmp_path)) == expected_content(arrays)


def test_content_says_whether_a_file_is_packed(tmp_path: Path) -> None:
    # Some browsers unpack what they download and keep its name.
    arrays = write_idx(tmp_path, packed=False, train=3)
    (tmp_path / TRAIN_IMAGES).rename(tmp_path / f"{TRAIN_IMAGES}.gz")
    packed = packed_bytes((tmp_path / TRAIN_LABELS).read_bytes())
    (tmp_path / TRAIN_LABELS).write_bytes(packed)
    assert content(open_source(tmp_path)) == expected_content(arrays)


def test_a_packed_file_may_lie_beside_the_unpacked_one_of_equal_content(tmp_path: Path) -> None:
    arrays = write_idx(tmp_path, train=3)
    write_idx(tmp_path, packed=False, train=3)
    assert content(open_source(tmp_path)) == expected_content(arrays)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.array([0, 2, 1])))
    assert refused(tmp_path) == (
        f"expected one content in '{TRAIN_LABELS}', '{TRAIN_LABELS}.gz' of FOLDER, found several; "
        "remove all but the right one"
    )


def test_more_than_a_hundred_thousand_pictures_keep_their_order(tmp_path: Path) -> None:
    images = np.zeros((100_001, 1, 1), np.uint8)
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(images))
    paths = [record.path for record in open_source(tmp_path).records]
    assert paths[0] == "train/000000.png" and paths == sorted(set(paths))


def test_one_split_alone_keeps_its_name(tmp_path: Path) -> None:
    for split, name in (("train", "train"), ("t10k", "test")):
        write_idx(tmp_path / split, **{split: 3})
        assert {r.split for r in open_source(tmp_path / split).records} == {name}


def test_pictures_without_any_labels_are_unlabelled(tmp_path: Path) -> None:
    write_idx(tmp_path, train=3, t10k=2)
    for path in tmp_path.glob("*labels*"):
        path.unlink()
    records = open_source(tmp_path).records
    assert [(r.label, r.split) for r in records] == [(None, "train")] * 3 + [(None, "test")] * 2


def test_labels_may_be_any_byte(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False, train=3)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(np.array([255, 0, 10])))
    assert [record.label for record in open_source(tmp_path).records] == ["255", "0", "10"]


def test_other_files_are_passed_over_and_counted(tmp_path: Path) -> None:
    write_idx(tmp_path, train=3)
    for name in ("README", "notes.txt", "LICENSE"):
        (tmp_path / name).write_text("text")
    (tmp_path / ".hidden.png").write_text("hidden")
    # As one archive of MNIST unpacks: a folder called like the file, with the file in it.
    copy = tmp_path / TRAIN_IMAGES
    copy.mkdir()
    (copy / TRAIN_IMAGES).write_bytes(b"")
    source = open_source(tmp_path)
    assert (len(source.records), source.ignored) == (3, 4)


@pytest.mark.parametrize("name", ["a.png", "cats/1.jpg", "cats/without_suffix"])
def test_pictures_beside_idx_files_are_refused(name: str, tmp_path: Path) -> None:
    write_idx(tmp_path, train=3)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"picture")
    assert refused(tmp_path) == (
        f"expected either idx files or pictures in FOLDER, found both ('{TRAIN_IMAGES}.gz' and "
        f"'{name}'); move one of them into a folder of its own"
    )


@pytest.mark.parametrize(
    "name", ["emnist-letters-train-images-idx3-ubyte.gz", "train-labels-idx2-int", "x.idx3-float"]
)
def test_foreign_idx_files_are_refused_not_passed_over(name: str, tmp_path: Path) -> None:
    for others in ({}, {"train": 3}):
        write_idx(tmp_path, **others)
        (tmp_path / name).write_bytes(b"")
        assert refused(tmp_path) == (
            "expected idx files called train-images-idx3-ubyte, train-labels-idx1-ubyte, "
            "t10k-images-idx3-ubyte or t10k-labels-idx1-ubyte (or .gz) in FOLDER, found "
            f"'{name}'; rename it, or move it away"
        )


def test_pictures_whose_names_resemble_idx_files_are_pictures(tmp_path: Path) -> None:
    for name in ("photo_idx1_interior.jpg", "train-images-idx3-ubyte.png", "idx3.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    assert (open_source(tmp_path).kind, len(open_source(tmp_path).records)) == ("folder", 3)


def test_one_idx_file_as_data_names_its_folder(tmp_path: Path) -> None:
    write_idx(tmp_path, train=3)
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path / f"{TRAIN_IMAGES}.gz")
    assert str(caught.value) == (
        f"expected the folder of the idx files, found one of them, {tmp_path}/{TRAIN_IMAGES}.gz; "
        f"give {tmp_path}"
    )
    with pytest.raises(UsageError, match="expected --root only with a list"):
        open_source(tmp_path, root=tmp_path)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (
            TRAIN_IMAGES,
            f"expected train-images-idx3-ubyte (or .gz) beside '{TRAIN_LABELS}.gz' in FOLDER, "
            "found none; add it, or move the labels away",
        ),
        (
            TEST_LABELS,
            f"expected t10k-labels-idx1-ubyte (or .gz) beside '{TEST_IMAGES}.gz' in FOLDER, as "
            "there are labels of 'train', found none; add it, or move the pictures away",
        ),
    ],
)
def test_a_missing_companion_is_named(gone: str, message: str, tmp_path: Path) -> None:
    write_idx(tmp_path, train=3, t10k=2)
    (tmp_path / f"{gone}.gz").unlink()
    assert refused(tmp_path) == message


IMAGES, LABELS = digit_like(4)
PIXELS = IMAGES.size
FILE = f"FOLDER/{TRAIN_IMAGES}"
AGAIN = "it is cut short or damaged: download or copy it again"
SAID = f"expected {PIXELS} bytes (4 x 7 x 6) after the header of {FILE}, found"
NONE = f"expected an idx file in {FILE}, found none: it begins with"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx_bytes(IMAGES)[:-1], f"{SAID} {PIXELS - 1}; {AGAIN}"),
        (packed_bytes(idx_bytes(IMAGES)[:-1]), f"{SAID} {PIXELS - 1}; {AGAIN}"),
        (
            idx_bytes(IMAGES) + b"\0",
            f"{SAID} more; it is damaged: download or copy it again",
        ),
        (
            packed_bytes(idx_bytes(IMAGES)) + b"\0\0more",
            f"expected whole gzip data in {FILE}, found damage (Not a gzipped file "
            "(b'mo')); download or copy it again",
        ),
        (
            packed_bytes(idx_bytes(IMAGES))[:-9],
            f"expected whole gzip data in {FILE}, found damage (Compressed file "
            "ended before the end-of-stream marker was reached); download or copy it again",
        ),
        (
            # Its pixels are all there, but not their checksum.
            packed_bytes(idx_bytes(IMAGES))[:-8],
            f"expected whole gzip data in {FILE}, found damage (Compressed file "
            "ended before the end-of-stream marker was reached); download or copy it again",
        ),
        (b"", f"{NONE} nothing and not with 00 00 08 03; download or copy it again"),
        (
            b"<html>Not found</html>",
            f"{NONE} 3c 68 74 6d and not with 00 00 08 03; download or copy it again",
        ),
        (
            idx_bytes(IMAGES)[:15],
            f"expected the sizes of 3 dimensions in {FILE}, found its end; download "
            "or copy it again",
        ),
        (
            idx_bytes(IMAGES, kind=0x0D),
            f"expected unsigned bytes in {FILE}, found 32-bit floats; only bytes are "
            "pixels and labels",
        ),
        (
            idx_bytes(LABELS),
            f"expected pictures (number, height, width) in {FILE}, found an array of "
            "1 dimensions; a file of labels begins like that",
        ),
        (
            idx_bytes(np.zeros((4, 7, 6, 3))),
            f"expected pictures (number, height, width) in {FILE}, found an array of "
            "4 dimensions; colours are not read from idx files: save the pictures as PNG",
        ),
        (
            idx_bytes(np.zeros((4, 0, 6))),
            f"expected pictures with pixels in {FILE}, found 0 x 6; download or copy "
            "it again",
        ),
        (
            idx_bytes(IMAGES[:3]),
            "expected as many labels as pictures of 'train' in FOLDER, found 4 labels and 3 "
            "pictures; download both files again",
        ),
        (
            # More than a file of that size can hold, whatever it is packed with.
            packed_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 9) + bytes(9)),
            f"expected {(2**32 - 1) ** 2 * 9} bytes (4294967295 x 4294967295 x 9) after the header "
            f"of {FILE}, found a file too small to hold them; {AGAIN}",
        ),
    ],
)  # fmt: skip
def test_a_file_of_images_that_is_wrong_is_one_clear_error(
    data: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / TRAIN_IMAGES).write_bytes(data)
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(LABELS))
    assert refused(tmp_path) == message


def test_images_as_labels_are_one_clear_error(tmp_path: Path) -> None:
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        (tmp_path / name).write_bytes(idx_bytes(IMAGES))
    assert refused(tmp_path) == (
        f"expected labels (number) in FOLDER/{TRAIN_LABELS}, found an array of 3 dimensions; "
        "a file of pictures begins like that"
    )


def test_no_pictures_at_all_are_an_error(tmp_path: Path) -> None:
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(np.zeros((0, 7, 6))))
    assert refused(tmp_path) == "expected pictures in the idx files of FOLDER, found none in them"


def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Consistent in itself: 8 MiB of zeros in 8 KiB. Half of the free memory is less.
    zeros = np.zeros((1, 2**12, 2**11), np.uint8)
    (tmp_path / TRAIN_IMAGES).write_bytes(packed_bytes(idx_bytes(zeros)))
    monkeypatch.setattr(idx_file_module, "free_memory", lambda: 2**23)
    assert refused(tmp_path) == (
        f"expected {FILE} to fit into 0.0 GiB, half of the free memory, found 0.0 "
        "GiB in it; free some, or save its pictures as files"
    )


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / TRAIN_IMAGES).symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="No such file or directory"):
        open_source(tmp_path)


def original(packed: bool) -> tuple[bytes, bytes]:
    pack = packed_bytes if packed else bytes
    return pack(idx_bytes(IMAGES)), pack(idx_bytes(LABELS))


@settings(max_examples=150, deadline=None)
@given(
    packed=st.booleans(),
    which=st.integers(0, 1),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.integers(1, 255),
    how=st.sampled_from(["cut", "longer", "header", "flip"]),
)
def test_damage_gives_an_error_or_exactly_what_was_there(
    packed: bool, which: int, place: float, byte: int, how: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    files = list(original(packed))
    data = bytearray(files[which])
    if how == "cut":
        del data[int(place * len(data)) :]
    elif how == "longer":
        data += bytes([byte]) * (1 + int(place * 40))
    else:
        # Anywhere, where a checksum guards all; else in the header: any other byte is a pixel.
        header = 16 if which == 0 else 8
        i = int(place * (len(data) if packed and how == "flip" else header))
        data[i] ^= byte
    files[which] = bytes(data)
    folder = tmp_path_factory.mktemp("idx")
    for name, content_ in zip((TRAIN_IMAGES, TRAIN_LABELS), files, strict=True):
        (folder / name).write_bytes(content_)
    try:
        found = content(open_source(folder))
    except DataError:
        return
    assert found == expected_content({TRAIN_IMAGES: IMAGES, TRAIN_LABELS: LABELS})
