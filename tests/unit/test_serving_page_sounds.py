"""Sounds on the page at `/` in a real browser: chosen, recorded, played, and the words that were heard in them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.http_server import serving
from tests.unit.speech_world import make_world
from tests.unit.test_serving_page import choose
from tests.unit.test_sounds import tone, written

FAKE = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # a microphone


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("sounds")
    with make_world(root) as base, serving(root, base=base) as address:
        yield address


@pytest.fixture
def tab() -> Iterator[Any]:
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -c constraints.txt -e '.[test]'"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no browser: apt-get install chromium (or .venv/bin/playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=found, args=FAKE)
        page = browser.new_context().new_page()
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        yield page
        browser.close()


def test_sounds_are_chosen_recorded_played_and_heard(address: str, tab: Any) -> None:
    from playwright.sync_api import expect

    tab.goto(address)
    choose(tab, "boxes")
    expect(tab.get_by_label("Pictures")).to_be_visible()
    expect(tab.get_by_role("button", name="Record")).to_be_hidden()
    choose(tab, "heard")
    expect(tab.locator("#inputs")).to_be_hidden()
    tab.get_by_role("button", name="Predict").click()
    expect(tab.get_by_role("alert")).to_contain_text("at least one sound")
    flac = {"name": "a.flac", "mimeType": "audio/flac", "buffer": written(tone(8_000, 1.1), "FLAC", rate=8_000)}
    tab.get_by_label("Sounds").set_input_files([flac])
    expect(tab.locator("#shots audio")).to_have_count(1)
    assert tab.locator("#shots audio").evaluate(
        """one => new Promise(done => one.readyState ? done(one.duration)
            : one.onloadedmetadata = () => done(one.duration))"""
    ) == pytest.approx(1.1, abs=0.01)  # the page's policy lets it play
    tab.get_by_role("button", name="Predict").click()
    article = tab.locator("article")
    expect(article.locator("h3")).to_have_text("a.flac")
    expect(article.locator("p.words")).to_have_text("word word")
    tab.get_by_label("With times").check()
    tab.get_by_role("button", name="Predict").click()
    expect(article.get_by_role("rowheader")).to_have_text(["0:00.0 – 0:00.5", "0:00.5 – 0:01.0"])
    tab.get_by_label("With times").uncheck()
    tab.get_by_role("button", name="Record").click()
    expect(tab.locator("#recorded")).to_have_text("Recording …")
    tab.wait_for_timeout(1_500)  # what is recorded takes its time
    tab.get_by_role("button", name="Stop").click()
    expect(tab.locator("#shots audio")).to_have_attribute("title", "recording.wav")
    tab.get_by_role("button", name="Predict").click()
    expect(article.locator("h3")).to_have_text("recording.wav")
    expect(article.locator("p.words")).to_contain_text("word")
    choose(tab, "boxes")
    expect(tab.locator("#shots audio")).to_have_count(0)
    assert tab.wrong == []
