"""The page at `/` in a real browser: answers, the cache, keys; HTML in names and labels stays text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.http_server import serving
from tests.unit.serving_world import card, make_adapter, make_answerer, make_base, make_tagger, peft_probabilities

EVIL = "<img src=x onerror=\"document.title='run'\">"
LABELS = {"moods": ["sad", "calm", "glad"], "quality": ["bad", "good"], "evil": [EVIL, "</script><script>"]}
TEXTS = ["a lovely day", "the film was very dull"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    base = make_base(root / "base")
    for seed, (name, labels) in enumerate(LABELS.items()):
        card(make_adapter(base, root / "store" / name, seed=seed, labels=len(labels)), base, labels)
    return root


HANGS_MS = 300_000  # whatever has not come by then never comes; five seconds, the default, a busy machine may take


@contextmanager
def started(*more: str) -> Iterator[Any]:
    """The system's Chromium, with more switches; the test is skipped where there is none."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -c constraints.txt -e '.[test]'"
    )
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    api.expect.set_options(timeout=HANGS_MS)
    with api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no browser: apt-get install chromium (or .venv/bin/playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", *more])  # root in containers
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def chrome() -> Iterator[Any]:
    with started() as browser:
        yield browser


@pytest.fixture
def tab(chrome: Any) -> Iterator[Any]:
    """A page that collects what goes wrong in it."""
    context = chrome.new_context()
    context.set_default_timeout(HANGS_MS)
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
    yield page
    context.close()


def choose(tab: Any, name: str) -> None:
    tab.locator("#adapters").select_option(name)


def test_a_person_picks_an_adapter_and_sees_its_answers(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    expected = peft_probabilities(world / "base", world / "store" / "moods", TEXTS)
    with serving(world) as address:
        tab.goto(address)
        tab.get_by_label("Filter by name").or_(tab.locator("#filter")).fill("MOO")
        expect(tab.locator("#adapters option")).to_have_text(["moods"])
        expect(tab.locator("#count")).to_have_text("1 of 3 adapters")
        expect(tab.locator("#card")).to_contain_text("text-classification")
        choose(tab, "moods")
        tab.get_by_label("Version").select_option("@1")
        tab.get_by_label("Inputs, one in each line").fill("\n".join([TEXTS[0], "", TEXTS[1]]))
        tab.get_by_role("button", name="Predict").click()
        expect(tab.locator("#by")).to_have_text("moods@1")
        sha256 = httpx.get(f"{address}/v1/models/moods", timeout=None).json()["sha256"]
        expect(tab.locator("#sha")).to_have_text(sha256)
        for text, row in zip(TEXTS, expected, strict=True):
            table = tab.get_by_role("table", name=f"Scores of {text}")
            ranked = sorted(zip(LABELS["moods"], row, strict=True), key=lambda item: -item[1])
            expect(table.get_by_role("rowheader")).to_have_text([label for label, _ in ranked])
            shown = [float(cell) for cell in table.locator("td:last-child").all_text_contents()]
            assert shown == pytest.approx([score for _, score in ranked], abs=1e-4)
            widths = table.locator(".bar").evaluate_all(
                "bars => bars.map(bar => bar.firstChild.offsetWidth / bar.offsetWidth)"
            )
            assert widths == pytest.approx([score for _, score in ranked], abs=0.02)
        expect(tab.locator("#timing")).to_contain_text("compute")
        expect(tab.get_by_role("region", name="Adapters in slots")).to_contain_text("moods@1")
        expect(tab.locator("#cache")).to_contain_text("1 of 4")
    assert tab.wrong == []


def test_labels_of_words_are_marked_in_the_text(tab: Any, tmp_path: Path) -> None:
    """What the pipeline calls entities, over real places; letters beyond 16 bits do not move them."""
    from playwright.sync_api import expect

    world = make_tagger(tmp_path)
    text = "a lovely \N{GRINNING FACE} day the film"
    with serving(world) as address:
        tab.goto(address)
        choose(tab, "tagger")
        expect(tab.locator("#card")).to_contain_text("token-classification")
        tab.get_by_label("Inputs, one in each line").fill(text)
        tab.get_by_role("button", name="Predict").click()
        body = {"model": "tagger", "inputs": text, "parameters": {"aggregation_strategy": "simple"}}
        [found] = httpx.post(f"{address}/v1/predict", json=body, timeout=None).json()["predictions"]
        assert len(found) >= 2
        expect(tab.locator(".marked mark")).to_have_text(
            [text[part["start"] : part["end"]] + part["entity_group"] for part in found]
        )
        parts = "node => [...node.childNodes].map(one => (one.nodeName === 'MARK' ? one.firstChild : one).data)"
        assert "".join(tab.locator(".marked").evaluate(parts)) == text
    assert tab.wrong == []


def test_a_second_text_may_be_given(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    with serving(world) as address:
        tab.goto(address)
        choose(tab, "moods")
        tab.get_by_label("Inputs, one in each line").fill(TEXTS[0])
        tab.get_by_text("with text_pair").click()
        tab.get_by_label("text_pair, the same for all of them").fill(TEXTS[1])
        tab.get_by_role("button", name="Predict").click()
        row = {"text": TEXTS[0], "text_pair": TEXTS[1]}
        body = {"model": "moods", "inputs": row, "parameters": {"top_k": 9}}
        reply = httpx.post(f"{address}/v1/predict", json=body, timeout=None)
        [found] = reply.json()["predictions"]
        table = tab.get_by_role("table", name=f"Scores of {TEXTS[0]} · {TEXTS[1]}")
        expect(table.get_by_role("rowheader")).to_have_text([one["label"] for one in found])
    assert tab.wrong == []


def test_an_answer_is_marked_in_its_context(tab: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    world = make_answerer(tmp_path)
    context = "a \N{GRINNING FACE} day , the film was dull and slow . so bright and calm , not very loud , sad and glad"
    with serving(world) as address:
        tab.goto(address)
        choose(tab, "answerer")
        expect(tab.locator("#card")).to_contain_text("question-answering")
        tab.get_by_label("Inputs: question, one in each line").fill("not bad ?\nwho ?")
        tab.get_by_role("button", name="Predict").click()
        expect(tab.get_by_role("alert")).to_contain_text("context: text '' is empty")
        tab.get_by_label("context, the same for all of them").fill(context)
        tab.get_by_role("button", name="Predict").click()
        asked = [{"question": question, "context": context} for question in ("not bad ?", "who ?")]
        parameters = {"top_k": 5, "handle_impossible_answer": True}
        body = {"model": "answerer", "inputs": asked, "parameters": parameters}
        predictions = httpx.post(f"{address}/v1/predict", json=body, timeout=None).json()["predictions"]
        expect(tab.get_by_role("table")).to_have_count(3)  # and that of the cache
        marks = [found[0]["answer"] + "answer" for found in predictions if found[0]["answer"]]
        assert marks
        expect(tab.locator(".marked mark")).to_have_text(marks)
        for row, found in zip(asked, predictions, strict=True):
            table = tab.get_by_role("table", name=f"Scores of {row['question']}")
            expect(table.get_by_role("rowheader")).to_have_text([one["answer"] or "no answer" for one in found])
        choose(tab, "answerer")
        expect(tab.get_by_label("context, the same for all of them")).to_have_value(context)
    assert ["400" in wrong for wrong in tab.wrong] == [True]  # the empty context


def test_html_in_labels_inputs_and_names_stays_text(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    def spoiled(route: Any) -> None:  # no store takes such names; the page may not count on it
        content = route.fetch().json()
        content["data"].append(
            content["data"][1] | {"id": EVIL, "aliases": [EVIL], "metrics": {EVIL: 1.0}, "task": EVIL}
        )
        route.fulfill(json=content)

    with serving(world) as address:
        tab.route("**/v1/models", spoiled)
        tab.goto(address)
        choose(tab, "evil")
        expect(tab.locator("#card")).to_contain_text(EVIL)
        tab.get_by_label("Inputs, one in each line").fill(EVIL)
        tab.get_by_label("Inputs, one in each line").press("Control+Enter")
        expect(tab.get_by_role("heading", name=EVIL)).to_be_visible()
        expect(tab.locator(".scores")).to_contain_text("</script><script>")
        choose(tab, EVIL)
        expect(tab.locator("#card")).to_contain_text(f"{EVIL} 1.000")
        tab.get_by_role("button", name="Predict").click()
        expect(tab.get_by_role("alert")).to_contain_text("not a ref")
        assert tab.locator("img").count() == 0
        assert tab.title() == "ray_lora: try an adapter"
        assert tab.wrong == ["Failed to load resource: the server responded with a status of 404 (Not Found)"]


def test_the_policy_stops_what_the_script_would_let_through(world: Path, tab: Any) -> None:
    with serving(world) as address:
        policy = httpx.get(address, timeout=None).headers["content-security-policy"]
        assert "unsafe" not in policy
        tab.goto(address)
        with pytest.raises(Exception, match="TrustedHTML"):
            tab.evaluate("document.body.innerHTML = '<b>no</b>'")
        with pytest.raises(Exception, match="TrustedScript"):
            tab.evaluate("document.body.setAttribute('onclick', 'document.title = 1')")
        with pytest.raises(Exception, match="Failed to fetch"):
            tab.evaluate("fetch('http://localhost:1/elsewhere')")
        assert any("violates the following Content Security Policy" in said for said in tab.wrong)


def test_a_key_is_asked_for_and_kept_in_memory_only(world: Path, tab: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    keys = tmp_path / "keys.yaml"
    keys.write_text("- {key: sk-ops, admin: true}\n- {key: sk-1, adapters: [quality]}\n")
    with serving(world, keys=str(keys)) as address:
        tab.goto(address)
        tab.get_by_label("Key", exact=True).fill("sk-1")
        tab.keyboard.press("Enter")
        expect(tab.locator("#adapters option")).to_have_text(["quality"])
        expect(tab.locator("#cache")).to_contain_text("administrator")
        tab.get_by_role("button", name="API key").click()
        tab.get_by_label("Key", exact=True).fill("sk-ops")
        tab.get_by_role("button", name="Use").click()
        expect(tab.locator("#adapters option")).to_have_count(3)
        expect(tab.locator("#cache")).to_contain_text("0 of 4")
        kept = tab.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
        assert json.loads(kept) == [{}, {}, "", address + "/"]
        tab.reload()
        expect(tab.get_by_role("dialog")).to_be_visible()  # forgotten


def test_every_replica_s_cache_is_shown(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    def two(route: Any) -> None:
        mine = route.fetch().json()
        resident = {"adapter": "elsewhere@7", "slot": 1, "leases": 2, "pinned": False}
        route.fulfill(json=mine | {"others": [mine | {"replica": "other-one", "residents": [resident]}]})

    with serving(world) as address:
        tab.route("**/v1/status", two)
        tab.goto(address)
        expect(tab.locator("#cache-note")).to_have_text("2 replicas")
        expect(tab.get_by_role("region", name="Adapters in slots of replica other-one")).to_contain_text("elsewhere@7")
        expect(tab.locator("#cache .slots li.busy")).to_have_count(1)
        tab.unroute_all()
    assert tab.wrong == []


def test_the_keyboard_reaches_everything_and_everything_has_a_name(world: Path, tab: Any) -> None:
    from playwright.sync_api import expect

    with serving(world) as address:
        tab.goto(address)
        expect(tab.locator("#adapters option")).to_have_count(3)
        reached = []
        first = ["key-button", "API docs", "filter", "adapters", "version", "What it changes"]
        first += ["inputs", "with text_pair", "Ask other adapters the same", "ask"]
        for _ in range(len(first) + 1):
            tab.keyboard.press("Tab")
            reached.append(tab.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert reached[: len(first)] == first
        for role in ("button", "textbox", "combobox", "listbox", "searchbox", "link"):
            for element in tab.get_by_role(role).all():
                expect(element).to_have_accessible_name(re.compile(r"\S"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_are_readable_in_light_and_dark(world: Path, chrome: Any, scheme: str) -> None:
    """WCAG's contrast of 4.5 between every kind of text and what is behind it."""
    with serving(world) as address:
        tab = chrome.new_page(color_scheme=scheme)
        tab.set_default_timeout(HANGS_MS)
        tab.goto(address)
        choose(tab, "quality")
        tab.get_by_label("Inputs, one in each line").fill("a lovely day")
        tab.get_by_role("button", name="Predict").click()
        tab.locator(".scores").wait_for()
        for selector in ("h1", ".soft", "dt", "dd", ".tag", "button.main", "th", "label", "a", "textarea"):
            contrast = tab.locator(selector).first.evaluate(CONTRAST)
            assert contrast >= 4.5, f"{selector} {contrast:.2f} in {scheme}"
        tab.close()


CONTRAST = """element => {
    const parse = color => color.match(/[\\d.]+/g).map(Number);
    const light = color => {
        const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = parse(color).map(v => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    let behind = element;
    const clear = node => (parse(getComputedStyle(node).backgroundColor)[3] ?? 1) === 0;
    while (clear(behind)) behind = behind.parentElement;
    const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""
