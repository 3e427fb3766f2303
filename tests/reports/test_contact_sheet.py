"""The contact sheet of views: made anew from the files of the very pictures."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.backbones import preprocessing
from support.library import evaluate, extract, train_head
from support.reports import HOSTILE
from support.runs import rewrite
from support.samples import jpeg_bytes
from support.views import LIGHT, stored_views

from featpipe.base.space import Augmentation
from featpipe.datasets.files import load_dataset
from featpipe.decoding.augmentation import augmentation
from featpipe.decoding.pixels import load_pixels
from featpipe.decoding.views import load_views
from featpipe.reports.contact_sheet import (
    PICTURES,
    SHOWN_VIEWS,
    SheetPicture,
    contact_sheet,
)

PREP = preprocessing(size=48)


def picture(data: bytes | None, path: str = "a.jpg") -> SheetPicture:
    def read(asked: str) -> bytes:
        if data is None:
            raise FileNotFoundError(asked)
        return data

    return SheetPicture(path, hashlib.sha256(data or b"").digest(), read)


def pixels_of(uri: str) -> np.ndarray:
    kind, _, text = uri.partition(";base64,")
    assert kind == "data:image/png", "a picture this small is shown pixel by pixel"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_views_are_those_that_extraction_makes() -> None:
    data = jpeg_bytes(1, (90, 70))
    one = picture(data)
    sheet = contact_sheet([one], PREP, LIGHT, 3, split="train")
    (row,) = sheet.rows
    assert (row.path, len(row.images), sheet.shown, sheet.hidden) == ("a.jpg", 4, 3, 0)
    assert np.array_equal(pixels_of(row.images[0]), load_pixels(data, PREP))
    views = load_views(data, PREP, LIGHT, [1, 2, 3], one.image_id)
    for uri, expected in zip(row.images[1:], views, strict=True):
        assert np.array_equal(pixels_of(uri), expected)


def test_no_more_views_than_one_row_holds() -> None:
    sheet = contact_sheet([picture(jpeg_bytes(1))], PREP, LIGHT, 2**40, split="train")
    assert len(sheet.rows[0].images) == 1 + SHOWN_VIEWS
    assert (sheet.shown, sheet.hidden) == (SHOWN_VIEWS, 2**40 - SHOWN_VIEWS)


@pytest.mark.parametrize("data", [None, b"no picture", jpeg_bytes(2)[:-200]])
def test_pictures_that_cannot_be_read_have_no_images(data: bytes | None) -> None:
    sheet = contact_sheet([picture(data), picture(jpeg_bytes(1))], PREP, LIGHT, 2, split="train")
    assert [len(row.images) for row in sheet.rows] == [0, 3]


def test_a_picture_that_has_changed_has_no_images() -> None:
    changed = SheetPicture("a.jpg", picture(jpeg_bytes(1)).image_id, lambda _: jpeg_bytes(2))
    assert contact_sheet([changed], PREP, LIGHT, 2, split="train").rows[0].images == []


@pytest.mark.parametrize(
    "changes", [{"version": 99}, {"policy": "cubist"}, {"policy": "caf\u00e9"}]
)
def test_views_of_another_version_are_not_made_up(changes: dict[str, Any]) -> None:
    other = Augmentation(**{"policy": "light", "version": LIGHT.version, **changes})
    sheet = contact_sheet([picture(jpeg_bytes(1))], PREP, other, 2, split="train")
    assert not sheet.is_known and sheet.rows == []


@pytest.fixture
def head(photo_folder: Path, cache: Path, tiny: dict[str, Any], tmp_path: Path) -> Path:
    """A head of pretended light views of real pictures."""
    extract(photo_folder, name="set", split="0.7,0.15,0.15", cache=cache, **tiny)
    stored_views(cache, load_dataset(cache, "set"), range(1, 11))
    out = tmp_path / "run"
    return train_head("set", cache=cache, out=out, params={"epochs": 2}, device="cpu").head


def section(page: str) -> str:
    assert '<a href="#views">Views</a>' in page
    return page.split('<section id="views">')[1].split("</section>")[0]


def test_the_report_shows_training_pictures_of_all_classes(
    head: Path, cache: Path, photo_folder: Path
) -> None:
    text = section(evaluate(head, cache=cache).report.read_text())
    assert text.count("<img") == PICTURES * (1 + SHOWN_VIEWS)
    assert "split “train”" in text and "the first 8 of its 10 views (light)" in text
    assert text.count('<img alt="red/') == text.count('<img alt="blue/') == PICTURES // 2
    assert 'alt="view 1 of red/' in text
    dataset = load_dataset(cache, "set")
    for path in [dataset.paths[i] for i in dataset.in_split("train")]:
        (photo_folder / path).unlink()
    gone = section(evaluate(head, cache=cache).report.read_text())
    assert gone.count(": gone or changed") == PICTURES and "<img" not in gone


def test_a_head_without_views_has_no_sheet_unless_views_are_averaged(
    head: Path, cache: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"cache": cache, "no_views": True, "device": "cpu"}
    plain = train_head("set", out=tmp_path / "plain", params={"epochs": 2}, **options).head
    assert 'id="views"' not in evaluate(plain, cache=cache).report.read_text()
    standard = augmentation("standard", 5)
    dataset = load_dataset(cache, "set")
    stored_views(cache, dataset, (1, 2), of=["test"], drawn=standard)
    text = section(evaluate(plain, cache=cache, tta=True).report.read_text())
    assert "split “test”" in text and "each beside its 2 views (standard, seed 5)." in text
    assert text.count("<img") == 3 * PICTURES


def test_what_a_head_notes_stays_text(head: Path, cache: Path) -> None:
    for policy in HOSTILE[:1]:
        views = {"policy": policy, "version": 1, "seed": 0, "number": 2}
        rewrite(head, lambda document, views=views: document["info"].update(views=views))  # type: ignore[misc]
        text = section(evaluate(head, cache=cache).report.read_text())
        assert "They cannot be shown" in text and "<img" not in text and "<script" not in text
