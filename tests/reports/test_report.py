"""One page that needs nothing but itself, and in which nobody's text can do anything."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.samples import image_ids, jpeg_bytes, small_space

from featpipe.base.errors import BadImageError
from featpipe.heads import new_head
from featpipe.heads.base import History, HistoryRow
from featpipe.reports import figures
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import THUMBNAIL_PIXELS, Mistake
from featpipe.reports.page import write_report
from featpipe.runs.trained_head import TrainedHead

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=http://evil.example/x onerror=alert(1)>",
    "--><b>&amp;",
    "$\\frac{$ $$",
    "$math$",
    "line\nbreak\ttab",
    "‮right to left",
    "猫 chat",
]


def history(rows: int = 4, axis: str = "epoch") -> History:
    return History(
        axis,
        [
            HistoryRow(
                at=10.0 ** -(i + 1) if axis == "C" else i + 1,
                train_loss=1 / (i + 1),
                train_accuracy=0.5 + i / 20,
                val_loss=1.1 / (i + 1),
                val_accuracy=0.4 + i / 20,
            )
            for i in range(rows)
        ],
        rows - 1,
    )


def trained_head(classes: list[str], **changes: Any) -> TrainedHead:
    head = new_head("linear", {})
    head.classes_ = np.array(classes)
    fields: dict[str, Any] = {
        "head": head,
        "space": small_space(),
        "weights_name": "random:0",
        "dataset": {"name": "pets", "sha256": "ab" * 32, "val": "given"},
        "history": history(),
        "metrics": {},
        "info": {"seed": 0, "torch": "9.9"},
        "train_ids": image_ids(1),
    }
    return TrainedHead(**{**fields, **changes})


def evaluation_of(classes: list[str], **changes: Any) -> dict[str, Any]:
    k = len(classes)
    rng = np.random.default_rng(0)
    y = np.arange(4 * k) % k
    p = rng.dirichlet(np.ones(k), 4 * k)
    return {
        **score(y, p, classes),
        "dataset": "pets",
        "split": "test",
        "duplicates": [],
        "trained_on": 0,
        **changes,
    }


def mistake(path: str, data: bytes | None, **changes: Any) -> Mistake:
    """A mistake whose picture is ``data``; None for one that is gone."""

    def read(asked: str) -> bytes:
        assert asked == path
        if data is None:
            raise FileNotFoundError(asked)
        return data

    fields: dict[str, Any] = {
        "path": path,
        "truth": "cat",
        "predicted": "dog",
        "probability": 0.876,
        "image_id": hashlib.sha256(data or b"").digest(),
        "read": read,
    }
    return Mistake(**{**fields, **changes})


Page = Callable[..., str]


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Write a report and return its text."""

    def go(
        classes: list[str],
        *,
        mistakes: list[Mistake] | None = None,
        trained: dict[str, Any] | None = None,
        **evaluation: Any,
    ) -> str:
        path = tmp_path / "report.html"
        write_report(
            path,
            trained_head(classes, **(trained or {})),
            evaluation_of(classes, **evaluation),
            mistakes or [],
        )
        return path.read_text("utf-8")

    return go


class Elements(HTMLParser):
    """Every element and attribute of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def assert_self_contained(text: str) -> None:
    """Nothing is fetched and nothing runs."""
    seen = Elements(text)
    allowed = {*"html head meta title style body h1 h2 p div b span table tr th td code".split()}
    allowed |= {*"figure figcaption img br svg g path defs use clippath rect metadata".split()}
    allowed |= {"image", "rdf:rdf", "cc:work", "dc:type", "dc:format", "dc:creator", "cc:agent"}
    allowed |= {"dc:title"}
    assert {tag for tag, _ in seen.found} <= allowed
    for tag, attributes in seen.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                assert (value or "").startswith(("data:image/png;base64,", "#")), (tag, value)
    for target in re.findall(r"url\((.*?)\)", text):
        assert target.startswith("#")
    assert "@import" not in text
    assert "default-src 'none'" in html.unescape(text)


def test_a_page_has_all_its_parts(page: Page) -> None:
    text = page(["cat", "dog"], mistakes=[mistake("a.jpg", jpeg_bytes(0))])
    assert_self_contained(text)
    seen = Elements(text)
    assert text.startswith("<!doctype html>")
    # Curves, confusion, calibration.
    assert seen.count("svg") == 3
    assert seen.count("img") == 1
    for heading in ("Training", "Confusion and calibration", "Classes", "Worst mistakes"):
        assert f"<h2>{heading}</h2>" in text
    words = "".join(seen.text)
    for word in ("pets: linear head", "8 pictures", "tiny", "random:0", "given"):
        assert word in words
    assert small_space().id in words and "torch 9.9" in words


def test_scores_on_the_page_are_the_evaluations(page: Page) -> None:
    text = page(
        ["cat", "dog"],
        accuracy=0.9876,
        accuracy_ci95=[0.951, 0.999],
        log_loss=0.12345,
        ece=0.0567,
        roc_auc=0.9912,
    )
    for value in ("98.8%", "(95 %: 95.1% to 99.9%)", "0.1235", "0.0567", "0.9912"):
        assert value in text or value.replace("0.1235", "0.1234") in text
    assert (
        "None" not in "".join(Elements(page(["cat", "dog"], roc_auc=None)).text).split("Worst")[0]
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_anyones_text_stays_text(hostile: str, page: Page) -> None:
    text = page(
        [hostile, "b"],
        mistakes=[
            mistake(f"{hostile}.jpg", jpeg_bytes(0), truth=hostile, predicted=hostile),
            mistake(f"gone {hostile}.jpg", None, truth=hostile),
        ],
        trained={
            "weights_name": hostile,
            "dataset": {"name": hostile, "sha256": "ab" * 32, "val": hostile},
            "info": {"seed": hostile},
        },
        dataset=hostile,
        split=hostile,
        duplicates=[hostile],
        trained_on=1,
    )
    assert_self_contained(text)
    # The parser gives the very text back, but for characters that cannot be seen.
    visible = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in hostile
    )
    words = Elements(text).text
    assert f"{visible}.jpg" in words and f"gone {visible}.jpg" in words
    # Title, heading, split, duplicate, class, five in the mistakes, four in the origin.
    assert "".join(words).count(visible) == 14


def test_bytes_that_are_no_text_are_shown_as_such(page: Page) -> None:
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    text = page(
        ["a", "b"], mistakes=[mistake(path, jpeg_bytes(0))], duplicates=[path], trained_on=1
    )
    assert text.count(r"caf\udce9.jpg") == 2


def test_class_names_that_are_no_text_are_shown_as_such(page: Page) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert r"caf\udce9" in page([name, "b"])


def test_class_names_in_any_script_draw_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.confusion([[1, 0], [0, 1]], ["猫", "b"])


@pytest.mark.parametrize("name", ["$math$", "$\\frac{$", "\\$a\\$", "$$", "a$b$c", "%", "_x^y"])
def test_class_names_are_no_formulas(name: str) -> None:
    # A figure holds the text it drew as a comment; a formula would have none of its dollars.
    drawn = figures.confusion([[1, 0], [0, 1]], [name, "b"])
    assert f"<!-- {name} -->" in drawn or f"<!-- {html.escape(name)} -->" in drawn


def test_thumbnails_are_small_pngs_of_the_right_pictures(page: Page) -> None:
    data = jpeg_bytes(3, (300, 200))
    text = page(["cat", "dog"], mistakes=[mistake("a.jpg", data)])
    (source,) = [a["src"] for tag, a in Elements(text).found if tag == "img"]
    assert source is not None
    shown = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    assert shown.format == "PNG" and max(shown.size) == THUMBNAIL_PIXELS
    small = Image.open(io.BytesIO(data)).convert("RGB").resize(shown.size)
    difference = np.abs(np.asarray(shown, float) - np.asarray(small, float)).mean()
    assert difference < 12
    other = Image.open(io.BytesIO(jpeg_bytes(4, (300, 200)))).convert("RGB").resize(shown.size)
    assert np.abs(np.asarray(shown, float) - np.asarray(other, float)).mean() > 2 * difference
    words = "".join(Elements(text).text)
    assert "dog 87.6%, is cat" in words and "a.jpg" in words


def test_small_pictures_are_enlarged_in_whole_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    png = mistake("digit.png", buffer.getvalue()).thumbnail()
    assert png is not None
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    assert np.array_equal(shown, pixels.repeat(20, 0).repeat(20, 1))


def test_thumbnails_are_turned_as_the_camera_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    png = mistake("a.jpg", jpeg_bytes(0, (80, 40), exif=exif)).thumbnail()
    assert png is not None
    width, height = Image.open(io.BytesIO(png)).size
    assert height == 2 * width


@pytest.mark.parametrize(
    "broken",
    [
        mistake("gone.jpg", None),
        mistake("changed.jpg", jpeg_bytes(0), image_id=b"\0" * 32),
        mistake("no picture.jpg", b"no picture"),
        mistake("cut.jpg", jpeg_bytes(0)[:300]),
    ],
    ids=lambda broken: broken.path,
)
def test_a_picture_that_is_not_the_one_scored_is_not_shown(broken: Mistake, page: Page) -> None:
    assert broken.thumbnail() is None
    text = page(["cat", "dog"], mistakes=[broken, mistake("whole.jpg", jpeg_bytes(1))])
    seen = Elements(text)
    assert seen.count("img") == 1
    assert "gone or changed" in seen.text
    assert broken.path in seen.text and "whole.jpg" in seen.text


def test_a_picture_too_large_to_open_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featpipe.decoding.pixels._check_size", _refuse)
    assert mistake("a.jpg", jpeg_bytes(0)).thumbnail() is None


def _refuse(*_: object) -> None:
    raise BadImageError("open", "too many pixels")


def test_no_mistakes_are_said_to_be_none(page: Page) -> None:
    text = page(["cat", "dog"])
    assert "None: every picture was classified correctly." in text
    assert "<figure>" not in text


def test_duplicates_are_warned_of(page: Page) -> None:
    assert "also trained on" not in page(["cat", "dog"])
    few = page(["cat", "dog"], trained_on=2, duplicates=["a.png", "b.png"])
    assert "2 of these pictures were also trained on" in few
    assert "<code>a.png</code>, <code>b.png</code></p>" in few
    many = page(["cat", "dog"], trained_on=25, duplicates=[f"{i}.png" for i in range(25)])
    own = page(["cat", "dog"], trained_on=7)
    assert "7 of these pictures were also trained on" in own
    assert "<code>19.png</code> and 5 more</p>" in many and "20.png" not in many


@pytest.mark.parametrize("k", [2, 20, 21, 30])
def test_any_number_of_classes_is_drawn(k: int, page: Page) -> None:
    classes = [f"class number {i}" for i in range(k)]
    seen = Elements(page(classes))
    assert seen.count("svg") == 3
    for name in classes:
        assert name in seen.text
    figure = figures.confusion(np.eye(k, dtype=int).tolist(), classes)
    # Beyond twenty the names would be too small to read.
    assert ("<!-- class number 0 -->" in figure) == (k <= 20)


@pytest.mark.parametrize(
    ("axis", "rows"),
    [
        ("epoch", 1),
        ("epoch", 2),
        ("epoch", 200),
        ("C", 13),
        ("C", 1),
    ],
)
def test_curves_of_any_length_are_drawn(axis: str, rows: int) -> None:
    with warnings.catch_warnings():
        # They would land on stderr, in the middle of the command's own lines.
        warnings.simplefilter("error")
        drawn = figures.curves(history(rows, axis))
    for word in ("train", "val", "kept", "loss", "accuracy", axis):
        assert f"<!-- {word} -->" in drawn
    ET.fromstring(drawn)


def test_calibration_of_one_bin_is_drawn() -> None:
    drawn = figures.reliability([{"count": 5, "confidence": 1.0, "accuracy": 1.0}], 0.0)
    assert "expected calibration error 0.000" in drawn
    ET.fromstring(drawn)


def test_figures_repeat_byte_for_byte() -> None:
    assert figures.curves(history()) == figures.curves(history())
    matrix = [[3, 1], [0, 4]]
    assert figures.confusion(matrix, ["a", "b"]) == figures.confusion(matrix, ["a", "b"])
    assert figures.confusion(matrix, ["a", "b"]) != figures.confusion([[3, 2], [0, 4]], ["a", "b"])
