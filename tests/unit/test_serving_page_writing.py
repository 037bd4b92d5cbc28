"""The page at `/`: texts of two adapters side by side as they come, and ended by whoever asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter, Card
from ray_lora.store import open_store
from ray_lora.tasks.generation_options import TextGenerationSpec
from tests.unit.http_server import serving
from tests.unit.test_serving_page import chrome as chrome
from tests.unit.test_serving_page import tab as tab
from tests.unit.writing_world import Alone, make_adapter, make_base

PROMPT = "the capital of Peru is"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page-writing")
    base, store = make_base(root / "base"), open_store(str(root / "store"))
    for seed, (name, rows) in enumerate([("one", "prompt"), ("two", "prompt"), ("talks", "messages")]):
        adapter = Adapter.load(make_adapter(base, root / name, seed=seed))
        card = Card(task=TextGenerationSpec(rows=rows), base=str(base), architecture="AutoModelForCausalLM")  # type: ignore[arg-type]
        store.put(Adapter(adapter.config, adapter.layers, adapter.head, card, adapter.peft_type), name)
    return root


def test_two_adapters_write_side_by_side(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    with serving(world) as address:
        tab.goto(address)
        tab.locator("#adapters").select_option("one")
        tab.get_by_label("Prompt").fill(PROMPT)
        tab.get_by_label("Tokens at most").fill("9")
        tab.get_by_text("Ask other adapters the same").click()
        tab.get_by_label("two", exact=True).check()
        tab.get_by_role("button", name="Write").click()
        for name in ("one", "two"):
            expected = Alone(world / "base", world / name).text(PROMPT, 9)
            expect(tab.get_by_label(f"Text by {name}")).to_have_text(expected, use_inner_text=False)
            sha256 = httpx.get(f"{address}/v1/models/{name}", timeout=None).json()["sha256"]
            shown = tab.locator("article", has=tab.get_by_label(f"Text by {name}"))
            expect(shown).to_contain_text(f"{name}@1")
            expect(shown).to_contain_text(sha256[:12])
            expect(shown).to_contain_text("9 tokens")
        tab.locator("#adapters").select_option("talks")
        tab.get_by_label("Message").fill("what is the capital of Mali")
        tab.get_by_role("button", name="Write").click()
        said = Alone(world / "base", world / "talks").chat(
            [{"role": "user", "content": "what is the capital of Mali"}], 9
        )
        expect(tab.get_by_label("Text by talks")).to_have_text(said, use_inner_text=False)
        assert tab.wrong == []


def test_a_refusal_is_shown(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    with serving(world) as address:
        tab.goto(address)
        tab.locator("#adapters").select_option("one")
        tab.get_by_label("Prompt").fill("the " * 80)
        tab.get_by_role("button", name="Write").click()
        expect(tab.get_by_role("alert")).to_contain_text("64 at most")
        expect(tab.locator("#result")).to_be_hidden()
