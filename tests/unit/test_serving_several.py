"""Several adapters in one request: each answers as if it were alone, in one pass where it can; all or none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from ray_lora.adapters.adapter import Adapter
from ray_lora.serving.together import Together
from ray_lora.store import open_store, steer
from tests.unit.test_serving_bases import NAMES, TEXTS, ask_for, on, world

__all__ = ["world"]  # a fixture


def run(world: Path, main: Callable[[httpx.AsyncClient], Awaitable[None]], tmp_path: Path, **options: Any) -> None:
    on(world, main, **{"results": str(tmp_path / "results"), **options})


async def ask(client: httpx.AsyncClient, names: Any, inputs: Any = TEXTS, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"model": names, "inputs": inputs} | more)


def test_each_answers_as_alone_and_those_of_one_base_in_one_batch(world: Path, tmp_path: Path) -> None:
    names = [*NAMES["alpha"], *NAMES["beta"]]
    parameters = {name: {"top_k": 9} for name in names}

    async def main(client: httpx.AsyncClient) -> None:
        alone = {name: (await ask_for(client, name)) for name in names}
        ((alpha, _), *_), _ = client.made.values()  # type: ignore[attr-defined]
        passes: list[list[str]] = []
        compute = alpha.batcher._run
        alpha.batcher._run = lambda rows: passes.append([row.slot for row in rows]) or compute(rows)
        said = await ask(client, names, parameters=parameters)
        assert said.status_code == 200, said.text
        told = said.json()
        assert told["model"] == list(told["answers"]) == names
        assert [len(rows) for rows in passes] == [len(TEXTS) * len(NAMES["alpha"])]
        assert said.headers["x-adapter"] == ", ".join(f"{name}@1" for name in names)
        for name, one in told["answers"].items():
            assert (one["model"], one["version"]) == (name, 1)
            assert one["task"] == "text-classification"
            assert one["sha256"] == alone[name].headers["x-adapter-sha256"]
            for mine, wanted in zip(one["predictions"], alone[name].json()["predictions"], strict=True):
                assert {a["label"]: a["score"] for a in mine} == pytest.approx({a["label"]: a["score"] for a in wanted})
        assert said.headers["x-adapter-sha256"].split(", ") == [one["sha256"] for one in told["answers"].values()]
        one = (await ask(client, ["a-two"], "good")).json()["answers"]
        assert len(one["a-two"]["predictions"]) == 1
        both = (await ask(client, ["a-one", "a-one@1"], "good")).json()["answers"]
        assert both["a-one"]["predictions"] == both["a-one@1"]["predictions"]

    run(world, main, tmp_path)


def test_one_refusal_refuses_the_request_and_names_the_adapter(world: Path, tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for names, more, status, why in (
            ([], {}, 400, "from 1 to 16"),
            ([f"n{number}" for number in range(17)], {}, 400, "17 adapters"),
            (["a-one", "a-one"], {}, 400, "'a-one' twice"),
            (["a-one", "nothing"], {}, 404, "nothing"),
            (["a-one", "b-one@7"], {}, 404, "b-one"),
            (["a-one", "c-one"], {}, 400, "c-one"),
            (["a-one", "base"], {}, 400, "bare base"),
            (["a-one", "b-one"], {"inputs": []}, 400, "empty"),
            (["a-one", "b-one"], {"inputs": ["a"] * 129}, 413, "for each of 2 adapters"),
            (["a-one", "b-one"], {"inputs": [1]}, 400, "a-one: text 1"),
            (["a-one", "b-one"], {"parameters": {"top_k": 3}}, 400, "by name"),
            (["a-one", "b-one"], {"parameters": {"a-two": {}}}, 400, "'a-two' is none"),
            (["a-one", "b-one"], {"parameters": {"a-one": {"top_k": "x"}}}, 400, "a-one: "),
            (["a-one", "b-one"], {"parameters": {"b-one": {"top_k": "x"}}}, 400, "b-one: "),
            ([1], {}, 400, "model"),
        ):
            said = await ask(client, names, **more)
            assert (said.status_code, why in said.json()["error"]["message"]) == (status, True), (names, said.text)
            assert set(said.json()["error"]) == {"message", "type", "param", "code"}
        headed = await client.post(
            "/v1/predict",
            json={"model": ["a-one"], "inputs": "good"},
            headers={"serve_multiplexed_model_id": "a-one"},
        )
        assert (headed.status_code, "leave the header out" in headed.text) == (400, True)
        ((alpha, _), *_), _ = client.made.values()  # type: ignore[attr-defined]
        alpha.names.peers.away = True
        away = await ask(client, ["a-one", "b-one"])
        assert (away.status_code, away.headers["retry-after"]) == (503, "1")
        assert (await ask(client, ["a-one", "a-two"])).status_code == 200

    run(world, main, tmp_path)


def test_splits_feedback_and_shares_of_the_queue_are_each_adapter_s(world: Path, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    for name in ("a-one", "b-one"):
        store.put(Adapter.load(world / "store" / name), "both")
    store.put(Adapter.load(world / "store" / "a-two"), "other")
    store.point("both", steer.split({1: 50, 2: 50}))

    async def main(client: httpx.AsyncClient) -> None:
        for number in range(12):
            user = f"user-{number}"
            wanted = store.resolve("both").traffic.pick("both", user)
            said = await ask(client, ["other", "both"], user=user)
            answers = said.json()["answers"]
            assert {name: one["version"] for name, one in answers.items()} == {"other": 1, "both": wanted}
            for name, one in answers.items():
                told = (await client.post("/v1/feedback", json={"id": one["id"], "value": True})).json()
                assert (told["model"], told["version"]) == (name, one["version"])
            whole = {"id": said.headers["x-request-id"], "value": True}
            assert (await client.post("/v1/feedback", json=whole)).status_code == 404
        ((alpha, _), *_), _ = client.made.values()  # type: ignore[attr-defined]
        entered: list[tuple[str, int]] = []
        enter = alpha.gate.enter
        alpha.gate.enter = lambda name, rows=1: entered.append((name, rows)) or enter(name, rows)
        assert (await ask(client, ["other", "both@1"])).status_code == 200
        assert entered == [("other", len(TEXTS)), ("both", len(TEXTS))]
        with enter("other", 1):
            full = await ask(client, ["both@1", "other"], ["a"] * 5)
        assert (full.status_code, "'other'" in full.text) == (429, True)

    run(world, main, tmp_path, store=str(tmp_path / "store"), max_waiting_per_adapter=4)


def test_more_adapters_than_slots_take_turns(world: Path, tmp_path: Path) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        several = await asyncio.gather(*(ask(client, NAMES["alpha"][:: (-1) ** turn], "good") for turn in range(6)))
        assert {one.status_code for one in several} == {200}

    run(world, main, tmp_path, slots=1)


def test_a_file_is_no_text(world: Path, tmp_path: Path) -> None:
    """Whose base64 would be answered as if it were one."""

    async def main(client: httpx.AsyncClient) -> None:
        for name in ("a-one", "b-one"):
            for route, fields in (("/v1/predict", {"model": name}), (f"/models/{name}", {})):
                said = await client.post(route, data=fields, files={"file": ("a.txt", b"good")})
                assert (said.status_code, "takes none; send its text in JSON" in said.text) == (400, True)
        raw = await client.post("/models/a-one", content=b"good", headers={"content-type": "image/png"})
        assert (raw.status_code, "takes none" in raw.text) == (400, True)

    run(world, main, tmp_path)


def test_who_fails_keeps_nobody_waiting() -> None:
    async def main() -> None:
        together = Together(3)
        met: list[int] = []

        async def member(number: int) -> None:
            async with together.member() as one:
                if number == 2:
                    raise ValueError(number)
                await one.meet()
                met.append(number)

        found = await asyncio.gather(*map(member, range(3)), return_exceptions=True)
        assert met == [0, 1]
        assert isinstance(found[2], ValueError)

    asyncio.run(main())
