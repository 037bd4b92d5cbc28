"""Pictures on the page at `/` in a real browser: chosen or dropped, and what adapters found drawn over them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.unit.http_server import serving
from tests.unit.test_serving_detection import NAMES, PICTURES, world
from tests.unit.test_serving_page import choose, chrome, tab

__all__ = ["chrome", "tab", "world"]  # fixtures
SURE = 0.2
MOST = 40  # of the scores that the page lists


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    with serving(world) as address:
        yield address


def answers(address: str, name: str, count: int) -> list[Any]:
    inputs = [base64.b64encode(picture).decode() for picture in PICTURES[:count]]
    body = {"model": name, "inputs": inputs, "parameters": {"threshold": SURE}}
    return list(httpx.post(f"{address}/v1/predict", json=body, timeout=None).json()["predictions"])


def put(tab: Any, count: int) -> None:
    files = [{"name": f"{at}.png", "mimeType": "image/png", "buffer": PICTURES[at]} for at in range(count)]
    tab.get_by_label("Pictures").set_input_files(files)


def drawn(article: Any) -> list[tuple[str, dict[str, float]]]:
    """Labels and boxes, as they are drawn."""
    found = article.locator("svg").evaluate(
        """svg => [...svg.querySelectorAll('rect')].map((rect, at) => [
            svg.querySelectorAll('text')[at].textContent.replace(/ [0-9.]+$/, ''),
            ...['x', 'y', 'width', 'height'].map(name => Number(rect.getAttribute(name)))])"""
    )
    return [(label, {"xmin": x, "ymin": y, "xmax": x + wide, "ymax": y + high}) for label, x, y, wide, high in found]


def test_boxes_of_several_pictures_and_adapters_are_drawn(address: str, tab: Any) -> None:
    from playwright.sync_api import expect

    expected = {name: answers(address, name, 2) for name in NAMES}
    assert all(expected["one"])
    tab.goto(address)
    choose(tab, "one")
    expect(tab.locator("#card")).to_contain_text("object-detection")
    expect(tab.locator("#inputs")).to_be_hidden()
    tab.get_by_role("button", name="Predict").click()
    expect(tab.get_by_role("alert")).to_contain_text("at least one picture")
    put(tab, 2)
    expect(tab.locator("#shots img")).to_have_count(2)
    tab.get_by_label("Least score").fill(str(SURE))
    tab.get_by_role("button", name="Predict").click()
    expect(tab.locator("#by")).to_have_text("one@1")
    articles = tab.locator("article")
    expect(articles).to_have_count(2)
    for at, wanted in enumerate(expected["one"]):
        article = articles.nth(at)
        expect(article.locator("rect")).to_have_count(len(wanted))
        assert drawn(article) == [(item["label"], item["box"]) for item in wanted]
        width, height = Image.open(io.BytesIO(PICTURES[at])).size
        expect(article.locator("svg")).to_have_attribute("viewBox", f"0 0 {width} {height}")
        table = article.get_by_role("table", name=f"Scores of {at}.png")
        expect(table.get_by_role("rowheader")).to_have_text([item["label"] for item in wanted][:MOST])
    tab.get_by_text("Ask other adapters the same").click()
    tab.get_by_label("two", exact=True).check()
    tab.get_by_role("button", name="Predict").click()
    expect(tab.locator("#by")).to_have_text("one@1, two@1")
    both = [expected[name][0] for name in NAMES]
    expect(articles.first.locator("rect")).to_have_count(sum(map(len, both)))
    # two adapters are asked for another pass, in which boxes of all but equal scores may change places
    assert sorted(map(str, drawn(articles.first))) == sorted(
        str((item["label"], item["box"])) for found in both for item in found
    )
    expect(articles.first.get_by_role("table", name="Scores of 0.png by two")).to_be_visible()
    assert tab.wrong == []


def test_a_dropped_picture_is_taken_and_masks_are_laid_over_it(address: str, tab: Any) -> None:
    from playwright.sync_api import expect

    width, height = Image.open(io.BytesIO(PICTURES[0])).size
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    file = io.BytesIO()
    mask.save(file, "PNG")
    found = [{"score": 0.9, "label": "road", "mask": base64.b64encode(file.getvalue()).decode()}]
    said = {"model": "one", "version": 1, "task": "image-segmentation", "predictions": [found]}
    tab.route("**/v1/predict", lambda route: route.fulfill(json=said))
    tab.goto(address)
    choose(tab, "one")
    carried = tab.evaluate_handle(
        """text => {
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0)), held = new DataTransfer();
            held.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));
            return held;
        }""",
        base64.b64encode(PICTURES[0]).decode(),
    )
    tab.locator("#drop").dispatch_event("drop", {"dataTransfer": carried})
    expect(tab.get_by_alt_text("dropped.png")).to_have_count(1)
    tab.get_by_role("button", name="Predict").click()
    expect(tab.get_by_role("table", name="Scores of dropped.png").get_by_role("rowheader")).to_have_text(["road"])
    canvas = tab.locator("article canvas")
    expect(canvas).to_have_count(1)
    pixel = "(canvas, x) => [...canvas.getContext('2d').getImageData(x, 5, 1, 1).data]"
    tab.wait_for_function(
        "() => document.querySelector('article canvas').getContext('2d').getImageData(2, 5, 1, 1).data[3]"
    )
    swatch = tab.locator("article .swatch").evaluate(
        "node => getComputedStyle(node).backgroundColor.match(/\\d+/g).map(Number)"
    )
    *colour, alpha = canvas.evaluate(pixel, 2)
    assert alpha == 128
    assert colour == pytest.approx(swatch, abs=2)
    assert canvas.evaluate(pixel, width - 2)[3] == 0
    assert tab.wrong == []
