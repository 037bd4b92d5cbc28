"""A request that names a person is answered by the person's adapter, the group's or the parent, and says which."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.data.sent_files import forget_rows
from ray_lora.store import open_store
from ray_lora.store.people import group_name, person_name
from tests.unit.test_serving_bases import TEXTS, on, world

__all__ = ["world"]  # a fixture


@pytest.fixture(scope="module")
def people(world: Path) -> Path:
    """`a-one` has a person `Ann/7` and a group `north`, whose adapters are a-two's and a-one's second."""
    store = open_store(str(world / "store"))
    other = Adapter.load(store.get("a-two")[1])
    for name in (person_name("a-one", "Ann/7"), group_name("a-one", "north")):
        store.put(other, name, aliases=("champion",))
    return world


def run(world: Path, main: Callable[[httpx.AsyncClient], Awaitable[None]], tmp_path: Path, **options: Any) -> None:
    on(world, main, **{"results": str(tmp_path / "results"), **options})


async def ask(client: httpx.AsyncClient, key: str | None = None, **body: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await client.post("/v1/predict", json={"model": "a-one", "inputs": TEXTS} | body, headers=headers)


def test_person_then_group_then_parent(people: Path, tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for body, name, served in (
            ({"person": "Ann/7", "group": "north"}, person_name("a-one", "Ann/7"), "person"),
            ({"person": "Ann/8", "group": "north"}, group_name("a-one", "north"), "group"),
            ({"group": "north"}, group_name("a-one", "north"), "group"),
            ({"person": "ann/7", "group": "south"}, "a-one", "parent"),
            ({"person": "Ann/7" * 30}, "a-one", "parent"),
        ):
            said = await ask(client, **body)
            assert said.status_code == 200, said.text
            told = said.json()
            assert (told["model"], told["served_by"]) == (name, served)
            assert said.headers["x-adapter"] == f"{name}@1"
            plain = (await client.post("/v1/predict", json={"model": name, "inputs": TEXTS})).json()
            assert told["predictions"] == plain["predictions"]
            assert "served_by" not in plain

    run(people, main, tmp_path)


def test_what_cannot_be_asked_is_said(people: Path, tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for body, what in (
            ({"model": "a-one@1", "person": "Ann/7"}, "name the adapter that people's come from"),
            ({"model": "base", "person": "Ann/7"}, "name the adapter that people's come from"),
            ({"model": ["a-one", "a-two"], "person": "Ann/7"}, "person and group go with one"),
            ({"person": " "}, "that is not blank"),
            ({"person": "a" * 513}, "513 characters"),
        ):
            said = await ask(client, **body)
            assert said.status_code == 400, said.text
            assert what in said.text

    run(people, main, tmp_path)


def test_a_key_learns_of_nobody_that_it_is_not_for(people: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    mine = ["a-one", person_name("a-one", "Ann/7")]
    keys.write_text(json.dumps([{"key": "k" * 32, "name": "ann", "adapters": mine}]))

    async def main(client: httpx.AsyncClient) -> None:
        assert (await ask(client, "k" * 32, person="Ann/7")).json()["served_by"] == "person"
        there, not_there = [(await ask(client, "k" * 32, person="Ann/7", group=group)) for group in ("north", "east")]
        assert (there.status_code, not_there.status_code) == (403, 403)
        other = await ask(client, "k" * 32, person="Bob")
        assert other.status_code == 403

    run(people, main, tmp_path, keys=str(keys))


def test_a_key_that_only_unicode_or_blanks_tell_from_another_is_refused(people: Path, tmp_path: Path) -> None:
    composed, apart = "Jos\u00e9", "Jose\u0301"
    told = {"model": "a-one", "rows": [{"text": "a good day", "label": "LABEL_0"}]}

    async def main(client: httpx.AsyncClient) -> None:
        async def send(person: str) -> httpx.Response:
            return await client.post("/v1/rows", json=told | {"person": person})

        for person, status in [
            (apart, 200), (apart, 200), (composed, 400), (f" {apart}", 400), ("jos\u00e9", 200),
            ("Ann/7 ", 400),  # whose adapter is in the store
            ("Ann/7", 200),
        ]:  # fmt: skip
            said = await send(person)
            assert said.status_code == status, (person, said.text)
            if status == 400:
                assert "differs only in blanks around it or in how Unicode writes it; write it alike" in said.text
                assert "Ann/7'" not in said.text, "nobody learns of another key"
        folder = tmp_path / "rows" / "a-one"
        kept = [json.loads(file.read_text())["person"] for file in sorted(folder.iterdir())]
        assert kept == [apart, apart, "jos\u00e9", "Ann/7"]
        assert forget_rows(folder, apart) == (2, 2)
        assert (await send(composed)).status_code == 200, "nothing of who was deleted is known"
        (tmp_path / "rows" / ".people" / "a-two").write_text("no folder")
        assert (await client.post("/v1/rows", json=told | {"model": "a-two", "person": "x"})).status_code == 503

    run(people, main, tmp_path, rows=str(tmp_path / "rows"))


def test_rows_are_kept_whole_or_refused_by_name(people: Path, tmp_path: Path) -> None:
    good = {"text": "a good day", "label": "LABEL_0"}

    async def send(client: httpx.AsyncClient, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        told = {"model": "a-one", "person": "Ann/7", "rows": [good]} | body
        return await client.post("/v1/rows", json=told, headers=headers)

    async def main(client: httpx.AsyncClient) -> None:
        said = await send(client, group="north", rows=[good, good])
        assert (said.status_code, said.json()) == (200, {"kept": 2, "served_by": "person"}), said.text
        assert (await send(client, person="new/../one")).json() == {"kept": 1, "served_by": "parent"}
        files = sorted((tmp_path / "rows" / "a-one").iterdir())
        kept = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        assert kept == [[good | {"person": "Ann/7", "group": "north"}] * 2, [good | {"person": "new/../one"}]]
        for body, message in (
            ({"rows": []}, "rows holds 0 rows; one request may send 1 to"),
            ({"rows": [good, {"text": "no label"}]}, "row 2: column 'label' is empty"),
            ({"rows": [{"text": "x", "label": "neither"}]}, "neither"),
            ({"rows": [good | {"shop": 4}]}, "row 1: 'shop' is no column; there are"),
            ({"rows": [good, {"text": 7, "label": "LABEL_0"}]}, "several kinds"),
            ({"rows": [{"text": "x", "label": 2**70}]}, "several kinds"),
            ({"person": " "}, "not blank"),
            ({"model": "a-one@1"}, "name the adapter that people's come from"),
        ):
            said = await send(client, **body)
            assert said.status_code == 400, said.text
            assert message in said.json()["error"]["message"]
        assert (await send(client, model="nobody")).status_code == 404
        assert len(list((tmp_path / "rows").rglob("*.jsonl"))) == 2
        (tmp_path / "rows" / "a-two").write_text("no folder")
        said = await send(client, model="a-two")
        assert (said.status_code, said.headers["retry-after"]) == (503, "1")
        assert str(tmp_path) not in said.text

    run(people, main, tmp_path, rows=str(tmp_path / "rows"))

    async def closed(client: httpx.AsyncClient) -> None:
        said = await send(client)
        assert said.status_code == 400
        assert "start it with rows=FOLDER" in said.json()["error"]["message"]

    run(people, closed, tmp_path)
