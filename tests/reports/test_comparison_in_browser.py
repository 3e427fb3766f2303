"""The page of a comparison in Chromium: readable on a phone, and in light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.library import train_head
from support.samples import in_splits, small_space, stored_set

import featpipe

pytestmark = pytest.mark.browser

FIRST = {"light": "rgb(43, 108, 176)", "dark": "rgb(99, 179, 237)"}
"""The first colour of a page."""


@pytest.fixture
def page_of_taps(cache: Path, tmp_path: Path) -> Path:
    taps = [f"block{block}_pool" for block in range(1, 6)]
    spaces = [small_space(backbone="vgg16", tap=tap) for tap in taps]
    stored_set(cache, in_splits(train=20, val=5, test=30), spaces=spaces)
    heads = [
        train_head("set", head="logistic", C=0.1, tap=tap, cache=cache, out=tmp_path / tap).head
        for tap in taps
    ]
    return featpipe.compare(heads, cache=cache, out=tmp_path / "compared").report


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_fit_the_window_and_take_the_pages_colours(
    page_of_taps: Path, chromium: Any, width: int, scheme: Any
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    surprises: list[str] = []
    page.on("pageerror", lambda error: surprises.append(str(error)))
    page.on("console", lambda message: surprises.append(message.text))
    page.goto(page_of_taps.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [figure.bounding_box() for figure in page.locator("svg").all()]
    assert len(boxes) == 3
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    # 4.9 inches as 340 pixels: text of 10 points is 10 pixels high.
    assert all(box["width"] >= 340 for box in boxes)
    if width == 1100:
        assert boxes[1]["y"] == boxes[2]["y"], "coverage and calibration stand side by side"
    drawn = page.locator('svg path[style*="stroke: var(--first)"]').first
    assert drawn.evaluate("path => getComputedStyle(path).stroke") == FIRST[scheme]
    context.close()
    assert surprises == []
