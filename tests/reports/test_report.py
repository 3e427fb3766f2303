"""One page that needs nothing but itself, and in which nobody's text can do anything."""

from __future__ import annotations

import base64
import functools
import hashlib
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
from support.reports import HOSTILE, history, mistake, trained_head
from support.samples import jpeg_bytes, small_space

from featpipe.decoding.pixels import decode_rgb
from featpipe.reports import figures
from featpipe.reports import page as page_module
from featpipe.reports.confusion import LISTED_PAIRS, confused_pairs
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import FIRST_SHOWN, Mistake, thumbnails
from featpipe.reports.origin import origin
from featpipe.reports.page import write_report
from featpipe.reports.thresholds import threshold_counts
from featpipe.reports.thumbnails import SIDE


def predictions(k: int) -> tuple[np.ndarray, np.ndarray]:
    """True classes (4 k,) and probabilities (4 k, k) that know nothing of them."""
    return np.arange(4 * k) % k, np.random.default_rng(0).dirichlet(np.ones(k), 4 * k)


def evaluation_of(classes: list[str], **changes: Any) -> dict[str, Any]:
    y, p = predictions(len(classes))
    return {
        **score(y, p, classes),
        "dataset": "pets",
        "split": "test",
        "duplicates": [],
        "trained_on": 0,
        "notes": [],
        "predictions": "run/predictions.csv",
        "tta": None,
        **changes,
    }


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
            threshold_counts(*predictions(len(classes))),
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


OWN_TAGS = set(
    "html head meta title style body main nav section script h1 h2 h3 p a i b br span code div "
    "table thead tbody tr th td figure figcaption img button label select option input output "
    "svg g path defs use clippath rect text".split()
)


def assert_self_contained(text: str) -> None:
    """Nothing is fetched, and nothing runs but the page's own script."""
    seen = Elements(text)
    assert {tag for tag, _ in seen.found} <= OWN_TAGS
    for tag, attributes in seen.found:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "data", "action", "srcset"):
                allowed = ("data:image/png;base64,", "data:image/jpeg;base64,", "#")
                assert (value or "").startswith(allowed), (tag, value)
    for target in re.findall(r"url\((.*?)\)", text):
        assert target.startswith("#")
    assert "@import" not in text
    (policy,) = [a["content"] for tag, a in seen.found if "http-equiv" in a]
    assert policy is not None and policy.startswith("default-src 'none'; base-uri 'none'")
    scripts = re.findall(r"<script(.*?)>(.*?)</script>", text, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json"', ""]
    digest = hashlib.sha256(scripts[1][1].encode()).digest()
    assert policy.endswith(f"; script-src 'sha256-{base64.b64encode(digest).decode()}'")


def test_a_page_has_all_its_parts(page: Page) -> None:
    text = page(["cat", "dog"], mistakes=[mistake("a.jpg", jpeg_bytes(0))])
    assert_self_contained(text)
    seen = Elements(text)
    assert text.startswith("<!doctype html>")
    # Threshold, curves, calibration.
    assert seen.count("svg") == 3
    assert seen.count("img") == 1
    for heading in "Confusion,Mistakes,Classes,Threshold,Training and calibration".split(","):
        assert re.search(f"<h2[^>]*>{heading}</h2>", text)
    words = "".join(seen.text)
    for word in ("pets: linear head", "8 pictures", "tiny", "random:0", "given"):
        assert word in words
    assert small_space().id in words and "torch 9.9" in words


def test_scores_on_the_page_are_the_evaluations(page: Page) -> None:
    text = page(
        ["cat", "dog"],
        accuracy=0.9876,
        accuracy_ci95=[0.951, 0.999],
        balanced_accuracy=0.9123,
        macro_f1=0.87654,
        baseline_accuracy=0.618,
        log_loss=0.12345,
        ece=0.0567,
        roc_auc=0.9912,
    )
    expected = ["98.8%", "61.8%", "91.2%", "0.8765", "0.1235", "0.0567", "0.9912"]
    assert re.findall(r'<div class="tile"><b>(.*?)</b>', text) == expected
    assert "(95 %: 95.1% to 99.9%)" in text
    unknown = page(["cat", "dog"], roc_auc=None)
    assert "<b>–</b><span>ROC-AUC</span>" in unknown
    assert "None" not in "".join(Elements(unknown).text).partition("None: every")[0]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_anyones_text_stays_text(hostile: str, page: Page) -> None:
    text = page(
        [hostile, "b"],
        mistakes=[
            mistake(f"{hostile}.jpg", jpeg_bytes(0), truth=hostile, predicted=hostile),
            mistake(f"gone {hostile}.jpg", None, truth=hostile, predicted="b"),
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
        notes=[hostile],
    )
    assert_self_contained(text)
    # The parser gives the very text back, but for characters that cannot be seen.
    visible = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in hostile
    )
    words = Elements(text).text
    assert f"{visible}.jpg" in words and f"gone {visible}.jpg" in words
    # Title and heading, split, duplicate, note, two heads of the matrix, a pair each way, three
    # lists to choose from, class, five in the mistakes, four in the origin.
    assert "".join(words).count(visible) == 22


def test_bytes_that_are_no_text_are_shown_as_such(page: Page) -> None:
    path = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    text = page(
        ["cat", "dog"], mistakes=[mistake(path, jpeg_bytes(0))], duplicates=[path], trained_on=1
    )
    assert text.count(r"caf\udce9.jpg") == 2


def test_class_names_that_are_no_text_are_shown_as_such(page: Page) -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert r"caf\udce9" in page([name, "b"])


def picture_in(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def smooth_picture(seed: int) -> bytes:
    """300 x 200 pixels, as a JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_thumbnails_are_small_jpegs_of_the_right_pictures(page: Page) -> None:
    text = page(["cat", "dog"], mistakes=[mistake("a.jpg", smooth_picture(3))])
    (source,) = [a["src"] for tag, a in Elements(text).found if tag == "img"]
    assert source is not None
    shown = picture_in(source)
    assert shown.format == "JPEG" and max(shown.size) == SIDE

    def difference(data: bytes) -> float:
        original = Image.open(io.BytesIO(data)).convert("RGB").resize(shown.size)
        return float(np.abs(np.asarray(shown, float) - np.asarray(original, float)).mean())

    assert difference(smooth_picture(3)) < 4 < 20 < difference(smooth_picture(4))
    words = "".join(Elements(text).text)
    assert "dog 87.6%, is cat" in words and "a.jpg" in words


def test_small_pictures_are_kept_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    thumbnail = mistake("digit.png", buffer.getvalue()).thumbnail()
    assert thumbnail is not None and thumbnail.startswith("data:image/png;base64,")
    shown = np.asarray(picture_in(thumbnail).convert("L"))
    assert np.array_equal(shown, pixels)


def test_thumbnails_are_turned_as_the_camera_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = mistake("a.jpg", jpeg_bytes(0, (80, 40), exif=exif)).thumbnail()
    assert thumbnail is not None
    width, height = picture_in(thumbnail).size
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
    picture = mistake("a.jpg", jpeg_bytes(0))
    assert picture.thumbnail() is not None
    strict = functools.partial(decode_rgb, max_pixels=100)
    monkeypatch.setattr("featpipe.reports.thumbnails.decode_rgb", strict)
    assert picture.thumbnail() is None


def test_no_mistakes_are_said_to_be_none(page: Page) -> None:
    text = page(["cat", "dog"])
    assert "None: every picture was classified correctly." in text
    assert "<figure" not in text


def test_duplicates_are_warned_of(page: Page) -> None:
    assert "also trained on" not in page(["cat", "dog"])
    # Those of an own split are no duplicates: a note speaks of them.
    assert "also trained on" not in page(["cat", "dog"], trained_on=7)
    few = page(["cat", "dog"], trained_on=2, duplicates=["a.png", "b.png"])
    assert "2 of these pictures were also trained on" in few
    assert "<code>a.png</code>, <code>b.png</code></p>" in few
    many = page(["cat", "dog"], trained_on=25, duplicates=[f"{i}.png" for i in range(25)])
    assert "<code>19.png</code> and 5 more</p>" in many and "20.png" not in many


def test_every_note_is_a_warning(page: Page) -> None:
    assert 'class="warn"' not in page(["cat", "dog"])
    text = page(["cat", "dog"], notes=["few pictures", "<b>split</b>"])
    assert '<p class="warn">few pictures</p>' in text
    assert '<p class="warn">&lt;b&gt;split&lt;/b&gt;</p>' in text


@pytest.mark.parametrize("k", [2, 20, 21, 30])
def test_any_number_of_classes_is_shown(k: int, page: Page) -> None:
    classes = [f"class number {i}" for i in range(k)]
    text = page(classes)
    assert_self_contained(text)
    seen = Elements(text)
    confusion = evaluation_of(classes)["confusion"]
    # Beyond twenty classes the numbers would be too small to read.
    assert seen.count("svg") == (4 if k > 20 else 3)
    if k <= 20:
        cells = re.findall(r'data-cell="(\d+),(\d+)">(\d+)<', text)
        found = {(int(i), int(j)): int(n) for i, j, n in cells}
        assert found == {(i, j): confusion[i][j] for i in range(k) for j in range(k)}
    else:
        cells = re.findall(r'x="(\d+)" y="(\d+)" width="1".*? data-count="(\d+)"', text)
        found = {(int(i), int(j)): int(n) for j, i, n in cells}
        assert found == {
            (i, j): confusion[i][j] for i in range(k) for j in range(k) if confusion[i][j]
        }
    for name in classes:
        assert name in seen.text


def test_pairs_are_ordered_by_count_and_then_by_share(page: Page) -> None:
    pairs = confused_pairs([[5, 3, 0], [3, 1, 0], [9, 0, 90]])
    assert [(p.truth, p.predicted, p.count) for p in pairs] == [(2, 0, 9), (1, 0, 3), (0, 1, 3)]
    assert pairs[1].share == 3 / 4
    k = 40
    text = page([str(i) for i in range(k)], confusion=np.ones((k, k), int).tolist())
    table = text.split("Most confused")[1].split("</table>")[0]
    assert table.count("<tr>") == LISTED_PAIRS + 1
    assert f"The {LISTED_PAIRS} fullest of {k * (k - 1)} pairs" in table


def test_classes_are_listed_worst_first_and_those_without_a_picture_last(page: Page) -> None:
    scores = [
        {"class": name, "precision": 0.5, "recall": f1, "f1": f1, "support": support}
        for name, f1, support in [("good", 0.9, 9), ("none", 0.0, 0), ("bad", 0.1, 9)]
    ]
    confusion = [[8, 0, 1], [0, 0, 0], [7, 1, 1]]
    text = page(["good", "none", "bad"], per_class=scores, confusion=confusion)
    table = text.split('id="class-table"')[1].split("</table>")[0]
    assert re.findall(r'<td class="left">(\w+)', table) == ["bad", "good", "none"]
    # Missed and wrongly given.
    counts = re.findall(
        r"<td>(\d+)</td><td>(?:<button[^>]*>)?(\d+).*?(\d+)(?:</button>)?</td></tr>", table
    )
    assert counts == [("9", "8", "1"), ("9", "1", "7"), ("0", "0", "1")]


def test_thumbnails_keep_to_their_budget_and_the_page_says_so(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [mistake(f"{i}.jpg", jpeg_bytes(i, (90, 90))) for i in range(6)]
    sizes = [len(thumbnail) for m in made if (thumbnail := m.thumbnail())]
    some = thumbnails(made, budget=sum(sizes[:4]))
    assert sorted(some) == [0, 1, 2, 3] and all(some.values())
    monkeypatch.setattr(page_module, "thumbnails", lambda m: thumbnails(m, budget=sum(sizes[:4])))
    text = page(["cat", "dog"], mistakes=made)
    assert text.count("<img ") == 4 and text.count("<figure") == 6
    assert "2 mistakes are listed without one" in text
    assert "gone or changed" not in text


def test_a_rare_confusion_has_its_turn_for_a_thumbnail() -> None:
    picture = jpeg_bytes(0, (90, 90))
    made = [mistake(f"{i}.jpg", picture) for i in range(FIRST_SHOWN + 50)]
    made.append(mistake("rare.jpg", picture, truth="dog", predicted="cat"))
    thumbnail = made[0].thumbnail()
    assert thumbnail is not None
    some = thumbnails(made, budget=(FIRST_SHOWN + 10) * len(thumbnail))
    assert len(some) == FIRST_SHOWN + 10
    assert set(range(FIRST_SHOWN)) < set(some) and len(made) - 1 in some


def test_slow_pictures_do_not_hold_up_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featpipe.reports.mistakes.THUMBNAIL_SECONDS", -1.0)
    assert thumbnails([mistake("a.jpg", jpeg_bytes(0))]) == {}


def test_more_mistakes_than_a_page_holds_are_counted(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LISTED_MISTAKES", 3)
    text = page(["cat", "dog"], mistakes=[mistake(f"{i}.jpg", None) for i in range(5)])
    assert text.count("<figure") == 3 and "2 further mistakes are not listed here" in text
    assert "<code>run/predictions.csv</code> has every picture" in text


def test_counts_by_threshold_are_those_of_the_probabilities() -> None:
    y, p = predictions(3)
    p[0] = [0.29, 0.71, 0.0]
    first, *every = threshold_counts(y, p)
    likeliest = p.argmax(axis=1)
    for step in (0, 29, 50, 71, 100):
        sure = p.max(axis=1) >= step / 100
        assert sum(first["given"][step:]) == sure.sum()
        assert sum(first["right"][step:]) == (sure & (likeliest == y)).sum()
        for i, counts in enumerate(every):
            given = p[:, i] >= step / 100
            assert sum(counts["given"][step:]) == given.sum()
            assert sum(counts["right"][step:]) == (given & (y == i)).sum()
    assert [counts["of"] for counts in [first, *every]] == [12, 4, 4, 4]


def test_a_page_repeats_byte_for_byte(page: Page) -> None:
    made = [mistake(f"{i}.jpg", jpeg_bytes(i)) for i in range(3)]
    assert page(["cat", "dog"], mistakes=made) == page(["cat", "dog"], mistakes=made)


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


def test_figures_take_their_colours_from_the_page() -> None:
    drawn = figures.curves(history())
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn)) <= {
        "none",
        "currentColor",
        "var(--first)",
        "var(--second)",
        "var(--soft)",
    }


def test_figures_share_no_ids_and_repeat_byte_for_byte() -> None:
    drawn = figures.curves(history())
    assert drawn == figures.curves(history())
    assert drawn != figures.curves(history(5))
    assert "<g id=" not in drawn and "<metadata" not in drawn


def test_a_class_that_was_never_given_has_no_precision(page: Page) -> None:
    text = page(["cat", "dog"], confusion=[[4, 0], [4, 0]])
    table = text.split('id="class-table"')[1].split("</table>")[0]
    rows = dict(re.findall(r'<td class="left">(\w+)</td><td>(.*?)</td>', table))
    assert rows["dog"] == "–" and float(rows["cat"]) > 0


def origin_rows(text: str) -> dict[str, str]:
    table = text.split('<section id="origin">')[1]
    return dict(re.findall(r'<th scope="row">(.*?)</th>.*?<code>(.*?)</code>', table))


def test_the_page_says_in_words_how_a_head_was_trained(page: Page) -> None:
    info = {
        "seed": 3,
        "seconds": 1.5,
        "featpipe": "1",
        "torch": "9.9",
        "warnings": ["raise <b>--epochs</b>"],
        "sweep": {"trained": 12, "seed": 4, "table_sha256": "ab"},
        "n_shot": {"n": 5, "seed": 2, "table_sha256": "ab"},
        "calibration": {"temperature": 1.0, "before": {}, "after": {}},
    }
    head = trained_head(["cat", "dog"], info=info, history=history(4, "C"))
    head.head.learning_rate = None
    text = page(["cat", "dog"], trained={"info": info, "history": history(4, "C")})
    rows = origin_rows(text)
    assert "{" not in "".join(rows.values()) and "None" not in "".join(rows.values())
    expected = {
        "kept": "C 0.0001",
        "seed": "3",
        "training took": "1.5 s",
        "chosen among": "12 heads; its seed is 4",
        "pictures per class": "5, drawn with seed 2",
        "temperature": "1: calibration changed nothing",
        "made with": "featpipe 1, torch 9.9",
    }
    assert {name: rows[name] for name in expected} == expected
    note = '<p class="warn"><b>Training:</b> raise &lt;b&gt;--epochs&lt;/b&gt;</p>'
    assert note in text
    head.head.temperature_ = 1.37
    assert origin(head)["temperature"] == "1.37, by calibration on validation"
    assert "learning_rate" not in origin(head)["hyper-parameters"]
