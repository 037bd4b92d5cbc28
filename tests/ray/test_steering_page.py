"""The page of a real search in a real browser: the board, a trial stopped, a trial cloned, a trial resumed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from ray_lora.search.board import serve_board
from tests.ray.test_steering import RATE, by_rate, evaluated, long_recipe, running, summary_of
from tests.unit.test_serving_page import HANGS_MS, started


@contextmanager
def board(folder: Path) -> Iterator[str]:
    """The address of a search's page."""
    server, listening = serve_board(folder, 0)
    thread = threading.Thread(target=lambda: asyncio.run(_serve(server, listening)))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


async def _serve(server: uvicorn.Server, listening: Any) -> None:
    await server.serve(sockets=[listening])


@pytest.mark.usefixtures("cluster")
def test_a_search_is_watched_and_steered_in_a_browser(tiny_bert_folder: Path, tmp_path: Path) -> None:
    recipe = long_recipe(tiny_bert_folder, tmp_path, "watched")
    with running(recipe) as search, started() as chrome, board(search.folder) as address:
        from playwright.sync_api import expect

        trials = search.wait(evaluated)
        good, bad = by_rate(trials, 1e-2), by_rate(trials, 1e-3)
        tab = chrome.new_page()
        tab.set_default_timeout(HANGS_MS)
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.goto(address)
        expect(tab.get_by_role("heading", level=1)).to_have_text("watched")
        rows = tab.locator("#board tr")
        expect(rows).to_have_count(2)
        expect(tab.locator("#metric")).to_have_text("accuracy")
        expect(tab.get_by_role("row", name=good)).to_contain_text("learning_rate=0.01")
        expect(tab.get_by_role("row", name=good)).to_contain_text("±")
        expect(tab.locator("#curves polyline")).to_have_count(2)
        expect(tab.locator("#curves circle").nth(3)).to_be_attached()
        expect(tab.locator("#keys polyline")).to_have_count(2)
        expect(tab.locator("#keys text").filter(has_text="learning_rate")).to_be_visible()

        tab.get_by_role("button", name=f"Stop {bad}").click()
        expect(tab.locator("#said")).to_have_text(f"Stopped {bad}.")
        expect(tab.get_by_role("row", name=bad)).to_contain_text("stopped")
        expect(tab.get_by_role("button", name=f"Stop {bad}")).to_be_hidden()
        tab.get_by_role("button", name=f"Resume {bad}").click()
        expect(tab.locator("#said")).to_contain_text("goes on from its last checkpoint")
        expect(tab.get_by_role("button", name=f"Stop {bad}")).to_be_visible()

        tab.get_by_role("button", name=f"Clone {good}", exact=True).click()
        field = tab.get_by_label(RATE)
        expect(field).to_have_value("0.01")
        tab.get_by_role("button", name="Clone", exact=True).click()
        expect(tab.locator("#clone-error")).to_contain_text("needs at least one key=value that differs")
        field.fill("<b>3e-3</b>")
        tab.get_by_role("button", name="Clone", exact=True).click()
        expect(tab.locator("#clone-error")).to_contain_text("<b>3e-3</b>")
        assert tab.locator("b").count() == 0
        field.fill("3e-3")
        tab.get_by_label("Other keys").fill("training.num_train_epochs=2 lora.r=2")
        tab.get_by_role("button", name="Clone", exact=True).click()
        clone = f"{good}-1"
        expect(tab.locator("#said")).to_contain_text(f"{clone} begins from nothing")
        expect(tab.get_by_role("row", name=clone)).to_contain_text(f"(as {good})")
        expect(tab.get_by_role("row", name=clone)).to_contain_text("finished")
        expect(tab.locator("#curves polyline")).to_have_count(3)

        tab.on("dialog", lambda dialog: dialog.accept())
        tab.get_by_role("button", name="Stop the search").click()
        search.thread.join()
        expect(tab.locator("#standing")).to_contain_text("it was stopped; ray-lora search resume watched")
        expect(tab.get_by_role("button", name=f"Clone {good}", exact=True)).to_be_hidden()
        assert [text for text in wrong if "400" not in text] == []  # the two clones that were refused
        tab.close()
    ended = summary_of(search)
    assert {name: trial.status for name, trial in ended.items()} == {
        good: "stopped", bad: "stopped", clone: "finished",
    }  # fmt: skip
    config = {RATE: 3e-3, "training.num_train_epochs": 2, "lora.r": 2}
    assert ended[clone].config == config
