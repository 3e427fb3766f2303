"""The report in Chromium: it can be worked with, and nobody's text runs in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.backbones import preprocessing
from support.reports import HOSTILE, mistake, trained_head
from support.samples import jpeg_bytes

from featpipe.decoding.augmentation import augmentation
from featpipe.reports.contact_sheet import ContactSheet, SheetPicture, contact_sheet
from featpipe.reports.metrics import score
from featpipe.reports.mistakes import FIRST_SHOWN
from featpipe.reports.page import write_report
from featpipe.reports.thresholds import threshold_counts

pytestmark = pytest.mark.browser

Open = Callable[..., Any]


def scored(classes: list[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """True classes and probabilities; about half of the likeliest classes are right."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % len(classes)
    p = rng.dirichlet(np.full(len(classes), min(0.5, 3 / len(classes))), n)
    p[np.arange(n), y] += 0.4
    return y, p / p.sum(axis=1, keepdims=True)


@pytest.fixture
def opened(tmp_path: Path, chromium: Any) -> Iterator[Open]:
    """Write a report, open it, and see that it asks for nothing, runs nothing and has no errors."""
    contexts, surprises = [], []

    def go(
        classes: list[str],
        *,
        n: int = 0,
        pictures: int = 5,
        sheet: ContactSheet | None = None,
        **context: Any,
    ) -> Any:
        y, p = scored(classes, n or 8 * len(classes))
        predicted = p.argmax(axis=1)
        wrong = [int(i) for i in np.flatnonzero(predicted != y)]
        mistakes = [
            mistake(
                f"{i} of {classes[y[i]]}.jpg",
                jpeg_bytes(i) if k < pictures else None,
                truth=classes[y[i]],
                predicted=classes[predicted[i]],
            )
            for k, i in enumerate(wrong)
        ]
        evaluation: Any = {
            **score(y, p, classes),
            "dataset": classes[0],
            "split": "test",
            "duplicates": [],
            "tta": None,
            "trained_on": 0,
            "notes": classes[:1],
            "predictions": "predictions.csv",
        }
        path = tmp_path / "report.html"
        counts = threshold_counts(y, p)
        write_report(path, trained_head(classes), evaluation, mistakes, counts, sheet)
        contexts.append(
            chromium.new_context(**{"viewport": {"width": 1000, "height": 800}, **context})
        )
        page = contexts[-1].new_page()
        page.on("dialog", lambda dialog: surprises.append(dialog.message))
        page.on("pageerror", lambda error: surprises.append(str(error)))
        page.on("console", lambda message: surprises.append(message.text))
        page.on("request", lambda asked: surprises.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    own = (tmp_path.as_uri(), "data:image/")
    assert [surprise for surprise in surprises if not surprise.startswith(own)] == []


def column(page: Any, table: str, number: int) -> list[str]:
    return page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


def visible_figures(page: Any) -> list[tuple[str, str]]:
    """Class indices (truth, predicted) of the mistakes that are shown."""
    return page.eval_on_selector_all(
        "figure",
        "all => all.filter(f => !f.hidden).map(f => [f.dataset.truth, f.dataset.predicted])",
    )


@pytest.mark.parametrize("k", [2, 10, 101])
def test_the_classes_are_sorted_by_any_column(k: int, opened: Open) -> None:
    page = opened([f"class {i}" for i in range(k)])
    f1 = [float(value) for value in column(page, "#class-table", 4)]
    assert f1 == sorted(f1)
    header = page.locator("#class-table th", has_text="class").first
    header.get_by_role("button").click()
    assert column(page, "#class-table", 1) == [f"class {i}" for i in range(k)]
    assert header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").press("Enter")
    assert column(page, "#class-table", 1) == [f"class {i}" for i in reversed(range(k))]
    page.locator("#class-table th", has_text="missed").get_by_role("button").click()
    missed = [int(value) for value in column(page, "#class-table", 6)]
    assert missed == sorted(missed)


def test_a_click_on_a_cell_shows_its_pictures(opened: Open) -> None:
    page = opened(["cat", "dog", "emu"], n=120)
    everything = len(visible_figures(page))
    cell = page.locator('[data-cell="0,2"]')
    cell.hover()
    count = int(cell.inner_text())
    assert page.inner_text(".caption").startswith(f"cat, taken for emu: {count} of 40 (")
    cell.click()
    assert visible_figures(page) == [["0", "2"]] * count and 0 < count < FIRST_SHOWN
    assert page.inner_text(".status") == f"{count} of {count} shown, truth cat, taken for emu"
    assert page.evaluate("document.activeElement.textContent") == "Mistakes"
    page.get_by_role("button", name="Show all").click()
    assert len(visible_figures(page)) == everything == FIRST_SHOWN


def test_a_click_on_a_pair_or_a_count_shows_its_pictures(opened: Open) -> None:
    page = opened(["cat", "dog", "emu"], n=120)
    truth, predicted, count = (column(page, ".pairs table", i)[0] for i in (1, 2, 3))
    names = ["cat", "dog", "emu"]
    page.locator(".pairs button.pick").first.click()
    pair = [str(names.index(truth)), str(names.index(predicted))]
    assert visible_figures(page) == [pair] * int(count)
    row = page.locator("#class-table tr", has_text="dog")
    row.locator("button.pick").first.click()
    assert {truth for truth, _ in visible_figures(page)} == {"1"}
    row.locator("button.pick").last.click()
    assert {predicted for _, predicted in visible_figures(page)} == {"1"}


def test_more_mistakes_are_shown_when_asked_for(opened: Open) -> None:
    page = opened(["cat", "dog", "emu"], n=150)
    total = page.locator("figure").count()
    assert len(visible_figures(page)) == FIRST_SHOWN < total < 5 * FIRST_SHOWN
    more = page.get_by_role("button", name="Show more")
    more.click()
    assert len(visible_figures(page)) == total and not more.is_visible()
    page.select_option('[data-field="predicted"]', label="emu")
    assert {predicted for _, predicted in visible_figures(page)} == {"2"}


def test_a_small_matrix_is_walked_with_the_arrow_keys(opened: Open) -> None:
    page = opened(["cat", "dog", "emu"], n=120)
    assert page.locator('.matrix [tabindex="0"]').count() == 1
    page.locator('[data-cell="0,0"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    assert page.inner_text(".caption").startswith("emu, taken for dog: ")
    assert page.locator('.matrix [tabindex="0"]').get_attribute("data-cell") == "2,1"
    page.keyboard.press("Enter")
    assert set(map(tuple, visible_figures(page))) == {("2", "1")}


def test_a_large_matrix_is_read_by_pointer_and_by_keys(opened: Open) -> None:
    k = 101
    page = opened([f"class {i}" for i in range(k)], n=6 * k)
    box = page.locator("svg.map").bounding_box()
    rect = page.locator("svg.map rect.wrong").first
    i, j, count = (int(rect.get_attribute(name)) for name in ("y", "x", "data-count"))
    page.mouse.move(
        box["x"] + box["width"] * (j + 0.5) / k, box["y"] + box["height"] * (i + 0.5) / k
    )
    assert page.inner_text(".caption").startswith(f"class {i}, taken for class {j}: {count} of 6 (")
    page.mouse.down()
    page.mouse.up()
    assert visible_figures(page) == [[str(i), str(j)]] * count
    page.locator("svg.map").focus()
    page.keyboard.press("ArrowLeft" if j else "ArrowRight")
    assert f"class {j - 1 if j else 1}" in page.inner_text(".caption")
    assert not page.locator("text.truth").first.is_visible()
    page.get_by_label("names of rows and columns").check()
    assert page.locator("text.truth").first.is_visible()
    page.get_by_label("find a class").fill("class 10")
    assert page.locator("#class-table tbody tr:visible").count() == 2


def test_the_threshold_says_what_it_costs(opened: Open) -> None:
    classes = ["cat", "dog", "emu"]
    page = opened(classes, n=90)
    y, p = scored(classes, 90)
    likeliest, sure = p.argmax(axis=1), p.max(axis=1) >= 0.62

    def shown() -> list[str]:
        return [
            page.inner_text(f"b[data-is={name}]") for name in ("precision", "recall", "coverage")
        ]

    def percent(*shares: float) -> list[str]:
        return [f"{100 * share:.1f}%" for share in shares]

    page.locator("input[type=range]").fill("62")
    right = (sure & (likeliest == y)).sum()
    assert shown() == percent(right / sure.sum(), right / 90, sure.mean())
    page.select_option("[data-answer]", label="dog")
    given = p[:, 1] >= 0.62
    right = (given & (y == 1)).sum()
    assert shown() == percent(right / given.sum(), right / 30, given.mean())
    page.locator("input[type=range]").press("ArrowRight")
    assert page.inner_text("output") == "0.63"
    page.locator("input[type=range]").fill("100")
    assert shown() == ["–", "0.0%", "0.0%"]


@pytest.mark.parametrize("k", [2, 10, 101])
@pytest.mark.parametrize("width", [390, 1000])
def test_the_page_is_as_wide_as_the_window(k: int, width: int, opened: Open) -> None:
    page = opened(
        ["x" * 60, *(f"class {i}" for i in range(1, k))], viewport={"width": width, "height": 800}
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(scheme: str, opened: Open) -> None:
    page = opened(["cat", "dog"], color_scheme=scheme)
    contrasts = page.evaluate(_CONTRASTS)
    assert len(contrasts) > 20 and min(contrasts.values()) >= 4.5, contrasts


_CONTRASTS = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const [r, g, b, alpha = 1] = numbers(getComputedStyle(element).backgroundColor);
    if (alpha === 0) return behind(element.parentElement);
    const below = alpha < 1 ? behind(element.parentElement) : [0, 0, 0];
    return [r, g, b].map((v, i) => v * alpha + below[i] * (1 - alpha));
  };
  const found = {};
  for (const e of document.querySelectorAll("main :is(p,a,b,span,th,td,button,code,.gone)")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const [x, y] = [light(numbers(getComputedStyle(e).color)), light(behind(e))];
    found[e.tagName + "." + e.className + ": " + e.textContent.trim().slice(0, 20)] =
      (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  }
  return found;
}"""


@pytest.mark.parametrize("k", [len(HOSTILE) + 2, 25])
def test_hostile_names_are_text_and_nothing_else(k: int, opened: Open) -> None:
    surrogate = b"caf\xe9".decode("utf-8", "surrogateescape")
    quotes = "' onclick=alert(1) \" autofocus onfocus=alert(1) </title></style></script>"
    classes = [*HOSTILE, surrogate, quotes, *(f"class {i}" for i in range(k))][:k]
    page = opened(classes, n=6 * k, pictures=0)
    names = [
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
        for name in classes
    ]
    listed = page.eval_on_selector_all(
        "#class-table tbody td:first-child", "all => all.map(e => e.textContent)"
    )
    assert sorted(listed) == sorted(names)
    options = page.eval_on_selector_all(
        "[data-answer] option", "all => all.map(e => e.textContent)"
    )
    assert options[1:] == names
    assert page.title().startswith(names[0])
    assert page.locator("main script").count() == 1
    assert page.locator("img:not([class])").count() == 0
    for button in page.locator(".pairs button.pick").all():
        button.click()
        assert page.locator("figure:visible").count() >= 1
    page.locator(".matrix [tabindex='0']").focus()
    for _ in range(len(names)):
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        page.locator(".matrix [tabindex='0']").focus()
    assert names[-1] in page.inner_text(".caption")
    assert page.locator("figure code").first.text_content().startswith(tuple("0123456789"))


@pytest.mark.parametrize("width", [390, 1000])
def test_the_sheet_of_views_is_all_there_and_fits(width: int, opened: Open) -> None:
    data = [jpeg_bytes(i, (90, 70)) for i in range(len(HOSTILE))]
    pictures = [
        SheetPicture(path, hashlib.sha256(one).digest(), lambda _, one=one: one)  # type: ignore[misc]
        for path, one in zip(HOSTILE, data, strict=True)
    ]
    gone = SheetPicture("<b>gone</b>", b"", lambda _: b"")
    light = augmentation("light", 3)
    prep = preprocessing(size=48)
    sheet = contact_sheet([*pictures, gone], prep, light, 9, split="train")
    page = opened(["cat", "dog"], sheet=sheet, viewport={"width": width, "height": 800})
    images = page.locator("#views img")
    assert images.count() == len(HOSTILE) * 9
    assert page.evaluate("[...document.querySelectorAll('#views img')].every(i => i.naturalWidth)")
    titles = [f"{HOSTILE[0]}", f"view 1 of {HOSTILE[0]}"]
    assert [images.nth(i).get_attribute("alt") for i in (0, 1)] == titles
    text = page.inner_text("#views")
    assert "the first 8 of its 9 views (light, seed 3)" in text
    assert "<b>gone</b>: gone or changed" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= width
