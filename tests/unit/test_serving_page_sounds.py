"""Sounds on the page at `/` in a real browser: chosen, recorded, played, and the words that were heard in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.http_server import serving
from tests.unit.speech_world import make_world
from tests.unit.test_serving_page import choose, started, tab
from tests.unit.test_sounds import tone, written

__all__ = ["tab"]  # a fixture
MICROPHONE = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]  # one that is none


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("sounds")
    with make_world(root) as base, serving(root, base=base) as address:
        yield address


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with started(*MICROPHONE) as browser:
        yield browser


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
