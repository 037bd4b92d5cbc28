"""Reports that `ray-lora explain --keep` leaves in a store: what is kept and refused, what the page shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_lora.cli import main
from ray_lora.errors import AdapterError
from ray_lora.explain import explain
from ray_lora.store import open_store
from ray_lora.store.reports import report_of
from tests.unit.http_server import serving
from tests.unit.serving_world import card, make_adapter, make_base
from tests.unit.test_serving_page import chrome, tab  # noqa: F401
from tests.unit.test_tables import texts

LABELS = ["no", "yes"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, which is explained, `two`, which is not, and rows."""
    root = tmp_path_factory.mktemp("explained")
    base = make_base(root / "base")
    for seed, name in enumerate(("one", "two")):
        card(make_adapter(base, root / "store" / name, seed=seed), base, LABELS)
    rows = [{"text": text, "label": LABELS[at % 2]} for at, text in enumerate(texts(20, 4))]
    pq.write_table(pa.Table.from_pylist(rows), root / "rows.parquet")
    given = ["explain", "one", "--store", str(root / "store"), "--data", str(root / "rows.parquet")]
    assert main([*given, "--input", "a private text", "--keep", "--json"]) == 0
    return root


def test_what_is_kept_is_what_was_found_and_no_input(world: Path) -> None:
    store = open_store(str(world / "store"))
    report = report_of(store, store.resolve("one"))
    assert report is not None
    [told] = explain(["one"], str(world / "store"), data=str(world / "rows.parquet"))["adapters"]  # type: ignore[misc]
    found: Any = told
    assert [(one.layer, one.relative) for one in report.layers] == [
        (one["layer"], pytest.approx(one["relative"])) for one in found["layers"]
    ]
    off = found["switched_off"]
    assert (report.metric, report.rows, report.score) == ("accuracy", 20, off["full"]["value"])
    lost = {group["layers"][0]: group["drop"]["value"] for group in off["groups"]}
    assert {one.layer: one.lost for one in report.layers} == lost
    assert [one.ref for one in report.nearest] == ["two@1"]
    assert report.ece == pytest.approx(found["reliability"]["ece"])
    assert "private" not in (world / "store/one/explained/1.json").read_text()
    assert report_of(store, store.resolve("two")) is None


def test_a_report_changes_no_version_and_goes_with_its_name(world: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    _, adapter = open_store(str(world / "store")).load("one")
    before = store.put(adapter, "copy")
    explain(["copy"], str(tmp_path / "store"), keep=True)
    assert store.resolve("copy") == before
    assert [entry.ref for entry in store.list()] == ["copy@1"]
    path = tmp_path / "store/copy/explained/1.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"sha256": "0" * 64}))
    assert report_of(store, before) is None  # of another content
    for text, why in (("[]", "valid dictionary"), ("{", "Expecting"), (json.dumps(told | {"more": 1}), "Extra")):
        path.write_text(text)
        with pytest.raises(AdapterError, match=f"copy/explained/1.json is no report of .*{why}"):
            report_of(store, before)
    store.forget("copy")
    assert not path.exists()


def test_a_store_that_keeps_none_is_refused_before_anything_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["explain", "one", "--store", "mlflow", "--tracking-uri", "http://127.0.0.1:9", "--keep"]
    assert main(given) == 2
    assert "MLflow's registry has no place for them" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_key_sees_no_name_that_it_is_not_for(world: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("- {key: sk-one, adapters: [one]}\n- {key: sk-both, adapters: [one, two]}\n")
    with serving(world, keys=str(keys)) as address:
        for key, near in {"sk-one": [], "sk-both": ["two@1"]}.items():
            answer = httpx.get(
                f"{address}/v1/explanations/one", headers={"authorization": f"Bearer {key}"}, timeout=None
            )
            assert [one["ref"] for one in answer.json()["report"]["nearest"]] == near
        refused = httpx.get(f"{address}/v1/explanations/two", headers={"authorization": "Bearer sk-one"}, timeout=None)
        assert refused.status_code == 403


def test_the_page_shows_what_is_kept_of_the_chosen_adapter(world: Path, tab: Any) -> None:  # noqa: F811
    from playwright.sync_api import expect

    evil = "<img src=x onerror=\"document.title='run'\">"
    path = world / "store/one/explained/1.json"
    told = json.loads(path.read_text())
    told["nearest"][0]["ref"] = evil
    path.write_text(json.dumps(told))
    with serving(world) as address:
        tab.goto(address)
        tab.locator("#adapters").select_option("two")
        expect(tab.locator("#explanation")).to_be_empty()  # nothing is asked for before somebody opens it
        tab.get_by_text("What it changes").click()
        expect(tab.locator("#explanation")).to_contain_text("Nothing is kept of two@1")
        tab.locator("#adapters").select_option("one")
        table = tab.get_by_role("table", name="Layers of one@1")
        expect(table.get_by_role("rowheader")).to_have_text([layer["layer"] for layer in told["layers"]])
        relative = [float(text) for text in table.locator("td:nth-child(2)").all_text_contents()]
        assert relative == pytest.approx([layer["relative"] for layer in told["layers"]], abs=1e-3)
        expect(tab.locator("#explanation")).to_contain_text(f"accuracy {told['score']:.3f} on 20 rows")
        expect(tab.locator("#explanation")).to_contain_text(evil)
        answered = httpx.get(f"{address}/v1/explanations/one@1", timeout=None).json()
        assert answered["report"] == told
        assert answered["ref"] == "one@1"
        path.write_text("{")
        assert httpx.get(f"{address}/v1/explanations/one", timeout=None).status_code == 400
    assert tab.title() != "run"
    assert tab.wrong == []
